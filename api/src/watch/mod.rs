//! Waiting for a change of an order: open pages, checks that come sooner, and work that several requests share.

pub mod hints;
pub mod hub;
pub mod joined;
pub mod synced;
