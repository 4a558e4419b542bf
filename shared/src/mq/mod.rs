//! Everything that speaks AMQP: sessions with the broker, the topology, confirmed publishing, subscriptions.
//!
//! One session is one connection and its channels. Any error ends the session and [`supervise`] builds the next; the
//! client library's own recovery stays off, because it can hang for ever and hides stale deliveries. Publishing and
//! consuming never share a connection: an alarm of the broker blocks a whole publishing connection, acks included.
//!
//! Acks are not here: only the worker's `consumer.rs` acknowledges.

mod address;
mod callback;
pub mod consume;
mod group;
pub mod permissions;
pub mod publish;
mod session;
pub mod topology;

use std::time::Duration;

pub use address::Addresses;
pub use callback::{callback_from, callback_message, callback_of};
pub use consume::{DeadLetter, LetterOf, Subscription};
pub use lapin::Connection;
pub use lapin::message::Delivery;
pub use publish::{Confirmed, Message, PublishError, Publisher, PublisherOptions, PublisherState};
pub use session::{close, open, supervise};

/// The longest that one step of the protocol may take: a handshake, a channel, a declaration, a confirm.
pub const STEP: Duration = Duration::from_secs(5);

/// Log levels of the client library that no `RUST_LOG` may raise. It prints message bodies, headers and credentials, a
/// returned message whole; and it calls every refused look at the topology an error. What went wrong it tells us as well,
/// and we say it in our own words.
pub const LOG_CAPS: [&str; 2] = ["lapin=off", "amq_protocol=info"];

/// What went wrong between this process and the broker. No variant ever holds credentials.
#[derive(Debug, thiserror::Error)]
pub enum MqError {
    /// The address itself is wrong; nothing was tried.
    #[error("the AMQP address cannot be used: {0}")]
    Address(String),
    /// None of the addresses led to a session; each is named with its reason.
    #[error("no broker could be reached: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// The broker refused a step, or the session broke during it.
    #[error("{doing} failed")]
    Amqp {
        /// The step.
        doing: &'static str,
        /// The client library's reason.
        #[source]
        source: lapin::Error,
    },
    /// The broker did not answer a step in time.
    #[error("{0} was not answered in time")]
    TimedOut(&'static str),
    /// The broker refuses messages on this session; another one may be better off.
    #[error("the broker refuses messages")]
    Refused,
    /// The session is gone.
    #[error("the session with the broker was lost")]
    Lost,
    /// The consumer was cancelled by the broker: its queue was deleted, or it held deliveries for too long.
    #[error("the broker cancelled the consumer of {0}")]
    Cancelled(String),
    /// The queue knows nothing of our consumer: the node that we are connected to is cut off from the others.
    #[error("{0} does not know its consumer: this node of the broker is out of its reach")]
    Unheard(String),
    /// Objects are missing, conflicting or out of reach.
    #[error("{0}")]
    Topology(topology::TopologyFaults),
    /// A delivery that does not hold what its queue is for.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

impl MqError {
    /// The AMQP reply code, where the broker gave one (404, 403, 406 …).
    pub fn reply_code(&self) -> Option<u16> {
        match self {
            MqError::Amqp { source, .. } => match source.kind() {
                lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Awaits one step of the protocol, at most [`STEP`]: the client library has no time limit of its own.
///
/// # Errors
/// [`MqError::Amqp`] with the reason, or [`MqError::TimedOut`].
pub async fn step<T>(doing: &'static str, future: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, MqError> {
    match tokio::time::timeout(STEP, future).await {
        Ok(done) => done.map_err(|source| MqError::Amqp { doing, source }),
        Err(_) => Err(MqError::TimedOut(doing)),
    }
}

/// An error and its causes on one line, for the one place that logs it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
