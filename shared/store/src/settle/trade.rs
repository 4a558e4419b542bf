//! A payment with all its refunds, and what a message proves about refunds that are not ours.

use domain::{CaseKind, CaseStatus, Fact, Money, OrderId, RefundOrigin, RefundState, RefundStatus, TradeNo};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::DbError;
use crate::tables::cases::Case;
use crate::tables::orders::{self, Order};
use crate::tables::refunds::{self, Refund};
use crate::tables::transactions::{self, Payment};

/// A payment and all its refunds, read under the lock of its order.
pub(super) struct Trade {
    pub(super) order: Order,
    pub(super) trade_no: TradeNo,
    pub(super) payment: Payment,
    pub(super) refunds: Vec<Refund>,
}

/// One refund that is not ours and that has succeeded.
pub(super) struct Named {
    /// The refund number that its sender chose.
    pub(super) number: String,
    pub(super) amount: Money,
    pub(super) gateway_refund_no: Option<String>,
    pub(super) at: Option<OffsetDateTime>,
}

/// What a message proves.
pub(super) enum Return {
    /// The total refunded. `None`: something was refunded, and the amount is unknown.
    InAll(Option<Money>),
    One(Named),
}

impl Trade {
    /// `None`: we know of no payment of this trade for the order.
    pub(super) async fn read(
        tx: &mut PgConnection,
        order_id: OrderId,
        trade_no: &TradeNo,
    ) -> Result<Option<Trade>, DbError> {
        let Some(order) = orders::lock_one(tx, order_id).await? else { return Ok(None) };
        let Some(payment) = transactions::payment_of_trade(tx, &order, trade_no).await? else { return Ok(None) };
        let mut refunds = refunds::of_order(&mut *tx, order_id).await?;
        refunds.retain(|refund| refund.trade_no == *trade_no);
        Ok(Some(Trade { order, trade_no: trade_no.clone(), payment, refunds }))
    }

    /// Whether this trade paid the order.
    pub(super) fn is_own(&self) -> bool {
        self.order.trade_no.as_ref() == Some(&self.trade_no)
    }

    /// The sum of the refunds that our books show as succeeded.
    pub(super) fn booked(&self) -> Money {
        sum(self.refunds.iter().filter(|refund| refund.status == RefundStatus::Succeeded))
    }

    /// Refunds from outside that were booked by sum, without a number.
    pub(super) fn unnamed(&self) -> impl Iterator<Item = &Refund> {
        let outside = self.refunds.iter().filter(|refund| refund.origin == RefundOrigin::Outside);
        outside.filter(|refund| refund.gateway_refund_no.is_none())
    }

    pub(super) fn outside(&self) -> Money {
        sum(self.refunds.iter().filter(|refund| refund.origin == RefundOrigin::Outside))
    }

    /// Whether the gateway's word on one of our refunds is still due. A request is not one that the gateway knows.
    pub(super) fn waits(&self) -> bool {
        self.refunds.iter().any(|refund| refund.status.awaits_the_gateway())
    }

    /// Refunds that were sent and that ended without money. One of them may have taken effect after all.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Refund> {
        self.refunds.iter().filter(|refund| match refund.status {
            RefundStatus::Failed => true,
            RefundStatus::Withdrawn => refund.sent_at.is_some(),
            _ => false,
        })
    }
}

/// The sum of the amounts.
pub(super) fn sum<'a>(refunds: impl Iterator<Item = &'a Refund>) -> Money {
    Money::from_fen(refunds.map(|refund| refund.amount.fen()).sum()).unwrap_or(Money::MAX)
}

impl Return {
    pub(super) fn of(fact: &Fact) -> Option<Return> {
        match fact {
            Fact::PaidAndReturned(trade) => Some(Return::InAll(trade.returned)),
            Fact::Refund { trade, .. } if trade.returned.is_some() => Some(Return::InAll(trade.returned)),
            Fact::Refund { refund_no, report, .. } if report.state == RefundState::Succeeded => {
                let (number, gateway_refund_no) = (refund_no.clone(), report.gateway_refund_no.clone());
                Some(Return::One(Named { number, amount: report.amount?, gateway_refund_no, at: report.at }))
            }
            _ => None,
        }
    }
}

impl Named {
    /// The refund that a case reported while one of ours was in flight.
    pub(super) fn waiting(case: &Case, trade_no: &TradeNo) -> Option<Named> {
        let text = |name: &str| case.evidence.get(name).and_then(Value::as_str);
        let waits = case.kind == CaseKind::UnknownRefund && case.status != CaseStatus::Resolved;
        if !waits || text("outcome") != Some("succeeded") || text("trade_no") != Some(trade_no.as_str()) {
            return None;
        }
        Some(Named {
            number: case.subject_ref.clone(),
            amount: Money::from_yuan(text("amount")?).ok()?,
            gateway_refund_no: text("gateway_refund_no").map(str::to_owned),
            at: text("succeeded_at").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
        })
    }

    pub(super) fn key(&self, trade: &Trade) -> String {
        let method = trade.payment.payment_method;
        match &self.gateway_refund_no {
            Some(number) => format!("{method}:refund:{number}"),
            None => format!("{method}:number:{}:{}", trade.order.account, self.number),
        }
    }
}
