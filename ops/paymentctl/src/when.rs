//! Times on a command line.

use runtime::beijing;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};

/// A time: absolute, or relative to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Absolute.
    At(OffsetDateTime),
    /// This long before now.
    Ago(Duration),
}

impl Moment {
    /// The absolute time, given the current time.
    pub fn at(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Moment::At(at) => at,
            Moment::Ago(ago) => now - ago,
        }
    }
}

/// Reads `2026-01-05T10:00:00+08:00`, `2026-01-05` (midnight in Beijing) or `2h` (before now).
///
/// # Errors
/// The accepted forms.
pub fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(Moment::At(at));
    }
    if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(Moment::At(beijing::midnight(day)));
    }
    let form = "write 2026-01-05T10:00:00+08:00, 2026-01-05 (midnight in Beijing), or how long ago: 90s 30m 2h 7d";
    span(text).map(Moment::Ago).map_err(|_| form.to_owned())
}

/// A time in the future: absolute, or relative to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// Absolute.
    At(OffsetDateTime),
    /// This long after now.
    In(Duration),
}

impl Ahead {
    /// The absolute time, given the current time.
    pub fn at(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Ahead::At(at) => at,
            Ahead::In(span) => now + span,
        }
    }
}

/// Reads `2026-12-31T18:00:00+08:00`, `2026-12-31` (midnight in Beijing) or `90d` (from now).
///
/// # Errors
/// The accepted forms.
pub fn ahead(text: &str) -> Result<Ahead, String> {
    let form = "write 2026-12-31T18:00:00+08:00, 2026-12-31 (midnight in Beijing), or a time from now: 12h 90d";
    match moment(text) {
        Ok(Moment::At(at)) => Ok(Ahead::At(at)),
        Ok(Moment::Ago(span)) => Ok(Ahead::In(span)),
        Err(_) => Err(form.to_owned()),
    }
}

/// Reads `90s`, `30m`, `2h` or `7d`.
///
/// # Errors
/// The accepted forms.
pub fn span(text: &str) -> Result<Duration, String> {
    let form = || "write a number and s, m, h or d, such as 90s 30m 2h 7d".to_owned();
    let unit = text.chars().last().ok_or_else(form)?;
    let number: u32 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(form)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(form()),
    };
    // The limit is ten years: a longer span would leave the range of times that the database can store.
    let span = Duration::seconds(i64::from(number) * seconds);
    if span <= Duration::days(3660) { Ok(span) } else { Err("no more than 3660d".to_owned()) }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn moments_are_read_in_three_forms() {
        assert_eq!(moment("2026-01-05T10:00:00+08:00"), Ok(Moment::At(datetime!(2026-01-05 02:00 UTC))));
        assert_eq!(moment("2026-01-05"), Ok(Moment::At(datetime!(2026-01-05 00:00 +8))));
        assert_eq!(moment("2h"), Ok(Moment::Ago(Duration::hours(2))));
        let now = datetime!(2026-01-05 02:00 UTC);
        assert_eq!(moment("30m").unwrap().at(now), datetime!(2026-01-05 01:30 UTC));
        for wrong in ["", "h", "-2h", "2", "2 h", "2w", "yesterday", "2026-13-05", "2026-01-05 10:00", "99999d", "+2h "]
        {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_span_ahead_counts_from_now() {
        let now = datetime!(2026-01-05 02:00 UTC);
        assert_eq!(ahead("2d").unwrap().at(now), datetime!(2026-01-07 02:00 UTC));
        assert_eq!(ahead("2026-12-31T08:00:00+08:00").unwrap().at(now), datetime!(2026-12-31 00:00 UTC));
        assert_eq!(ahead("2026-12-31").unwrap().at(now), datetime!(2026-12-31 00:00 +8));
        assert!(ahead("tomorrow").is_err());
    }

    #[test]
    fn spans_are_a_number_and_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::seconds(90)));
        assert_eq!(span("7d"), Ok(Duration::days(7)));
        for wrong in ["7", "d", "７d", "7é", "5000000000s"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
