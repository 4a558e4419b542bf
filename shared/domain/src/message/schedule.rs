//! When work is done again: every schedule of the service, in one list.

use std::time::Duration as Wait;

use time::Duration;

/// The ages at which we query an order that is still unpaid, because its callback may be lost: often at first, then
/// less often. After the last age we query it once a day. Its expiry is one more moment.
pub const CHECKS: &[Duration] = &[
    Duration::seconds(30),
    Duration::minutes(1),
    Duration::minutes(3),
    Duration::minutes(5),
    Duration::minutes(10),
    Duration::minutes(20),
    Duration::minutes(30),
    Duration::hours(1),
    Duration::hours(2),
    Duration::hours(6),
    Duration::hours(12),
    Duration::hours(24),
];

/// The gaps between two queries about an unpaid order while a person watches it. The last gap repeats.
pub const HINTS: &[Duration] =
    &[Duration::seconds(3), Duration::seconds(5), Duration::seconds(10), Duration::seconds(20), Duration::seconds(30)];

/// The shortest time between two queries about one unpaid order that come from its schedule or from hints. Requests of
/// people, and a query after a failed close, do not wait for it.
pub const AT_LEAST_APART: Duration = Duration::seconds(3);

/// When we query a closed order again, counted from its last moment to pay. A payment that began in time may complete
/// late, and the gateway's records may lag behind.
pub const AFTER_CLOSE: [Duration; 2] = [Duration::minutes(5), Duration::minutes(5 + 24 * 60)];

/// When we query a paid order for the last time, counted from its payment. The first of these queries is a day after
/// settling.
pub const LAST_LOOK: Duration = Duration::days(8);

/// How often we query an order that waits for a person, and a pending one that is older than the last of [`CHECKS`].
pub const DAILY: Duration = Duration::days(1);

/// The waits before we repeat a query that brought no answer.
pub const UNANSWERED: [Wait; 6] = [
    Wait::from_secs(3),
    Wait::from_secs(5),
    Wait::from_secs(15),
    Wait::from_secs(60),
    Wait::from_secs(300),
    Wait::from_secs(900),
];

/// The waits before a failed job is tried again: short at first, then longer. The last wait applies for ever.
pub const RETRY: [Wait; 6] = [
    Wait::from_secs(2),
    Wait::from_secs(10),
    Wait::from_secs(30),
    Wait::from_secs(120),
    Wait::from_secs(600),
    Wait::from_secs(1800),
];

/// How often we query a refund that is on its way: pairs of "up to this age" and "this interval". The last interval
/// applies for ever: a refund never becomes failed because of its age.
pub const REFUND_QUERIES: [(Duration, Wait); 5] = [
    (Duration::minutes(1), Wait::from_secs(10)),
    (Duration::minutes(10), Wait::from_secs(60)),
    (Duration::hours(1), Wait::from_secs(5 * 60)),
    (Duration::days(1), Wait::from_secs(30 * 60)),
    (Duration::MAX, Wait::from_secs(2 * 3600)),
];

/// How long a refund waits for the merchant's balance.
pub const SHORTAGE: Duration = Duration::minutes(10);

/// How long an earlier request with an unknown outcome may still take effect. A refusal of its repeat proves nothing
/// about it.
pub const LATE_EFFECT: Duration = Duration::minutes(10);

/// How often we query an undeliverable refund.
pub const UNDELIVERABLE: Duration = Duration::days(1);

/// Seconds until the next try, after the first panic, the second, and so on. They add up to about seven hours, in
/// which people find a defect of a release; meanwhile the checks find the payments.
pub const AFTER_PANICS: [i32; 5] = [10, 60, 600, 3600, 6 * 3600];
