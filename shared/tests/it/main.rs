//! Integration tests of what the binaries share.

mod cache;
mod mq;
mod mq_publish;
mod rotation;
mod schema;
mod tidy;
mod vectors;
