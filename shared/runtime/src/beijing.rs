//! Times as the people of the merchant read them: in Beijing, whose offset is `+08:00` all year.

use time::format_description::well_known::Rfc3339;
use time::macros::{format_description, offset};
use time::{Date, OffsetDateTime, Time, UtcOffset};

/// The offset of Beijing.
pub const OFFSET: UtcOffset = offset!(+8);

/// A time to the second, in RFC 3339.
pub fn moment(at: OffsetDateTime) -> String {
    let whole = at.to_offset(OFFSET).replace_nanosecond(0).unwrap_or(at);
    // Fails only outside the years 0 to 9999.
    whole.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// A time to the millisecond, in RFC 3339, for places where the order of events matters.
pub fn instant(at: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]+08:00");
    at.to_offset(OFFSET).format(form).unwrap_or_else(|_| at.to_string())
}

/// The day of a moment.
pub fn day(at: OffsetDateTime) -> Date {
    at.to_offset(OFFSET).date()
}

/// The beginning of a day.
pub fn midnight(day: Date) -> OffsetDateTime {
    day.with_time(Time::MIDNIGHT).assume_offset(OFFSET)
}

#[cfg(test)]
mod tests {
    use time::macros::{date, datetime};

    use super::*;

    #[test]
    fn a_time_is_said_as_a_clock_in_beijing_shows_it() {
        let at = datetime!(2026-01-05 18:21:08.5 UTC);
        assert_eq!(moment(at), "2026-01-06T02:21:08+08:00");
        assert_eq!(instant(at), "2026-01-06T02:21:08.500+08:00");
        for text in [moment(at), instant(at)] {
            let read = OffsetDateTime::parse(&text, &Rfc3339).unwrap();
            assert!((at - read) < time::Duration::SECOND, "{text}");
        }
    }

    #[test]
    fn a_day_begins_at_midnight_in_beijing() {
        let monday = date!(2026 - 01 - 05);
        assert_eq!(midnight(monday), datetime!(2026-01-04 16:00 UTC));
        assert_eq!(day(midnight(monday)), monday);
        assert_eq!(day(midnight(monday) - time::Duration::NANOSECOND), date!(2026 - 01 - 04));
    }
}
