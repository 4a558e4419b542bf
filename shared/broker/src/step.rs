//! One step of the protocol, with its time limit.

use std::time::Duration;

use crate::error::BrokerError;

/// The longest that one step of the protocol may take: a handshake, a channel, a declaration, a confirm.
pub const STEP: Duration = Duration::from_secs(5);

/// Awaits one step of the protocol, at most [`STEP`]: the client library has no time limit of its own.
///
/// # Errors
/// [`BrokerError::Amqp`] with the error, or [`BrokerError::TimedOut`].
pub async fn step<T>(
    doing: &'static str,
    future: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(STEP, future).await {
        Ok(done) => done.map_err(|source| BrokerError::Amqp { doing, source }),
        Err(_) => Err(BrokerError::TimedOut(doing)),
    }
}
