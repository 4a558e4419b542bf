//! The HTTP ingress: it accepts orders from the merchant's frontends and callbacks from the gateways.
//!
//! For each request it authenticates the sender, validates the content, makes one durable change and answers. Business
//! rules beyond validation and ownership belong to the workers. Reading order: [`routes`] (the list of all routes, and one file
//! per resource), [`access`] (who may ask), [`create`] (a request becomes durable), [`answer`] (how outcomes and errors are
//! rendered), [`watch`] (waiting for a change), [`start`] (how the process starts).
//!
//! The parts stand on each other one way: [`answer`] on none; [`watch`], [`access`] and [`create`] on [`answer`];
//! [`config`] on [`access`]; [`state`] on all of these; [`routes`] on the state; [`start`] on everything. A test in
//! `ops/xtask/tests/it/rooms.rs` checks that.

pub mod access;
pub mod answer;
pub mod config;
pub mod create;
pub mod routes;
pub mod start;
pub mod state;
pub mod watch;

pub use routes::{callbacks_only, router};
pub use state::App;
