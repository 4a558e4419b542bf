//! The name of the relay in metrics and logs, and the limits of a round.

use std::time::Duration;

use broker::PublisherOptions;

/// The name in metrics and logs.
pub(super) const WORKER: &str = "relay";
/// The most rows that one step of a round publishes.
pub(super) const BATCH: i64 = 1000;
/// One channel, so that events stay in their order, and a round is confirmed as a whole.
pub const PUBLISHING: PublisherOptions = PublisherOptions { channels: 1, group: BATCH as usize, queue: BATCH as usize };
/// The relay publishes no job again to a queue that is longer than this.
pub(super) const LONG_QUEUE: u32 = 10_000;
/// A queue that is shorter than this has room for jobs that wait until their worker is idle.
pub(super) const SHORT_QUEUE: u32 = 1000;
/// How long the confirms of a round may take. Meanwhile the connection that holds the lock runs no statement, and the
/// server closes it after 15 s of silence.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);
