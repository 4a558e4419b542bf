//! Whole flows through the built programs.

mod books;
mod caches;
mod cluster;
mod configuration;
mod crash_points;
mod crashes;
mod drills;
mod faults;
mod hostile;
mod kills;
mod operators;
mod outages;
mod polling;
mod purchases;
mod refund_races;
mod refunds;
mod repeats;
mod retention;
mod secrets;
mod shutdown;
