//! Whole flows through the built programs.

mod books;
mod caches;
mod clocks;
mod cluster;
mod collisions;
mod configuration;
mod crash_points;
mod crashes;
mod disks;
mod drills;
mod faults;
mod hostile;
mod kills;
mod late_payments;
mod operators;
mod outages;
mod partitions;
mod polling;
mod purchases;
mod refund_races;
mod refunds;
mod repeats;
mod retention;
mod rollouts;
mod secrets;
mod shutdown;
