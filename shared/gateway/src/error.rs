//! Errors of gateway calls and callbacks, classified by what the caller may do next.

use crate::keys::KeyTime;

/// The error of a gateway call that brought no usable answer. Each variant is named after what the caller may do.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Refused permanently: do not repeat. A code that is in no table of the adapter also counts as this.
    #[error("the gateway refused: {code}: {message}")]
    Refused {
        /// The gateway's code.
        code: String,
        /// The gateway's message, for a log.
        message: String,
    },
    /// Refused because of our contract, configuration or keys; the gateway did not judge the request itself. The same
    /// request may succeed after a person corrects that. The order or refund is not at fault.
    #[error("the gateway refuses this account: {code}: {message}")]
    Misconfigured {
        /// The gateway's code.
        code: String,
        /// The gateway's message, for a log.
        message: String,
    },
    /// Refused for now, and nothing happened. The same request, with the same number and amount, may succeed later (for
    /// example when the merchant's balance is too low for a refund).
    #[error("the gateway refused for now: {code}: {message}")]
    NotNow {
        /// The gateway's code.
        code: String,
        /// The gateway's message, for a log.
        message: String,
    },
    /// Not sent, or not accepted by the gateway: repeat.
    #[error("the gateway cannot be reached: {0}")]
    Unavailable(String),
    /// The request may have taken effect: query, then repeat with the same number only.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The answer does not follow the protocol: a person must look at it.
    #[error("the answer breaks the protocol: {0}")]
    Protocol(String),
}

impl GatewayError {
    /// Whether a refusal says that the buyer has already paid. It decides only what a client sees: WeChat Pay's
    /// documentation gives the message text, but not reliably the code.
    pub fn says_paid(&self) -> bool {
        let GatewayError::Refused { code, message } = self else { return false };
        let code = code.rsplit_once('.').map_or(code.as_str(), |(_, short)| short);
        ["ORDER_PAID", "ORDERPAID", "TRADE_HAS_SUCCESS"].contains(&code) || message.contains("已支付")
    }

    /// Whether a refusal says that the order is closed at the gateway. Like [`GatewayError::says_paid`], it decides
    /// only what a client sees; the next check decides about the order.
    pub fn says_closed(&self) -> bool {
        let GatewayError::Refused { code, message } = self else { return false };
        let code = code.rsplit_once('.').map_or(code.as_str(), |(_, short)| short);
        ["ORDER_CLOSED", "ORDERCLOSED", "TRADE_HAS_CLOSE"].contains(&code) || message.contains("已关闭")
    }
}

/// The error of a callback that we do not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// A header or a field that the check needs is missing.
    #[error("malformed callback: {0}")]
    Malformed(&'static str),
    /// Outside the clock window.
    #[error("stale timestamp")]
    Stale,
    /// The gateway is testing whether we check signatures.
    #[error("signature probe")]
    Probe,
    /// Names a key that is not loaded.
    #[error("unknown key {serial}")]
    UnknownKey {
        /// The key's name, cut to a reasonable length.
        serial: String,
    },
    /// Names a certificate that is loaded but not valid now.
    #[error("key {serial} {time}")]
    KeyNotInForce {
        /// The certificate's name.
        serial: String,
        /// Whether the certificate is not valid yet or has expired.
        time: KeyTime,
    },
    /// The named key did not sign these bytes.
    #[error("bad signature")]
    BadSignature,
    /// Authentic, but no key of ours decrypts it. Another key may.
    #[error("no key of this account decrypts the callback: {0}")]
    Unopened(String),
    /// Authentic, but its content cannot be read.
    #[error("undecodable callback: {0}")]
    Undecodable(String),
}

impl CallbackError {
    /// The key that is needed but not usable here. The caller may query the gateway for it.
    pub(crate) fn wanted_key(&self) -> Option<&str> {
        match self {
            CallbackError::UnknownKey { serial } | CallbackError::KeyNotInForce { serial, .. } => Some(serial),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_says_paid_is_distinguished_from_the_others() {
        for (code, message, paid) in [
            ("ORDER_PAID", "", true),
            ("INVALID_REQUEST", "该订单已支付", true),
            ("ACQ.TRADE_HAS_SUCCESS", "交易已被支付", true),
            ("ORDER_CLOSED", "该订单已关闭", false),
            ("OUT_TRADE_NO_USED", "商户订单号重复", false),
            ("PARAM_ERROR", "支付金额错误", false),
        ] {
            let refused = GatewayError::Refused { code: code.to_owned(), message: message.to_owned() };
            assert_eq!(refused.says_paid(), paid, "{code} {message}");
        }
        assert!(!GatewayError::Unavailable("已支付".to_owned()).says_paid());
    }
}
