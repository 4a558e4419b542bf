//! Requests a refund, if the order allows it.

use domain::{CaseKind, Money, OrderId, RefundId, RefundNo, TradeNo};
use gateway::limits;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::follow::{follow, follow_extra};
use crate::error::{DbError, NotDone};
use crate::settle::trade;
use crate::tables::refunds::{NewRefund, Refund};
use crate::tables::transactions::Payment;
use crate::tables::{cases, orders, refunds, transactions};

/// A request for a refund.
#[derive(Debug, Clone)]
pub struct RequestedRefund {
    /// A new id.
    pub id: RefundId,
    /// The order to refund.
    pub order_id: OrderId,
    /// The trade, if it is not the order's own payment but a late or second one.
    pub extra_trade: Option<TradeNo>,
    /// A new number, or one derived from the trade.
    pub refund_no: RefundNo,
    /// The amount. `None`: everything that is left.
    pub amount: Option<Money>,
    /// The reason that the buyer reads.
    pub reason: Option<String>,
    /// Who requests the refund.
    pub requested_by: String,
}

/// The reason a refund is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefundRefusal {
    /// No such order.
    #[error("there is no such order")]
    NoOrder,
    /// The order was not paid.
    #[error("the order is not paid")]
    NotPaid,
    /// Another refund of the order is in flight.
    #[error("another refund of the order is on its way")]
    InProgress,
    /// The whole amount has been refunded or is reserved.
    #[error("the whole amount has been refunded or is reserved")]
    AlreadyRefunded,
    /// More than is left to refund.
    #[error("at most {0} yuan can be refunded")]
    TooMuch(Money),
    /// A limit of the gateway, or a refund that is not ours and that a person must check first.
    #[error("{0}")]
    NotRefundable(&'static str),
}

/// Writes the refund, its transaction, its job and the order's new state, if the order allows a refund.
///
/// # Errors
/// [`NotDone`], with the reason if the order does not allow it.
pub async fn request(
    tx: &mut PgConnection,
    request: &RequestedRefund,
    now: OffsetDateTime,
) -> Result<Refund, NotDone<RefundRefusal>> {
    let refused = |refusal| Err(NotDone::Refused(refusal));
    let Some(order) = orders::lock_one(tx, request.order_id).await? else { return refused(RefundRefusal::NoOrder) };
    let trade_no = match (&request.extra_trade, &order.trade_no) {
        (Some(trade_no), _) => trade_no,
        (None, Some(trade_no)) if order.status.was_paid() => trade_no,
        (None, _) => return refused(RefundRefusal::NotPaid),
    };
    let payment = transactions::payment_of_trade(tx, &order, trade_no).await?;
    let Some(payment) = payment else { return refused(RefundRefusal::NotPaid) };
    let all = refunds::of_order(&mut *tx, order.id).await?;
    if cases::is_open(tx, CaseKind::UnknownRefund, order.id).await? {
        return refused(RefundRefusal::NotRefundable("a person must first check a refund that is not ours"));
    }
    let left = allowed(&all, &payment, now).map_err(NotDone::Refused)?;
    let amount = request.amount.unwrap_or(left);
    if amount > left {
        return refused(RefundRefusal::TooMuch(left));
    }
    let new = NewRefund {
        id: request.id,
        order_id: order.id,
        transaction_id: payment.id,
        refund_no: request.refund_no.clone(),
        amount,
        reason: request.reason.clone(),
        requested_by: request.requested_by.clone(),
    };
    refunds::create(tx, &new, now).await?;
    follow(tx, &order, now).await?;
    follow_extra(tx, &order, trade_no, now).await?;
    Ok(refunds::get(&mut *tx, request.id).await?.ok_or(DbError::Moved)?)
}

/// How much of a payment can still be refunded.
fn allowed(all: &[Refund], payment: &Payment, now: OffsetDateTime) -> Result<Money, RefundRefusal> {
    if all.iter().any(|refund| refund.status.in_flight()) {
        return Err(RefundRefusal::InProgress);
    }
    // A failed refund never existed at the gateway.
    let of_payment: Vec<&Refund> =
        all.iter().filter(|refund| refund.transaction_id == payment.id && refund.status.reserves()).collect();
    if let Some(text) = limits(payment.payment_method).refuses(now - payment.paid_at, of_payment.len()) {
        return Err(RefundRefusal::NotRefundable(text));
    }
    // What the gateway says was refunded is gone, whether or not we have booked it.
    let reserved = trade::sum(of_payment.iter().copied()).max(payment.returned);
    let left = Money::from_fen(payment.amount.fen() - reserved.fen()).unwrap_or(Money::ZERO);
    if left.is_positive() { Ok(left) } else { Err(RefundRefusal::AlreadyRefunded) }
}
