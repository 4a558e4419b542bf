//! The work of the workers. Each binary in `bin/` is a thin `main` around one of these modules.

pub mod callbacks;
pub mod checks;
pub mod consumer;
mod deferred;
pub mod jobs;
mod people;
pub mod refunds;
pub mod relay;
pub mod start;
