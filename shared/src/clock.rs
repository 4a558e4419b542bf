//! Time and fresh ids, handed in so that a test can hold them still. Nothing else asks the system.

use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use crate::domain::OrderId;

/// The clock that a process works by.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Source);

#[derive(Debug, Clone, Copy)]
enum Source {
    System,
    Fixed(OffsetDateTime),
}

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that stands still, for tests.
    pub const fn fixed(at: OffsetDateTime) -> Clock {
        Clock(Source::Fixed(at))
    }

    /// Now, in UTC.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
    pub fn now(&self) -> OffsetDateTime {
        match self.0 {
            Source::System => OffsetDateTime::now_utc(),
            Source::Fixed(at) => at,
        }
    }

    /// A fresh order id: UUIDv7 of now, so that ids sort by time.
    pub fn fresh_id(&self) -> OrderId {
        OrderId::from_u128(self.fresh_bits())
    }

    /// The bits of a fresh UUIDv7, for the id of any other row.
    pub fn fresh_bits(&self) -> u128 {
        let now = self.now();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.nanosecond())).as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fresh_and_sort_by_time() {
        let earlier = Clock::fixed(OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000));
        let later = Clock::fixed(earlier.now() + time::Duration::milliseconds(1));
        assert_ne!(earlier.fresh_id(), earlier.fresh_id());
        assert!(earlier.fresh_id() < later.fresh_id());
    }
}
