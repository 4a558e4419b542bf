//! From the bytes of a request to something durable: bodies, accounts, idempotency keys, credentials, callbacks.

pub mod accounts;
pub mod credentials;
pub mod fields;
pub mod idempotency;
pub mod intake;
pub mod numbers;
pub(crate) mod once;
pub mod refused_accounts;
pub mod writer;
