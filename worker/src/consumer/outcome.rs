//! The result of settling a delivery, and the errors that end consuming.

use broker::BrokerError;
use runtime::panics::Panicked;

/// The result of settling a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Its effect is durable: it leaves the queue.
    Done,
    /// It can never have an effect: it becomes a dead letter.
    Dead,
}

/// The error that ended consuming. Deliveries that were not acknowledged return to their queue.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError<E: std::error::Error + 'static> {
    /// An error of the session with the broker.
    #[error(transparent)]
    Mq(#[from] BrokerError),
    /// The batch could not be settled, even after some time of retries.
    #[error("the batch could not be settled")]
    Settle(#[source] E),
    /// A dead letter panicked alone. It stays in its queue, because there is no further queue for it.
    #[error("settling a dead letter failed")]
    DeadLetter(#[source] Defect),
    /// The ack had no effect, because the deliveries belong to a session that is over.
    #[error("the deliveries belong to a session that is over")]
    Stale,
}

/// A defect in settling: there is no result for each delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// It panicked.
    #[error("settling {0}")]
    Panicked(#[from] Panicked),
    /// The number of answers differs from the number of deliveries, so we cannot match them.
    #[error("{answers} answers for {deliveries} deliveries")]
    Miscounted {
        /// The number of answers.
        answers: usize,
        /// The number of deliveries.
        deliveries: usize,
    },
}
