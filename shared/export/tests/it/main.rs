//! Exports of a real database, read back cell by cell.

mod desk;
mod making;
mod reading;
mod world;
