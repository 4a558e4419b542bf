//! Who may ask, and how much: tokens, addresses, networks, budgets, strikes and work in hand.

pub mod addresses;
pub mod api_keys;
pub mod auth;
pub mod buckets;
pub mod caller;
pub mod callers;
pub mod guard;
pub mod in_hand;
pub mod key;
pub mod limits;
pub mod offers;
pub mod prices;
pub mod published;
pub mod rights;
pub mod strikes;
pub mod token_keys;
pub mod tokens;
pub mod until;
pub mod view_token;
