//! How many deliveries form a batch, and how many batches are processed at once.

use std::time::Duration;

/// How many batches are processed at once, how large a batch may be, and how long it waits for more deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Batches that are processed at once, each from its own channel: while one waits for the database, another is
    /// prepared. With 1, batches are settled in the order of the queue; with more, there is no order.
    pub lanes: usize,
    /// The most deliveries that are settled together; each lane prefetches twice as many.
    pub max: usize,
    /// A batch is complete when no delivery has arrived for this long.
    pub gap: Duration,
    /// A batch is also complete when its first delivery has waited this long. So deliveries that arrive quickly are
    /// settled in large batches, and a single delivery waits only for `gap`.
    pub linger: Duration,
}

impl BatchOptions {
    /// One batch after another, in the order of the queue, each complete after `wait`.
    pub const fn in_order(max: usize, wait: Duration) -> BatchOptions {
        BatchOptions { lanes: 1, max, gap: wait, linger: wait }
    }
}
