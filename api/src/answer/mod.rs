//! What goes back: problems, headers, the layers around all routes, logs and the description.

mod document;
pub(crate) mod headers;
pub(crate) mod layers;
pub(crate) mod observe;
pub mod openapi;
pub mod problem;
pub mod rarely;
