//! The route to a gateway: one client, a breaker before it, and a second address behind it.

pub(crate) mod breaker;
pub(crate) mod http;
pub(crate) mod route;
