//! Amounts of CNY, exact.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An amount of CNY in fen (100 fen = 1 yuan), never negative, at most [`Money::MAX`].
///
/// Alipay uses yuan text and WeChat Pay integer fen; the adapters convert both to `Money`. Our own API and the database
/// show yuan. In JSON this type is yuan text with two places, `"12.34"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Money(i64);

/// The reason why a number or a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Negative, or more than the database column holds.
    #[error("{0} fen is outside 0.00 to 99999999.99 yuan")]
    OutOfRange(i64),
    /// Not digits with at most two decimals.
    #[error("not an amount in yuan with at most two decimals")]
    NotYuan,
}

impl Money {
    /// 99 999 999.99 yuan: what `numeric(10,2)` holds.
    pub const MAX: Money = Money(9_999_999_999);
    /// Zero.
    pub const ZERO: Money = Money(0);

    /// # Errors
    /// [`MoneyError::OutOfRange`] below zero and above [`Money::MAX`].
    pub const fn from_fen(fen: i64) -> Result<Money, MoneyError> {
        if 0 <= fen && fen <= Money::MAX.0 { Ok(Money(fen)) } else { Err(MoneyError::OutOfRange(fen)) }
    }

    /// Parses yuan text: `20`, `88.8` and `88.80`, ASCII digits only, no sign, no exponent, no third decimal.
    ///
    /// # Errors
    /// [`MoneyError::NotYuan`] for any other text, [`MoneyError::OutOfRange`] above [`Money::MAX`].
    pub fn from_yuan(text: &str) -> Result<Money, MoneyError> {
        let (whole, decimals) = match text.split_once('.') {
            Some((whole, decimals)) if (1..=2).contains(&decimals.len()) => (whole, decimals),
            Some(_) => return Err(MoneyError::NotYuan),
            None => (text, ""),
        };
        // Twelve digits of yuan fit easily into i64 as fen, and are far above MAX.
        if !(1..=12).contains(&whole.len()) || !whole.bytes().chain(decimals.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(MoneyError::NotYuan);
        }
        let fen = whole.bytes().chain(decimals.bytes()).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Money::from_fen(fen * [100, 10, 1][decimals.len()])
    }

    /// The amount in fen.
    pub const fn fen(self) -> i64 {
        self.0
    }

    /// Whether it is more than zero, as every amount that moves must be.
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }
}

/// Yuan with two decimals, `12.34`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl TryFrom<String> for Money {
    type Error = MoneyError;

    fn try_from(yuan: String) -> Result<Money, MoneyError> {
        Money::from_yuan(&yuan)
    }
}

impl From<Money> for String {
    fn from(money: Money) -> String {
        money.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn yuan_text_and_fen_agree(fen in 0..=Money::MAX.fen()) {
            let money = Money::from_fen(fen).unwrap();
            prop_assert_eq!(Money::from_yuan(&money.to_string()).unwrap(), money);
        }

        #[test]
        fn any_text_is_an_amount_or_an_error(text in ".{0,20}") {
            if let Ok(money) = Money::from_yuan(&text) {
                prop_assert!(money <= Money::MAX);
                let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
                let printed = money.to_string();
                let shown = &printed[..printed.len() - [3, 1, 0][decimals]];
                prop_assert_eq!(shown.trim_start_matches('0'), text.trim_start_matches('0'));
            }
        }
    }

    #[test]
    fn yuan_is_read_leniently_and_printed_with_two_places() {
        for (text, fen) in [("20", 2000), ("88.8", 8880), ("88.80", 8880), ("0.01", 1), ("007.5", 750), ("0", 0)] {
            assert_eq!(Money::from_yuan(text).unwrap().fen(), fen, "{text}");
        }
        assert_eq!(Money::from_fen(5).unwrap().to_string(), "0.05");
        assert_eq!(Money::MAX.to_string(), "99999999.99");
    }

    #[test]
    fn what_is_not_yuan_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1.234", "1e3", " 1", "1 ", "1,000", "１", "0x1", "1.-1", "NaN"]
        {
            assert_eq!(Money::from_yuan(text), Err(MoneyError::NotYuan), "{text:?}");
        }
        assert_eq!(Money::from_yuan("100000000"), Err(MoneyError::OutOfRange(10_000_000_000)));
        assert_eq!(Money::from_yuan("9999999999999"), Err(MoneyError::NotYuan));
        assert_eq!(Money::from_fen(-1), Err(MoneyError::OutOfRange(-1)));
    }
}
