//! Whole flows through the built programs.

mod books;
mod caches;
mod configuration;
mod crashes;
mod faults;
mod hostile;
mod kills;
mod outages;
mod polling;
mod purchases;
mod refund_races;
mod refunds;
mod repeats;
mod retention;
mod secrets;
mod shutdown;
