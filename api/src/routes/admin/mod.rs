//! Routes for the people and backends of the merchant, each with the scope that it requires.

pub mod actions;
pub mod audit;
pub mod callbacks;
pub mod cases;
pub mod catalogue;
pub mod config;
pub mod exports;
pub mod jobs;
pub mod keys;
pub mod orders;
pub mod refund_rules;
pub mod refunds;
pub mod search;
pub mod stats;
pub mod story;
pub mod sync;
