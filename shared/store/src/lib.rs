//! The database: all SQL, and the code that turns facts into state and events.
//!
//! [`tables`] has one file for each table. Its functions work on the caller's connection or transaction and never begin
//! or commit. A write that depends on a state names that state in its `where`. [`settle`] turns facts about payments
//! into state and events; no other code does. [`story`] tells what happened to one order. [`cache`] holds copies of what the
//! API shows. [`upkeep`] is everything
//! about the schema: its migrations, its permissions, the deletion of old data, and the choice of the leader.

pub mod cache;
pub mod config;
pub mod connect;
mod error;
pub mod page;
pub mod retry;
pub mod settle;
mod stale;
pub mod start;
pub mod story;
pub mod tables;
pub mod upkeep;

pub use config::DatabaseConfig;
pub use error::{DbError, NotDone};
pub use upkeep::schema::MIGRATOR;
