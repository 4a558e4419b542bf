//! Who may ask, and how much: tokens, addresses, networks, budgets and strikes.

pub mod auth;
pub mod buckets;
pub mod callers;
pub mod guard;
pub mod limits;
pub mod strikes;
pub mod token_keys;
pub mod view_token;
