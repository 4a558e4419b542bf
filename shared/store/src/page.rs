//! Which part of a list a caller wants. Ids sort by time, so a time is a bound on ids and no list needs an offset.

use domain::{PaymentMethod, first_id_at};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// An id is made shortly before the creation time of its row.
const SLACK: Duration = Duration::minutes(1);

/// When the rows of a list were created. A bound that is `None` does not restrict the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Created {
    /// At this time or later.
    pub from: Option<OffsetDateTime>,
    /// Before this time.
    pub to: Option<OffsetDateTime>,
}

impl Created {
    /// The smallest id bits in the list, and an upper bound that all ids are below. They only narrow the scan; the
    /// times themselves decide.
    pub(super) fn id_range(&self) -> (u128, u128) {
        let first = self.from.map_or(0, |from| first_id_at(from - SLACK));
        let past = self.to.map_or(u128::MAX, |to| first_id_at(to + SLACK));
        (first, past)
    }
}

/// How many rows a page looks through at most if no index finds its rows. Whatever the filters, the page then takes some
/// 10 ms, and where the next page begins is known.
pub(super) const LOOKED_THROUGH: i64 = 10_000;
/// How many it looks through first: among so few rows a common value fills a page, and their end is found at once.
pub(super) const LOOKED_THROUGH_FIRST: i64 = 500;

/// A page of a list whose filters may have no index.
#[derive(Debug, Clone)]
pub struct Part<T, Id> {
    /// The rows. There may be fewer than wanted, and even none, although the list goes on.
    pub rows: Vec<T>,
    /// The last row that was looked at, if the page ends there: the list goes on after it.
    pub looked_to: Option<Id>,
}

impl<T, Id> Part<T, Id> {
    /// The rows of a page, and the last row that it may look at, if there is such a row. A full page ends with its rows.
    pub(super) fn new(rows: Vec<T>, edge: Option<Id>, limit: i64) -> Part<T, Id> {
        let is_full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit);
        Part { rows, looked_to: edge.filter(|_| !is_full) }
    }
}

/// The earliest and the latest time of a list that has no bounds. Rows outside have times that cannot be.
const EARLIEST: OffsetDateTime = datetime!(1970-01-01 0:00 UTC);
const LATEST: OffsetDateTime = datetime!(9999-12-30 0:00 UTC);

/// A row of a list that is in the order of a time, where several rows may have one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark<Id> {
    /// The time of the row.
    pub at: OffsetDateTime,
    /// The row.
    pub id: Id,
}

impl Created {
    /// The first time in the list.
    pub(super) fn first(&self) -> OffsetDateTime {
        self.from.unwrap_or(EARLIEST).max(EARLIEST)
    }

    /// The time that ends the list and is not in it.
    pub(super) fn end(&self) -> OffsetDateTime {
        self.to.unwrap_or(LATEST).min(LATEST)
    }

    /// In a list with the newest first: the mark that all rows of a page are before.
    pub(super) fn past(&self, before: Option<Mark<i64>>) -> Mark<i64> {
        let end = Mark { at: self.end(), id: i64::MIN };
        before.filter(|before| before.at < end.at).unwrap_or(end)
    }

    /// In a list with the oldest first: the mark that all rows of a page are after.
    pub(super) fn since(&self, after: Option<Mark<i64>>) -> Mark<i64> {
        let first = Mark { at: self.first(), id: i64::MIN };
        after.filter(|after| after.at >= first.at).unwrap_or(first)
    }
}

/// A part of a list, newest first. A filter that is `None` does not restrict the list.
#[derive(Debug, Clone)]
pub struct Wanted<Id, Status> {
    /// Only rows older than this one.
    pub before: Option<Id>,
    /// Only rows in this state.
    pub status: Option<Status>,
    /// Only rows of this gateway.
    pub method: Option<PaymentMethod>,
    /// Created at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Created before this time.
    pub to: Option<OffsetDateTime>,
    /// The largest number of rows.
    pub limit: i64,
}

impl<Id: Copy, Status> Wanted<Id, Status> {
    /// The newest `limit` rows.
    pub fn newest(limit: i64) -> Wanted<Id, Status> {
        Wanted { before: None, status: None, method: None, from: None, to: None, limit }
    }

    /// See [`Created::id_range`].
    pub(super) fn id_range(&self) -> (u128, u128) {
        Created { from: self.from, to: self.to }.id_range()
    }
}
