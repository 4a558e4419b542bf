//! All AMQP code: sessions with the broker, the topology, confirmed publishing, subscriptions.
//!
//! One session is one connection and its channels. Any error ends the session and [`supervise`] opens the next one. The
//! client library's own recovery stays off, because it can hang forever and hides stale deliveries. Publishing and
//! consuming never share a connection: when the broker raises an alarm, it blocks a whole publishing connection, acks
//! included.
//!
//! This crate never acknowledges: only the worker's `consumer/mod.rs` does.

mod address;
mod callback;
mod config;
pub mod consume;
mod error;
mod group;
pub mod permissions;
pub mod publish;
mod session;
mod start;
mod step;
pub mod topology;

pub use address::Addresses;
pub use callback::{callback_from, callback_message, callback_of};
pub use config::AmqpConfig;
pub use consume::{DeadLetter, LetterOf, Subscription};
pub use error::BrokerError;
pub use lapin::Connection;
pub use lapin::message::Delivery;
pub use publish::{Confirmed, Message, PublishError, Publisher, PublisherOptions, PublisherState};
pub use session::{close, open, supervise};
pub use start::reach;
pub use step::{STEP, step};
