//! What keeps the database as it should be.

pub mod grants;
pub mod leadership;
pub mod retention;
pub mod schema;
pub mod statistics;
