//! The state of the broker, which the task that looks after the topology reports to the task that publishes.

use std::collections::BTreeMap;

use domain::message::job::{JobKind, Pace};
use tokio::sync::oneshot;

use super::limits::SHORT_QUEUE;

/// A request after the broker was found wiped: the task that holds the lock marks everything that was on the broker as
/// due again, and then answers.
pub(super) type Rebuild = oneshot::Sender<()>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BrokerState {
    Closed,
    Open(Depths),
}

/// The number of waiting messages in each work queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Depths(pub(super) BTreeMap<&'static str, u32>);

impl Depths {
    /// The kinds of jobs that are published as soon as they are due, each with the number of messages in its queue.
    pub(super) fn when_due(&self) -> impl Iterator<Item = (JobKind, u32)> {
        self.by_kind().filter(|(kind, _)| kind.spec().pace == Pace::WhenDue)
    }

    /// The kinds of jobs that wait until their queue is short, if it is short.
    pub(super) fn when_idle(&self) -> impl Iterator<Item = (JobKind, u32)> {
        let short = |(kind, depth): &(JobKind, u32)| kind.spec().pace != Pace::WhenDue && *depth < SHORT_QUEUE;
        self.by_kind().filter(short)
    }

    fn by_kind(&self) -> impl Iterator<Item = (JobKind, u32)> {
        // Every queue is measured before the first round, so none is absent.
        let depth = |kind: JobKind| self.0.get(kind.spec().queue).copied().unwrap_or_default();
        JobKind::ALL.iter().map(move |kind| (*kind, depth(*kind)))
    }
}
