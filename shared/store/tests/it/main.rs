//! Tests on a real PostgreSQL and Redis.

mod api_keys;
mod cache;
mod corrupt;
mod facts;
mod pool;
mod rights;
mod schema;
mod tls;
