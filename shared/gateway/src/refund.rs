//! What a refund is to any gateway: the request, and where an undeliverable one may go.

use domain::{Money, OrderNo, RefundNo, TradeNo, shorten_chars};
use secrecy::SecretString;

use crate::error::GatewayError;

/// Both gateways show the reason to the buyer. WeChat Pay accepts 80 characters, Alipay 256. We use one limit for both.
const REASON_CHARS: usize = 80;

/// A refund as we request it from a gateway. Every field stays the same in each attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundOrder {
    /// Our number of the order.
    pub order_no: OrderNo,
    /// The gateway's number of the payment that is refunded; an order may have been paid twice.
    pub trade_no: TradeNo,
    /// Our number of the refund.
    pub refund_no: RefundNo,
    /// The amount of this refund.
    pub amount: Money,
    /// The amount of the payment.
    pub total: Money,
    /// The reason that the buyer reads. Adapters shorten it, always in the same way.
    pub reason: Option<String>,
    /// The address of the callback route of this account (WeChat Pay; Alipay has none for refunds).
    pub notify_url: String,
}

impl RefundOrder {
    /// The reason as we send it; `None` if there is none or it is empty.
    pub(super) fn short_reason(&self) -> Option<&str> {
        self.reason.as_deref().map(|reason| shorten_chars(reason, REASON_CHARS)).filter(|reason| !reason.is_empty())
    }

    /// Rejects amounts that every gateway would refuse.
    pub(super) fn check(&self) -> Result<(), GatewayError> {
        if self.amount.is_positive() && self.amount <= self.total {
            return Ok(());
        }
        let message = format!("a refund of {} from a payment of {}", self.amount, self.total);
        Err(GatewayError::Refused { code: "amount".to_owned(), message })
    }
}

/// The new target of an undeliverable refund. Its `Debug` shows neither account nor name.
#[derive(Debug, Clone)]
pub enum RefundTarget {
    /// Back to the merchant, who then pays the buyer by other means.
    MerchantAccount,
    /// Another card of the buyer.
    BuyerCard {
        /// The bank, by WeChat Pay's code (`ICBC_DEBIT`).
        bank_type: String,
        /// The card's number.
        account: SecretString,
        /// The holder's name.
        name: SecretString,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::refund_order;

    #[test]
    fn a_reason_is_cut_to_the_same_eighty_characters() {
        let with = |reason: &str| RefundOrder { reason: Some(reason.to_owned()), ..refund_order() };
        assert_eq!(with(&"退".repeat(200)).short_reason(), Some("退".repeat(80).as_str()));
        assert_eq!(with("破损").short_reason(), Some("破损"));
        assert_eq!(with("").short_reason(), None);
        assert_eq!(RefundOrder { reason: None, ..refund_order() }.short_reason(), None);
    }

    #[test]
    fn no_card_and_no_name_is_shown() {
        let target = RefundTarget::BuyerCard {
            bank_type: "ICBC_DEBIT".to_owned(),
            account: SecretString::from("6222020200112233445"),
            name: SecretString::from("张三"),
        };
        let text = format!("{target:?}");
        assert!(!text.contains("6222") && !text.contains("张三"), "{text}");
    }
}
