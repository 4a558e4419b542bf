//! The numbers that identify orders, trades and refunds on both sides, and the texts that describe an order.

use crate::payment_method::PaymentMethod;
use crate::text::{shows, text_type};

text_type! {
    /// Our number of an order, the same at both gateways: 6 to 32 of `[0-9A-Za-z_]`.
    ///
    /// It satisfies both gateways: Alipay accepts 64 of `[0-9A-Za-z_]`, WeChat Pay 6 to 32 of `[0-9A-Za-z_\-|*]`.
    OrderNo, OrderNoError, "an order number of 6 to 32 characters 0-9, A-Z, a-z and _",
    |text| (6..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

text_type! {
    /// A gateway's number of a trade: 1 to 64 printable ASCII characters. The gateway decides its format.
    TradeNo, TradeNoError, "a trade number of 1 to 64 printable ASCII characters",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

text_type! {
    /// Our number of a refund, the same at both gateways: 1 to 64 of `[0-9A-Za-z_]`. A repeat with the same number
    /// refunds once; another number is another refund.
    RefundNo, RefundNoError, "a refund number of 1 to 64 characters 0-9, A-Z, a-z and _",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

text_type! {
    /// What the buyer reads at the cashier: 1 to 256 characters and no control character. A new order needs a
    /// [`Subject::title`]; existing orders are not checked against today's rules.
    ///
    /// Source: Alipay `subject`; WeChat Pay `description` is shorter and is cut by its adapter.
    Subject, SubjectError, "a subject of 1 to 256 characters, one of them visible, without control characters",
    |text| (1..=256).contains(&text.chars().count())
        && !text.trim().is_empty()
        && !text.chars().any(char::is_control)
}

impl Subject {
    /// The subject of a new order: it must contain a visible character.
    ///
    /// # Errors
    /// [`SubjectError`].
    pub fn title(text: String) -> Result<Subject, SubjectError> {
        if text.chars().any(shows) { Subject::parse(text) } else { Err(SubjectError) }
    }

    /// The rule of a gateway that the subject violates. Source: Alipay, `subject`, read 2025-11-20; WeChat Pay has no
    /// such rule.
    pub fn unfit_at(&self, method: PaymentMethod) -> Option<&'static str> {
        let unfit = method == PaymentMethod::Alipay && self.0.contains(['/', '=', '&']);
        unfit.then_some("must not contain / = & at alipay")
    }
}

text_type! {
    /// The kind of product, in the merchant's words: 1 to 32 of `[0-9A-Za-z_.-]`. Events carry it to the system that
    /// fulfils the order.
    ProductType, ProductTypeError, "a product type of 1 to 32 characters 0-9, A-Z, a-z, _, . and -",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_number_is_what_both_gateways_take() {
        for text in ["ORD_01", "a23456", &"x".repeat(32)] {
            assert_eq!(OrderNo::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "short", &"x".repeat(33), "ORD-0001", "ORD 0001", "订单000001", "ORD|0001"] {
            assert_eq!(OrderNo::parse(text), Err(OrderNoError), "{text}");
        }
    }

    #[test]
    fn a_trade_number_has_no_spaces_and_an_end() {
        assert!(TradeNo::parse("2026010522001400001000000002").is_ok());
        for text in ["", "4200 0001", "4200\n", &"1".repeat(65)] {
            assert_eq!(TradeNo::parse(text), Err(TradeNoError), "{text}");
        }
    }

    #[test]
    fn a_subject_counts_characters_not_bytes() {
        assert!(Subject::parse("大".repeat(256)).is_ok());
        for text in ["", "  ", "a\nb", &"大".repeat(257)] {
            assert_eq!(Subject::parse(text), Err(SubjectError), "{text}");
        }
    }

    #[test]
    fn a_title_shows_something_and_fits_its_gateway() {
        for text in ["R&B 专辑", "1/2 披萨", "A=B"] {
            let subject = Subject::title(text.to_owned()).unwrap();
            assert_eq!(subject.unfit_at(PaymentMethod::Wechat), None, "{text}");
            assert!(subject.unfit_at(PaymentMethod::Alipay).is_some(), "{text}");
        }
        assert_eq!(Subject::title("月卡".to_owned()).unwrap().unfit_at(PaymentMethod::Alipay), None);
        for text in ["\u{200b}", " \u{3000}\u{feff}", "\u{3164}", ""] {
            assert_eq!(Subject::title(text.to_owned()), Err(SubjectError), "{text:?}");
        }
        // A text that an order holds already can still be read.
        assert!(Subject::parse("\u{200b}").is_ok());
    }
}
