//! How the control API shows trades and refunds.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::refund::Refund;
use super::trade::{Event, Trade};
use crate::clock;

impl Trade {
    /// The view of it in the control API.
    #[must_use]
    pub fn view(&self) -> Value {
        let time = |at: Option<OffsetDateTime>| at.map(clock::wechat);
        json!({
            "gateway": self.gateway(),
            "account": self.account,
            "product": self.product,
            "out_trade_no": self.out_trade_no,
            "nth": self.nth,
            "trade_no": self.trade_no,
            "amount_fen": self.amount_fen,
            "subject": self.subject,
            "state": self.state,
            "asked": self.requests,
            "code": self.credential.as_ref().map(|credential| &credential.code),
            "notify_url": self.notify_url,
            "created_at": clock::wechat(self.created_at),
            "expires_at": clock::wechat(self.expires_at),
            "paid_at": time(self.paid_at),
            "closed_at": time(self.closed_at),
            "notified": self.notices.iter().map(|notice| notice.sent).sum::<u32>(),
            "delivered": self.notices.iter().any(|notice| notice.accepted > 0 && notice.event != Event::Refund),
            "wrong_accepted": self.notices.iter().map(|notice| notice.wrong_accepted).sum::<u32>(),
            "last_answer": self.notices.last().and_then(|notice| notice.last_answer.as_ref()),
            "notices": self.notices,
            "refunded_fen": self.refunded_fen(),
            "refunds": self.refunds.iter().map(|refund| refund.view(self)).collect::<Vec<_>>(),
            "violations": self.violations,
        })
    }
}

impl Refund {
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
