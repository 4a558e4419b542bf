//! The messages between the processes, and to other systems.

pub mod callback;
pub mod event;
pub mod job;
pub mod schedule;
