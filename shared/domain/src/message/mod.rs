//! The messages between the processes and to the outside.

pub mod callback;
pub mod event;
pub mod job;
