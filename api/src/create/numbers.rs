//! Order and refund numbers for the gateways, built from the date and the id.

use time::OffsetDateTime;
use time::macros::offset;

/// Date in Beijing and id, in 32 characters. The number sorts by time, a person can read the date, and it is as unique
/// as the id. From the id it drops only the high digits of the time, which the date replaces, and the fixed version
/// digit.
pub fn dated(id: u128, now: OffsetDateTime) -> String {
    let (id, day) = (format!("{id:032x}"), now.to_offset(offset!(+8)).date());
    let (year, month) = (day.year().rem_euclid(100), u8::from(day.month()));
    format!("{year:02}{month:02}{:02}{}{}", day.day(), &id[5..12], &id[13..])
}

/// Cuts a time to microseconds, which is what a database column stores.
pub fn microseconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at)
}
