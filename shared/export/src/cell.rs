//! The cells of a file, and what a spreadsheet must not take for something else.
//!
//! A text that begins like a formula gets a `'` in front in both formats: a buyer chooses some of these texts, and a formula in
//! a cell runs on the machine of its reader. In CSV every text that a spreadsheet would read as a number, a date or a time
//! gets it too, because a number of 12 digits or more loses its last digits there, and any number its zeros in front. A text
//! that begins with `'` gets a second one, so one rule reads all of them back: cut off one `'` at the beginning.

use std::borrow::Cow;

use domain::Money;
use runtime::beijing;
use time::OffsetDateTime;
use time::macros::format_description;

/// A number of this many digits is text. Spreadsheets round it, or show it as `1.23E+11`.
const LONG: usize = 12;
/// The most digits that a number of Excel holds exactly.
const EXACT: usize = 15;

/// What stands between the digits of numbers, dates and times.
const SIGNS: &str = ".,-/:+%()$¥￥年月日时分秒";
/// A spreadsheet knows these and their beginnings, of three letters or more.
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// The value of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Nothing.
    Empty,
    /// Text that did not come from us, numbers of orders included.
    Text(String),
    /// Text of ours.
    Word(&'static str),
    /// An amount in fen.
    Amount(i64),
    /// How many.
    Count(i64),
    /// A time.
    Time(OffsetDateTime),
}

impl Cell {
    /// Text.
    pub fn text(text: impl ToString) -> Cell {
        Cell::Text(text.to_string())
    }

    /// Text that may be absent.
    pub fn optional(text: Option<impl ToString>) -> Cell {
        text.map_or(Cell::Empty, Cell::text)
    }

    /// An amount.
    pub const fn money(money: Money) -> Cell {
        Cell::Amount(money.fen())
    }
}

/// The text of a cell in CSV.
pub fn in_csv(cell: &Cell) -> Cow<'_, str> {
    match cell {
        Cell::Empty => Cow::Borrowed(""),
        Cell::Word(word) => Cow::Borrowed(word),
        Cell::Text(text) if needs_mark(text) || reads_as_number(text) => Cow::Owned(format!("'{text}")),
        Cell::Text(text) => Cow::Borrowed(text),
        Cell::Amount(fen) => long_as_text(yuan(*fen)),
        Cell::Count(count) => long_as_text(count.to_string()),
        Cell::Time(at) => Cow::Owned(clock(*at)),
    }
}

fn long_as_text(number: String) -> Cow<'static, str> {
    let is_long = digits(&number) >= LONG;
    Cow::Owned(if is_long { format!("'{number}") } else { number })
}

/// A text as a cell of a workbook holds it, as text.
pub fn guarded(text: &str) -> Cow<'_, str> {
    if needs_mark(text) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

/// Whether a workbook holds the amount exactly as a number.
pub(crate) fn fits_number(fen: i64) -> bool {
    digits(&yuan(fen)) <= EXACT
}

/// Yuan with two decimals. Sums may be larger than [`Money::MAX`].
pub fn yuan(fen: i64) -> String {
    format!("{}.{:02}", fen / 100, (fen % 100).abs())
}

/// A time to the second, on a clock in Beijing; the head of the column names the zone.
pub(crate) fn clock(at: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    // Fails only outside the years 0 to 9999.
    at.to_offset(beijing::OFFSET).format(form).unwrap_or_else(|_| at.to_string())
}

fn digits(text: &str) -> usize {
    text.bytes().filter(u8::is_ascii_digit).count()
}

/// Whether a spreadsheet may take the text for a formula, also when it was saved and opened again. The wide forms are those
/// of Chinese keyboards.
fn needs_mark(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠', '\''])
}

/// Whether a spreadsheet that opens a CSV may read the text as a number, a date or a time. A short number without a zero in
/// front stays what it is.
fn reads_as_number(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() < LONG;
    if text.is_empty() || is_plain {
        return is_plain && text.len() > 1 && text.starts_with('0');
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == ' ' || SIGNS.contains(c);
    if !text.contains(|c: char| c.is_ascii_digit()) || !text.chars().all(fits) {
        return false;
    }
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic());
    let begins_with_month = words.next().is_none_or(|word| word.is_empty() || is_month(word));
    begins_with_month
        && words.all(|word| is_month(word) || ["", "e", "a", "p", "am", "pm"].contains(&&*word.to_ascii_lowercase()))
}

fn is_month(word: &str) -> bool {
    word.len() >= 3 && MONTHS.iter().any(|month| month.starts_with(&word.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn csv(text: &str) -> String {
        in_csv(&Cell::text(text)).into_owned()
    }

    #[test]
    fn no_text_is_a_formula_in_either_format() {
        for text in [
            "=1+1",
            "=HYPERLINK(\"http://x\",\"click\")",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            "\n=1",
            "＝1+1",
            "＠a",
            "'=1",
            "'",
        ] {
            assert_eq!(csv(text), format!("'{text}"), "{text:?}");
            assert_eq!(guarded(text), format!("'{text}"), "{text:?}");
        }
        for text in ["", "a=1", "一个月", " =1", "会员-1", "1+1=2"] {
            assert_eq!((csv(text), guarded(text).into_owned()), (text.to_owned(), text.to_owned()));
        }
    }

    #[test]
    fn what_reads_as_a_number_is_text_in_csv() {
        for text in [
            "123456789012",
            "4200002219202211",
            "20261129000000000000000000000042",
            "007",
            "00",
            "1e5",
            "12E3",
            "1.50",
            "3-1",
            "2026/1/2",
            "10:30",
            "1,000",
            "50%",
            "1 2",
            "MAR1",
            "1-Sept",
            "5 December 2026",
            "10:30 pm",
            "5月1日",
            "2026年11月",
            "¥12",
            "$5",
            "(12)",
        ] {
            assert_eq!(csv(text), format!("'{text}"), "{text:?}");
            assert_eq!(guarded(text), text, "a workbook knows what is text");
        }
        for text in [
            "7",
            "0",
            "12345678901",
            "R1e5",
            "1e5x",
            "e",
            "-",
            "u_881",
            "may",
            "maya1",
            "ma1",
            "a1",
            "E5",
            "5x",
            "第5日",
        ] {
            let expected = if text == "-" { "'-".to_owned() } else { text.to_owned() };
            assert_eq!(csv(text), expected);
        }
    }

    #[test]
    fn every_text_can_be_read_back() {
        for text in ["=1", "'=1", "''", "007", "'007", "abc", "", "12345678901", "123456789012"] {
            let cell = csv(text);
            assert_eq!(cell.strip_prefix('\'').unwrap_or(&cell), text);
        }
    }

    #[test]
    fn amounts_are_exact_and_long_ones_are_text() {
        for (fen, shown) in [
            (0, "0.00"),
            (5, "0.05"),
            (1234, "12.34"),
            (9_999_999_999, "99999999.99"),
            (99_999_999_999, "999999999.99"),
            (100_000_000_000, "'1000000000.00"),
        ] {
            assert_eq!(in_csv(&Cell::Amount(fen)), shown);
        }
        assert!(fits_number(999_999_999_999_999) && !fits_number(1_000_000_000_000_000));
        assert_eq!(in_csv(&Cell::Count(42)), "42");
    }

    #[test]
    fn a_time_is_that_of_beijing() {
        assert_eq!(in_csv(&Cell::Time(datetime!(2026-01-05 18:21:08.5 UTC))), "2026-01-06 02:21:08");
    }
}
