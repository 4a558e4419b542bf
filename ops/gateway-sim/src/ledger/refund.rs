//! One refund as a gateway knows it, and the effect of refunds on their trade.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{Event, Gateway, Notice, Trade, TradeState};
use crate::clock;
use crate::crypto::{DIGITS, random_text};

/// After this time a payment can no longer be refunded.
pub(crate) const REFUND_PERIOD: Duration = Duration::days(365);

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
    pub told: bool,
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
            told: true,
            console: false,
            named: true,
        }
    }

    /// The view of it in the control API.
    #[must_use]
    pub fn view(&self, trade: &Trade) -> Value {
        let notices: Vec<_> = trade.notices.iter().filter(|notice| notice.refund_no() == self.name()).collect();
        json!({
            "out_refund_no": self.out_refund_no,
            "refund_id": self.refund_id,
            "gateway": trade.gateway(),
            "account": trade.account,
            "out_trade_no": trade.out_trade_no,
            "amount_fen": self.amount_fen,
            "state": self.state,
            "console": self.console,
            "effects": self.effects,
            "created_at": clock::wechat(self.created_at),
            "success_at": self.success_at.map(clock::wechat),
            "notified": notices.iter().map(|notice| notice.sent).sum::<u32>(),
            "delivered": notices.iter().any(|notice| notice.accepted > 0),
        })
    }

    fn name(&self) -> Option<&str> {
        Some(&self.out_refund_no)
    }
}

/// The refunds of a trade.
impl Trade {
    /// The same trade with another refund that ended in `state`, and its notice as the last one. This is for
    /// callbacks that are rendered without a server.
    #[must_use]
    pub fn refunded(mut self, out_refund_no: &str, amount_fen: i64, state: RefundState) -> Trade {
        let now = clock::now();
        self.refunds.push(Refund::new(out_refund_no, amount_fen, now));
        self.end_refund(out_refund_no, state, now);
        self
    }

    /// The refund with this number.
    #[must_use]
    pub fn refund(&self, out_refund_no: &str) -> Option<&Refund> {
        self.refunds.iter().find(|refund| refund.out_refund_no == out_refund_no)
    }

    /// The total that was refunded.
    #[must_use]
    pub fn refunded_fen(&self) -> i64 {
        self.sum(|state| state == RefundState::Success)
    }

    /// What was refunded or may still be refunded: a new refund can only have the rest.
    pub(crate) fn reserved_fen(&self) -> i64 {
        self.sum(|state| state != RefundState::Closed)
    }

    /// Whether it is paid and completely refunded.
    pub(crate) fn is_returned(&self) -> bool {
        self.state == TradeState::Paid && self.refunded_fen() >= self.amount_fen
    }

    /// Whether the period for refunds is over.
    pub(crate) fn is_past_refunds(&self, now: OffsetDateTime) -> bool {
        self.paid_at.is_some_and(|paid_at| now - paid_at > REFUND_PERIOD)
    }

    /// The refund that the last notice reports.
    pub(crate) fn told_refund(&self) -> Option<&Refund> {
        self.refund(self.notices.last()?.refund_no()?)
    }

    /// The address for the last notice.
    pub(crate) fn callback_url(&self) -> Option<&str> {
        let own = self.told_refund().and_then(|refund| refund.notify_url.as_deref());
        own.or(self.notify_url.as_deref())
    }

    /// The trade as the notice `id` reports it: later notices are removed.
    pub(crate) fn told_by(mut self, id: &str) -> Trade {
        if let Some(index) = self.notices.iter().position(|notice| notice.id == id) {
            self.notices.truncate(index + 1);
        }
        self
    }

    /// The trade as the last notice of this event reports it; `None` if there is no such notice.
    pub(crate) fn telling(self, event: Event) -> Option<Trade> {
        let id = self.notices.iter().rev().find(|notice| notice.event == event)?.id.clone();
        Some(self.told_by(&id))
    }

    /// The trade as the last notice of one of its refunds reports it; `None` if there is no such notice.
    #[must_use]
    pub fn telling_of(self, out_refund_no: &str) -> Option<Trade> {
        let id = self.notices.iter().rev().find(|notice| notice.refund_no() == Some(out_refund_no))?.id.clone();
        Some(self.told_by(&id))
    }

    /// Ends a refund, and adds its notice if one is requested.
    pub(crate) fn end_refund(&mut self, out_refund_no: &str, state: RefundState, now: OffsetDateTime) {
        let gateway = self.gateway();
        let Some(refund) = self.refunds.iter_mut().find(|refund| refund.out_refund_no == out_refund_no) else { return };
        refund.state = state;
        let told = refund.told;
        if state == RefundState::Success {
            refund.effects += 1;
            refund.success_at = Some(now);
        }
        let total = self.refunded_fen();
        if let Some(refund) = self.refunds.iter_mut().find(|refund| refund.out_refund_no == out_refund_no) {
            refund.total_after_fen = total;
        }
        if told && state != RefundState::Processing && (gateway == Gateway::Wechat || state == RefundState::Success) {
            let mut notice = Notice::new(gateway, Event::Refund, now);
            notice.refund = Some(out_refund_no.to_owned());
            self.notices.push(notice);
        }
    }

    fn sum(&self, counts: impl Fn(RefundState) -> bool) -> i64 {
        self.refunds.iter().filter(|refund| counts(refund.state)).map(|refund| refund.amount_fen).sum()
    }
}

impl Notice {
    /// The merchant's number of the refund that it reports.
    #[must_use]
    pub fn refund_no(&self) -> Option<&str> {
        self.refund.as_deref()
    }
}
