//! The database: all SQL, and where facts become state and events.
//!
//! [`tables`] has one file for each table. Its functions work on the caller's connection or transaction and never begin or commit; a
//! write that depends on a state names that state in its `where`. [`settle`] turns facts about money into state and events, and
//! nothing else does. [`cache`] holds copies of what is shown. [`upkeep`] is everything about the schema: its
//! migrations, its rights, what is removed after its time, and who leads.

pub mod cache;
pub mod config;
pub mod connect;
mod error;
pub mod page;
pub mod retry;
pub mod settle;
pub mod start;
pub mod tables;
pub mod upkeep;

pub use config::DatabaseConfig;
pub use error::DbError;
pub use upkeep::schema::MIGRATOR;
