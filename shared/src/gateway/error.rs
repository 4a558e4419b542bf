//! What the failure of a call means for its caller.

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
