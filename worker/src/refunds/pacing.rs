//! How long a refund waits before it may be sent or queried.

use gateway::limits;
use store::connect::in_time;
use store::tables::jobs::Taken;
use store::tables::orders::Order;
use store::tables::refunds::{self, Refund};
use time::{Duration, OffsetDateTime};

use crate::jobs::job::JobError;
use crate::refunds::worker::RefundWorker;

/// A query earlier than this after the request proves nothing. Source: Alipay, refund query (P:02ekft).
pub(super) const SETTLE_IN: Duration = Duration::seconds(10);

impl RefundWorker {
    /// How long the gateway accepts no further refund of this order. We count from the last moment at which another
    /// refund may have reached it: when we sent that refund, or when its record last changed, whichever is later.
    pub(super) async fn too_soon(
        &self,
        job: &Taken,
        refund: &Refund,
        order: &Order,
    ) -> Result<Option<Duration>, JobError> {
        let gap = limits(refund.payment_method).between_refunds;
        let others = in_time(refunds::of_order(&self.db, order.id)).await?;
        let sent = others.iter().filter(|other| other.id != refund.id && other.sent_at.is_some());
        // `sent_at` is the database's time; `updated_at` may come from a clock that is behind.
        let last = sent.filter_map(|other| other.sent_at.max(Some(other.updated_at))).max();
        Ok(last.map(|last| left(gap, last, job.now())).filter(|left| left.is_positive()))
    }
}

/// The rest of `wait`, counted from `since`. A moment in the future, written by a clock ahead of ours, counts as now,
/// so nothing is postponed for longer than `wait`.
pub(super) fn left(wait: Duration, since: OffsetDateTime, now: OffsetDateTime) -> Duration {
    wait - (now - since.min(now))
}
