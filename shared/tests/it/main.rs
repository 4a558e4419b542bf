//! Integration tests of what the binaries share.

mod cache;
mod facts;
mod mq;
mod mq_publish;
mod pool;
mod rights;
mod rotation;
mod schema;
mod tidy;
mod tls;
mod vectors;
