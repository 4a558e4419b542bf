//! The effect of refunds on their trade.

use time::{Duration, OffsetDateTime};

use super::refund::{Refund, RefundState};
use super::trade::{Event, Gateway, Notice, Trade, TradeState};
use crate::clock;

/// After this time a payment can no longer be refunded.
pub(crate) const REFUND_PERIOD: Duration = Duration::days(365);

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
    pub(crate) fn reported_refund(&self) -> Option<&Refund> {
        self.refund(self.notices.last()?.refund_no()?)
    }

    /// The address for the last notice.
    pub(crate) fn callback_url(&self) -> Option<&str> {
        let own = self.reported_refund().and_then(|refund| refund.notify_url.as_deref());
        own.or(self.notify_url.as_deref())
    }

    /// The trade as the notice `id` reports it: later notices are removed.
    pub(crate) fn reported_by(mut self, id: &str) -> Trade {
        if let Some(index) = self.notices.iter().position(|notice| notice.id == id) {
            self.notices.truncate(index + 1);
        }
        self
    }

    /// The trade as the last notice of this event reports it; `None` if there is no such notice.
    pub(crate) fn telling(self, event: Event) -> Option<Trade> {
        let id = self.notices.iter().rev().find(|notice| notice.event == event)?.id.clone();
        Some(self.reported_by(&id))
    }

    /// The trade as the last notice of one of its refunds reports it; `None` if there is no such notice.
    #[must_use]
    pub fn telling_of(self, out_refund_no: &str) -> Option<Trade> {
        let id = self.notices.iter().rev().find(|notice| notice.refund_no() == Some(out_refund_no))?.id.clone();
        Some(self.reported_by(&id))
    }

    /// Ends a refund, and adds its notice if one is requested.
    pub(crate) fn end_refund(&mut self, out_refund_no: &str, state: RefundState, now: OffsetDateTime) {
        let gateway = self.gateway();
        let Some(refund) = self.refunds.iter_mut().find(|refund| refund.out_refund_no == out_refund_no) else { return };
        refund.state = state;
        let notified = refund.notified;
        if state == RefundState::Success {
            refund.effects += 1;
            refund.success_at = Some(now);
        }
        let total = self.refunded_fen();
        if let Some(refund) = self.refunds.iter_mut().find(|refund| refund.out_refund_no == out_refund_no) {
            refund.total_after_fen = total;
        }
        if notified && state != RefundState::Processing && (gateway == Gateway::Wechat || state == RefundState::Success)
        {
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
