//! Routes that require the scope `payments:admin`.

pub mod actions;
pub mod cases;
pub mod config;
pub mod stats;
pub mod sync;
