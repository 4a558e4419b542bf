//! What the failure of a call, or of a callback, means for its caller.

use crate::keys::KeyTime;

/// Why a gateway call did not bring an answer to act on; named after what the caller may do.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Refused for good: do not repeat. A code that no table of an adapter knows is taken for this.
    #[error("the gateway refused: {code}: {message}")]
    Refused {
        /// The gateway's code.
        code: String,
        /// The gateway's words, for a log.
        message: String,
    },
    /// Refused because of our contract, configuration or keys: what was asked for was not judged. The same request may
    /// succeed once people have mended that; no order or refund is to blame.
    #[error("the gateway refuses this account: {code}: {message}")]
    Misconfigured {
        /// The gateway's code.
        code: String,
        /// The gateway's words, for a log.
        message: String,
    },
    /// Refused for now, and nothing happened: the same request, number and amount included, may succeed later (a
    /// merchant without enough balance to refund from).
    #[error("the gateway refused for now: {code}: {message}")]
    NotNow {
        /// The gateway's code.
        code: String,
        /// The gateway's words, for a log.
        message: String,
    },
    /// Not sent, or not taken in: repeat.
    #[error("the gateway cannot be reached: {0}")]
    Unavailable(String),
    /// It may have happened: query, then repeat with the same number only.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The answer is not what the protocol says: a person looks.
    #[error("the answer breaks the protocol: {0}")]
    Protocol(String),
}

impl GatewayError {
    /// Whether a refusal says that the buyer was faster. It decides what a client hears and nothing else: WeChat Pay's pages
    /// tell the words, and not for certain the code.
    pub fn says_paid(&self) -> bool {
        let GatewayError::Refused { code, message } = self else { return false };
        let code = code.rsplit_once('.').map_or(code.as_str(), |(_, short)| short);
        ["ORDER_PAID", "ORDERPAID", "TRADE_HAS_SUCCESS"].contains(&code) || message.contains("已支付")
    }

    /// Whether a refusal says that the order is closed at the gateway. Like [`GatewayError::says_paid`] it decides what a client
    /// hears; the check decides about the order.
    pub fn says_closed(&self) -> bool {
        let GatewayError::Refused { code, message } = self else { return false };
        let code = code.rsplit_once('.').map_or(code.as_str(), |(_, short)| short);
        ["ORDER_CLOSED", "ORDERCLOSED", "TRADE_HAS_CLOSE"].contains(&code) || message.contains("已关闭")
    }
}

/// Why a callback is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// Lacks a header or a field without which nothing can be checked.
    #[error("malformed callback: {0}")]
    Malformed(&'static str),
    /// Outside the clock window.
    #[error("stale timestamp")]
    Stale,
    /// The gateway tests whether we check signatures.
    #[error("signature probe")]
    Probe,
    /// Names a key that is not loaded.
    #[error("unknown key {serial}")]
    UnknownKey {
        /// The key's name, cut to a sane length.
        serial: String,
    },
    /// Names a certificate that is loaded and does not count now.
    #[error("key {serial} {time}")]
    KeyNotInForce {
        /// The certificate's name.
        serial: String,
        /// Which end of its time this lies beyond.
        time: KeyTime,
    },
    /// The named key did not sign these bytes.
    #[error("bad signature")]
    BadSignature,
    /// Authentic, and no key of ours decrypts it. Another key may.
    #[error("no key of this account decrypts the callback: {0}")]
    Unopened(String),
    /// Authentic, and cannot be read.
    #[error("undecodable callback: {0}")]
    Undecodable(String),
}

impl CallbackError {
    /// The key that is needed and not there, which the gateway may be asked for.
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
    fn a_refusal_that_says_paid_is_told_from_the_others() {
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
