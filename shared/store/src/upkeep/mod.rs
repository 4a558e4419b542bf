//! Maintenance of the database.

pub mod grants;
pub mod leadership;
pub mod retention;
pub mod schema;
pub mod statistics;
