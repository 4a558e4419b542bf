//! What goes back: problems, answers to gateways, headers, the layers around the routes, logs and the description.

pub(crate) mod headers;
pub(crate) mod layers;
pub(crate) mod observe;
pub mod openapi;
pub mod problem;
pub mod rarely;
pub mod refusal;
