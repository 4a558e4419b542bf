//! One refund as a gateway knows it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::clock;
use crate::crypto::{DIGITS, random_text};

/// The state of a refund. Alipay has only the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefundState {
    /// Accepted, not done.
    Processing,
    /// The money was refunded.
    Success,
    /// It failed: under this number, nothing was or will be refunded.
    Closed,
    /// It could not be paid out; a person must act.
    Abnormal,
}

impl RefundState {
    /// WeChat Pay's name of the state.
    #[must_use]
    pub fn wechat(self) -> &'static str {
        match self {
            RefundState::Processing => "PROCESSING",
            RefundState::Success => "SUCCESS",
            RefundState::Closed => "CLOSED",
            RefundState::Abnormal => "ABNORMAL",
        }
    }
}

/// One refund.
#[derive(Debug, Clone)]
pub struct Refund {
    /// The merchant's number: `out_refund_no`, `out_request_no`.
    pub out_refund_no: String,
    /// The gateway's own number (WeChat Pay shows it; Alipay has none).
    pub refund_id: String,
    /// The amount.
    pub amount_fen: i64,
    /// The address for its notices (WeChat Pay).
    pub notify_url: Option<String>,
    /// The state.
    pub state: RefundState,
    /// How many times money moved for it; more than once is a fault of the simulator itself.
    pub effects: u32,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When the money was refunded.
    pub success_at: Option<OffsetDateTime>,
    /// The total that was refunded of the trade when this refund was done.
    pub total_after_fen: i64,
    /// Digest of the request's parameters: a repeat must have the same (WeChat Pay).
    pub digest: [u8; 32],
    /// Whether a notice reports its result.
    pub notified: bool,
    /// Whether a person made it in the gateway's console, and not the merchant's service.
    pub console: bool,
    /// Whether its notice contains the number (`out_biz_no`, Alipay).
    pub named: bool,
}

impl Refund {
    pub(crate) fn new(out_refund_no: &str, amount_fen: i64, now: OffsetDateTime) -> Refund {
        Refund {
            out_refund_no: out_refund_no.to_owned(),
            refund_id: format!("503000{}{}{}", random_text(5, DIGITS), clock::day(now), random_text(10, DIGITS)),
            amount_fen,
            notify_url: None,
            state: RefundState::Processing,
            effects: 0,
            created_at: now,
            success_at: None,
            total_after_fen: 0,
            digest: [0; 32],
            notified: true,
            console: false,
            named: true,
        }
    }
}
