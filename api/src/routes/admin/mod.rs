//! Routes that require the scope `payments:admin`.

pub mod cases;
pub mod config;
pub mod deeds;
pub mod stats;
pub mod sync;
