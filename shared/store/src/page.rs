//! Which part of a list somebody wants to see. Ids sort by time, so a time is a bound on ids and no list needs an offset.

use domain::{PaymentMethod, first_id_at};
use time::{Duration, OffsetDateTime};

/// An id is made a moment before its row says that it was created.
const SLACK: Duration = Duration::minutes(1);

/// A part of a list, newest first; what is not said is not asked for.
#[derive(Debug, Clone)]
pub struct Wanted<Id, Status> {
    /// Older than this row.
    pub before: Option<Id>,
    /// In this state.
    pub status: Option<Status>,
    /// At this gateway.
    pub method: Option<PaymentMethod>,
    /// Created then or later.
    pub from: Option<OffsetDateTime>,
    /// Created earlier than that.
    pub to: Option<OffsetDateTime>,
    /// At most so many.
    pub limit: i64,
}

impl<Id: Copy, Status> Wanted<Id, Status> {
    /// The newest so many.
    pub fn newest(limit: i64) -> Wanted<Id, Status> {
        Wanted { before: None, status: None, method: None, from: None, to: None, limit }
    }

    /// The least bits of an id in the list, and the bits that all of them are below. They only narrow the scan; the
    /// times themselves decide.
    pub(super) fn id_range(&self) -> (u128, u128) {
        let first = self.from.map_or(0, |from| first_id_at(from - SLACK));
        let past = self.to.map_or(u128::MAX, |to| first_id_at(to + SLACK));
        (first, past)
    }
}
