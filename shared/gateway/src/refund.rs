//! What a refund is to any gateway: what it is asked, and where it stands.

use domain::{Money, OrderNo, RefundNo, TradeNo, shorten_chars};
use secrecy::SecretString;
use time::OffsetDateTime;

use crate::error::GatewayError;

/// Both gateways show the reason to the buyer: WeChat Pay takes 80 characters, Alipay 256. One cut for both.
const REASON_CHARS: usize = 80;

/// A refund as a gateway is asked for it. Everything in it stays the same in each attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundOrder {
    /// Our number of the order.
    pub order_no: OrderNo,
    /// The gateway's number of the payment that is returned; an order may have been paid twice.
    pub trade_no: TradeNo,
    /// Our number of the refund.
    pub refund_no: RefundNo,
    /// How much goes back.
    pub amount: Money,
    /// How much that payment was.
    pub total: Money,
    /// What the buyer reads; adapters shorten it, always the same way.
    pub reason: Option<String>,
    /// The address of the callback route of this account (WeChat Pay; Alipay has none for refunds).
    pub notify_url: String,
}

impl RefundOrder {
    /// The reason as it is sent, if there is anything to say.
    pub(super) fn short_reason(&self) -> Option<&str> {
        self.reason.as_deref().map(|reason| shorten_chars(reason, REASON_CHARS)).filter(|reason| !reason.is_empty())
    }

    /// What no gateway should have to refuse.
    pub(super) fn check(&self) -> Result<(), GatewayError> {
        if self.amount.is_positive() && self.amount <= self.total {
            return Ok(());
        }
        let message = format!("a refund of {} from a payment of {}", self.amount, self.total);
        Err(GatewayError::Refused { code: "amount".to_owned(), message })
    }
}

/// Where a refund stands at the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundState {
    /// The gateway knows no such refund: the same request may be sent, or sent again. Alipay says so also of a refund
    /// that is younger than ten seconds.
    Absent,
    /// Accepted, not done: ask again.
    Processing {
        /// The gateway's number of the refund.
        gateway_refund_no: Option<String>,
    },
    /// The money went back.
    Succeeded {
        /// How much, where the answer tells it; then it is what was asked for.
        amount: Option<Money>,
        /// What has gone back of the trade in all, where the answer tells it (Alipay, when it takes the refund).
        returned: Option<Money>,
        /// The gateway's number of the refund.
        gateway_refund_no: Option<String>,
        /// When, by the gateway's clock.
        at: Option<OffsetDateTime>,
    },
    /// It will not go back under this number.
    Closed {
        /// The gateway's number of the refund.
        gateway_refund_no: Option<String>,
    },
    /// It could not be delivered; a person has to act.
    Abnormal {
        /// The gateway's number of the refund.
        gateway_refund_no: Option<String>,
    },
}

/// Where a refund goes that could not be delivered. Shows neither account nor name.
#[derive(Debug, Clone)]
pub enum RefundTarget {
    /// Back to the merchant, who pays the buyer by other means.
    MerchantAccount,
    /// Another card of the buyer.
    BuyerCard {
        /// The bank, in WeChat Pay's words (`ICBC_DEBIT`).
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
