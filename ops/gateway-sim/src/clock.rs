//! Times in the formats of the two gateways.

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::{format_description, offset};
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

const BEIJING: UtcOffset = offset!(+8);
const ALIPAY: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
const DAY: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]");

/// The current time. The simulator is a separate process with its own clock.
#[expect(clippy::disallowed_methods, reason = "the one place where the simulator reads its clock")]
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// `yyyy-MM-dd HH:mm:ss` in Beijing time.
pub(crate) fn alipay(at: OffsetDateTime) -> String {
    beijing(at).format(ALIPAY).unwrap_or_default()
}

/// Reads exactly the format that [`alipay`] writes.
pub(crate) fn parse_alipay(text: &str) -> Option<OffsetDateTime> {
    if text.len() != 19 {
        return None;
    }
    PrimitiveDateTime::parse(text, ALIPAY).ok().map(|at| at.assume_offset(BEIJING))
}

/// RFC 3339 with the offset of Beijing and no fraction.
pub(crate) fn wechat(at: OffsetDateTime) -> String {
    let at = beijing(at);
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// Reads RFC 3339 with an offset.
pub(crate) fn parse_wechat(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// `yyyyMMdd` in Beijing time, with which most numbers of a gateway begin.
pub(crate) fn day(at: OffsetDateTime) -> String {
    beijing(at).format(DAY).unwrap_or_default()
}

/// The last hours of the year 9999 cannot be shown in Beijing time; they stay unchanged.
fn beijing(at: OffsetDateTime) -> OffsetDateTime {
    at.checked_to_offset(BEIJING).unwrap_or(at)
}
