//! What only those with the scope `payments:admin` may do.

pub mod cases;
pub mod config;
pub mod deeds;
pub mod stats;
pub mod sync;
