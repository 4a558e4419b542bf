//! The rules by which refunds begin: who may return how much, and when a person must agree first.

use serde::{Deserialize, Serialize};
use time::Duration;

use crate::money::Money;
use crate::named_enum;
use crate::refund::RefundStatus;

named_enum! {
    /// What a buyer can do about the money of an own order.
    BuyerRefunds {
        /// Nothing: the merchant alone makes refunds.
        Off = "off",
        /// Request a refund, which a person approves.
        Request = "request",
        /// Make a refund, within the limits.
        Auto = "auto",
    }
}

/// The rules of one gateway. A limit counts the sum of an order's refunds, so that splitting does not help. `None` is
/// no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundRules {
    /// What buyers can do.
    pub buyer_refunds: BuyerRefunds,
    /// How many days after the payment a buyer can still do it.
    pub window_days: Option<i32>,
    /// The most that a buyer returns without a person.
    pub auto_max_amount: Option<Money>,
    /// The most that one person returns alone. More takes a second person.
    pub staff_limit: Option<Money>,
    /// The most that one API key, or one service, returns in a day of Beijing.
    pub service_daily_limit: Option<Money>,
}

/// The rules of a fresh installation.
impl Default for RefundRules {
    fn default() -> RefundRules {
        RefundRules {
            buyer_refunds: BuyerRefunds::Request,
            window_days: None,
            auto_max_amount: None,
            staff_limit: None,
            service_daily_limit: None,
        }
    }
}

/// Why the rules refuse a buyer's refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuyerRefusal {
    /// Buyers make no refunds.
    #[error("buyers cannot request refunds here; the merchant makes them")]
    Off,
    /// The payment is too long ago.
    #[error("the time in which a buyer can request a refund is over")]
    WindowOver,
}

impl RefundRules {
    /// How a buyer's refund begins. `sum` is the sum of the order's refunds with this one.
    ///
    /// # Errors
    /// [`BuyerRefusal`].
    pub fn of_buyer(&self, sum: Money, since_paid: Duration) -> Result<RefundStatus, BuyerRefusal> {
        if self.buyer_refunds == BuyerRefunds::Off {
            return Err(BuyerRefusal::Off);
        }
        if self.window_days.is_some_and(|days| since_paid > Duration::days(days.into())) {
            return Err(BuyerRefusal::WindowOver);
        }
        let at_once = self.buyer_refunds == BuyerRefunds::Auto && self.auto_max_amount.is_none_or(|most| sum <= most);
        Ok(if at_once { RefundStatus::Pending } else { RefundStatus::Requested })
    }

    /// Whether a second person must agree. `sum` is the sum of the order's refunds with this one.
    pub fn needs_second_person(&self, sum: Money) -> bool {
        self.staff_limit.is_some_and(|most| sum > most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fen(fen: i64) -> Money {
        Money::from_fen(fen).unwrap()
    }

    #[test]
    fn a_buyer_gets_what_the_rules_say_and_not_a_fen_or_a_second_more() {
        let rules = |buyer_refunds| RefundRules {
            buyer_refunds,
            window_days: Some(7),
            auto_max_amount: Some(fen(500)),
            ..RefundRules::default()
        };
        let week = Duration::days(7);
        let (pending, requested) = (Ok(RefundStatus::Pending), Ok(RefundStatus::Requested));
        for (mode, sum, since_paid, begins) in [
            (BuyerRefunds::Off, 1, Duration::ZERO, Err(BuyerRefusal::Off)),
            (BuyerRefunds::Off, 1, week * 2, Err(BuyerRefusal::Off)),
            (BuyerRefunds::Request, 1, week, requested),
            (BuyerRefunds::Request, 1, week + Duration::NANOSECOND, Err(BuyerRefusal::WindowOver)),
            (BuyerRefunds::Auto, 500, week, pending),
            (BuyerRefunds::Auto, 501, week, requested),
            (BuyerRefunds::Auto, 501, week + Duration::SECOND, Err(BuyerRefusal::WindowOver)),
            (BuyerRefunds::Auto, 1, week + Duration::SECOND, Err(BuyerRefusal::WindowOver)),
            (BuyerRefunds::Auto, 1, -week, pending),
        ] {
            assert_eq!(rules(mode).of_buyer(fen(sum), since_paid), begins, "{mode} {sum} {since_paid}");
        }
    }

    #[test]
    fn without_a_limit_nothing_is_limited_and_zero_limits_everything() {
        let open = RefundRules { buyer_refunds: BuyerRefunds::Auto, ..RefundRules::default() };
        assert_eq!(open.of_buyer(Money::MAX, Duration::days(9_999)), Ok(RefundStatus::Pending));
        assert!(!open.needs_second_person(Money::MAX));
        let strict = RefundRules { staff_limit: Some(Money::ZERO), auto_max_amount: Some(Money::ZERO), ..open };
        assert_eq!(strict.of_buyer(fen(1), Duration::ZERO), Ok(RefundStatus::Requested));
        assert!(strict.needs_second_person(fen(1)));
        let limited = RefundRules { staff_limit: Some(fen(100)), ..strict };
        assert_eq!([99, 100, 101].map(|sum| limited.needs_second_person(fen(sum))), [false, false, true]);
        assert_eq!(RefundRules::default().buyer_refunds, BuyerRefunds::Request);
    }
}
