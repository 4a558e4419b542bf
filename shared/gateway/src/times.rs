//! When something happened, by a gateway's clock. We reject a time that no payment can have and use our own time
//! instead.
//!
//! An odd time alone never prevents money from being settled (ops/decisions/0019).

use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// Neither gateway existed before this time.
const EARLIEST: OffsetDateTime = datetime!(2000-01-01 00:00 UTC);
/// How far a gateway's clock may be ahead of ours.
const AHEAD: Duration = Duration::days(1);

/// Reads the times of one message and records the fields whose time it rejects.
pub(super) struct Times {
    now: OffsetDateTime,
    doubted: Vec<&'static str>,
}

impl Times {
    /// `now` is our clock.
    pub(super) fn new(now: OffsetDateTime) -> Times {
        Times { now, doubted: Vec::new() }
    }

    /// The time in the field `name`. `None`: the field is absent, or states a time that no payment can have.
    pub(super) fn read(
        &mut self,
        name: &'static str,
        text: Option<&str>,
        parse: fn(&str) -> Option<OffsetDateTime>,
    ) -> Option<OffsetDateTime> {
        let text = text.filter(|text| !text.is_empty())?;
        let believed = believed(parse(text), self.now);
        if believed.is_none() {
            self.doubted.push(name);
        }
        believed
    }

    /// The time of a payment: what `name` states, or `instead` if `name` is absent. If neither is usable, our own time.
    pub(super) fn of_payment(
        &mut self,
        stated: (&'static str, Option<&str>),
        instead: (&'static str, Option<&str>),
        ours: OffsetDateTime,
        parse: fn(&str) -> Option<OffsetDateTime>,
    ) -> OffsetDateTime {
        let (name, text) = if stated.1.is_some_and(|text| !text.is_empty()) { stated } else { instead };
        self.read(name, text, parse).unwrap_or(ours)
    }

    /// The rejected times, for the evidence: the names of the fields and never their values.
    pub(super) fn doubt(self) -> Option<String> {
        if self.doubted.is_empty() {
            return None;
        }
        Some(format!("{}: not a time that a payment can have; our own time counts", self.doubted.join(", ")))
    }
}

/// The time if it is possible, otherwise `None`.
pub(super) fn believed(at: Option<OffsetDateTime>, now: OffsetDateTime) -> Option<OffsetDateTime> {
    at.filter(|at| is_possible(*at, now))
}

/// When we received a message. If the queue states an impossible time, `now` is used instead.
pub(super) fn received(received_at: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
    if received_at >= EARLIEST && received_at <= now { received_at } else { now }
}

fn is_possible(at: OffsetDateTime, now: OffsetDateTime) -> bool {
    at >= EARLIEST && now.checked_add(AHEAD).is_none_or(|latest| at <= latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-05 16:20:30 UTC);
    /// Seconds since 1970, so that a test can state any time.
    fn seconds(text: &str) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(text.parse().ok()?).ok()
    }

    fn text(at: OffsetDateTime) -> String {
        at.unix_timestamp().to_string()
    }

    #[test]
    fn a_time_is_believed_from_2000_until_a_day_ahead_of_our_clock() {
        for (at, believed) in [
            (datetime!(1999-12-31 23:59:59 UTC), false),
            (datetime!(2000-01-01 00:00:00 UTC), true),
            (datetime!(2026-01-06 16:20:30 UTC), true),
            (datetime!(2026-01-06 16:20:31 UTC), false),
            (datetime!(9999-12-31 23:59:59 UTC), false),
            (datetime!(0000-01-01 00:00:00 UTC), false),
        ] {
            let mut times = Times::new(NOW);
            assert_eq!(times.read("at", Some(&text(at)), seconds), believed.then_some(at), "{at}");
            assert_eq!(times.doubt().is_some(), !believed, "{at}");
        }
    }

    #[test]
    fn an_absent_time_is_no_doubt_and_an_unreadable_one_is() {
        for absent in [None, Some("")] {
            let mut times = Times::new(NOW);
            assert_eq!(times.read("at", absent, seconds), None);
            assert_eq!(times.doubt(), None);
        }
        let mut times = Times::new(NOW);
        assert_eq!(times.read("at", Some("secret"), seconds), None);
        assert_eq!(times.doubt().unwrap(), "at: not a time that a payment can have; our own time counts");
    }

    #[test]
    fn our_own_time_counts_where_no_stated_time_is_believed() {
        let ours = datetime!(2026-01-05 16:20:00 UTC);
        let paid = datetime!(2026-01-05 16:19:00 UTC);
        let (paid_text, odd) = (text(paid), "soon");
        for (stated, instead, expected, doubted) in [
            (Some(paid_text.as_str()), None, paid, false),
            (None, Some(paid_text.as_str()), paid, false),
            (Some(odd), Some(paid_text.as_str()), ours, true),
            (None, Some(odd), ours, true),
            (None, None, ours, false),
        ] {
            let mut times = Times::new(NOW);
            let found = times.of_payment(("a", stated), ("b", instead), ours, seconds);
            assert_eq!((found, times.doubt().is_some()), (expected, doubted), "{stated:?} {instead:?}");
        }
    }

    #[test]
    fn a_time_of_receipt_that_cannot_be_is_now() {
        let earlier = datetime!(2026-01-01 00:00:00 UTC);
        assert_eq!(received(earlier, NOW), earlier);
        for odd in [datetime!(9999-12-31 23:59:59 UTC), datetime!(1970-01-01 00:00:00 UTC), NOW + Duration::SECOND] {
            assert_eq!(received(odd, NOW), NOW);
        }
    }
}
