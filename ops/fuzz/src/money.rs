//! Amounts as text.

use domain::Money;

/// A valid amount is read as the same amount, and nothing else is accepted.
pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(money) = Money::from_yuan(text) else { return };
    assert!(text.len() <= 11 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{text:?} is read");
    let (yuan, cents) = text.split_once('.').unwrap_or((text, ""));
    assert!(cents.len() <= 2, "{text:?} is read");
    let fen: i64 = format!("{yuan}{cents:0<2}").parse().unwrap_or_else(|error| panic!("{text:?}: {error}"));
    assert_eq!(money.fen(), fen, "{text:?}");
    assert_eq!(Money::from_yuan(&money.to_string()), Ok(money), "{text:?}");
}
