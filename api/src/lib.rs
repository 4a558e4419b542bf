//! The HTTP ingress: it accepts orders from the merchant's frontends and callbacks from the gateways.
//!
//! For each request it authenticates the sender, validates the content, makes one durable change and answers. Business
//! rules beyond validation and ownership belong to the workers. Reading order: [`routes`] (one file per resource),
//! [`guard`] (checks on every request), [`intake`] (a callback becomes durable), [`problem`] (how errors are rendered),
//! [`start`] (how the process starts).

pub mod auth;
pub mod buckets;
pub mod callers;
pub mod config;
pub mod credentials;
pub mod fields;
pub mod guard;
mod headers;
pub mod hints;
pub mod hub;
pub mod idempotency;
pub mod intake;
pub mod joined;
mod layers;
pub mod limits;
pub mod numbers;
mod observe;
mod once;
pub mod openapi;
pub mod problem;
pub mod rarely;
pub mod refusal;
pub mod refused_accounts;
pub mod routes;
pub mod start;
pub mod state;
pub mod strikes;
pub mod token_keys;
pub mod view_token;
pub mod writer;

pub use routes::{callbacks_only, router};
pub use state::App;
