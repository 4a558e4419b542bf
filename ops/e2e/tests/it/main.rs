//! Whole flows through the built programs.

mod books;
mod configuration;
mod crashes;
mod faults;
mod hostile;
mod outages;
mod purchases;
mod repeats;
mod secrets;
mod shutdown;
