//! Numbers for the gateways, made of the day and the id.

use time::OffsetDateTime;
use time::macros::offset;

/// Day and id in 32 characters: it sorts by time, a person can read the day, and it is as unique as the id. Of the id go
/// only the high digits of its time, which the day tells, and the fixed version digit.
pub fn dated(id: u128, now: OffsetDateTime) -> String {
    let (id, day) = (format!("{id:032x}"), now.to_offset(offset!(+8)).date());
    let (year, month) = (day.year().rem_euclid(100), u8::from(day.month()));
    format!("{year:02}{month:02}{:02}{}{}", day.day(), &id[5..12], &id[13..])
}

/// What a database column keeps of a time.
pub fn microseconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at)
}
