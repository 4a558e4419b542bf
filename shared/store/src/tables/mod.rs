//! One file for each table, and one for each query that reads several tables.

pub mod api_keys;
pub mod audit;
pub mod callbacks;
pub mod case_facts;
pub mod cases;
pub mod catalogue;
pub mod credentials;
pub mod dead_letters;
pub mod events;
pub mod extra;
pub mod hints;
pub mod idempotency_keys;
pub mod jobs;
pub mod open_accounts;
pub mod order_list;
pub mod orders;
pub mod outline;
pub mod outside;
pub mod panicked;
pub mod payment_config;
mod reading;
pub mod refund_list;
pub mod refunds;
pub mod search;
pub mod stats;
pub mod transactions;
pub mod unplaced;
