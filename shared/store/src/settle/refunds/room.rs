//! What a payment has left for refunds.

use domain::{BuyerRefusal, CaseKind, Money, OrderId, TradeNo};
use gateway::limits;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::follow::{follow, follow_extra};
use crate::error::{DbError, NotDone};
use crate::settle::trade;
use crate::tables::orders::Order;
use crate::tables::refunds::Refund;
use crate::tables::transactions::Payment;
use crate::tables::{cases, orders, refunds, transactions};

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
    #[error(
        "another refund of the order is on its way; repeat when it has ended (GET /v1/refunds; with an API key GET /v1/admin/refunds?order_id=…)"
    )]
    InProgress,
    /// The whole amount has been refunded or is reserved.
    #[error("the whole amount has been refunded or is reserved")]
    AlreadyRefunded,
    /// More than is left to refund.
    #[error("at most {0} yuan can be refunded")]
    TooMuch(Money),
    /// A limit of the gateway.
    #[error("{0}")]
    NotRefundable(&'static str),
    /// A refund of the order is not ours, and its case is open.
    #[error("a person must first check a refund that is not ours")]
    CaseOpen,
    /// The rules refuse it to a buyer.
    #[error(transparent)]
    Rule(#[from] BuyerRefusal),
    /// Another request of the order waits for a person.
    #[error("another request for a refund of the order waits for a person")]
    RequestOpen,
    /// The order has had as many requests of its buyer as it may have.
    #[error("the buyer has requested refunds of the order too often; the merchant makes them")]
    TooOften,
    /// The key, or the service, would return more in a day than the rules allow.
    #[error("this caller has returned as much today as the rules allow in a day")]
    DailyLimit,
}

impl RefundRefusal {
    /// Whether the reason passes without a change of the request.
    pub(super) const fn passes(&self) -> bool {
        matches!(self, RefundRefusal::InProgress | RefundRefusal::CaseOpen)
    }
}

/// What can be returned of a payment, under the lock of its order.
pub(super) struct Room {
    pub(super) order: Order,
    pub(super) payment: Payment,
    trade_no: TradeNo,
    /// What was returned or is reserved.
    reserved: Money,
    left: Money,
    /// Every refund of the order.
    pub(super) refunds: Vec<Refund>,
}

impl Room {
    /// Locks the order, and reads what its payment, or the extra payment of `extra_trade`, has left.
    pub(super) async fn read(
        tx: &mut PgConnection,
        order_id: OrderId,
        extra_trade: Option<&TradeNo>,
        now: OffsetDateTime,
    ) -> Result<Room, NotDone<RefundRefusal>> {
        let refused = |refusal| Err(NotDone::Refused(refusal));
        let Some(order) = orders::lock_one(tx, order_id).await? else { return refused(RefundRefusal::NoOrder) };
        let trade_no = match (extra_trade, &order.trade_no) {
            (Some(trade_no), _) => trade_no.clone(),
            (None, Some(trade_no)) if order.status.was_paid() => trade_no.clone(),
            (None, _) => return refused(RefundRefusal::NotPaid),
        };
        let payment = transactions::payment_of_trade(tx, &order, &trade_no).await?;
        let Some(payment) = payment else { return refused(RefundRefusal::NotPaid) };
        let all = refunds::of_order(&mut *tx, order.id).await?;
        if cases::is_open(tx, CaseKind::UnknownRefund, order.id).await? {
            return refused(RefundRefusal::CaseOpen);
        }
        let reserved = reserved(&all, &payment, now).map_err(NotDone::Refused)?;
        let left = Money::from_fen(payment.amount.fen() - reserved.fen()).unwrap_or(Money::ZERO);
        if !left.is_positive() {
            return refused(RefundRefusal::AlreadyRefunded);
        }
        Ok(Room { order, payment, trade_no, reserved, left, refunds: all })
    }

    /// The amount of the refund, if there is room for it. `None`: everything that is left.
    pub(super) fn amount(&self, requested: Option<Money>) -> Result<Money, RefundRefusal> {
        let amount = requested.unwrap_or(self.left);
        if amount > self.left { Err(RefundRefusal::TooMuch(self.left)) } else { Ok(amount) }
    }

    /// The sum of the refunds of this payment, with one more of this amount.
    pub(super) fn with(&self, amount: Money) -> Money {
        Money::from_fen(self.reserved.fen() + amount.fen()).unwrap_or(Money::MAX)
    }

    /// Updates the order after a refund of this payment has begun or ended.
    pub(super) async fn follow(&self, tx: &mut PgConnection, now: OffsetDateTime) -> Result<Order, DbError> {
        let after = follow(tx, &self.order, now).await?;
        follow_extra(tx, &self.order, &self.trade_no, now).await?;
        Ok(after)
    }
}

/// Checks whether an extra payment has so much left (`None`: anything), and locks the order. A refund that is under way is no
/// obstacle here, because it ends.
///
/// # Errors
/// [`NotDone`], with the reason if there is no such payment, or not so much of it is left.
pub async fn has_room(
    tx: &mut PgConnection,
    order_id: OrderId,
    extra_trade: &TradeNo,
    amount: Option<Money>,
    now: OffsetDateTime,
) -> Result<(), NotDone<RefundRefusal>> {
    let room = Room::read(tx, order_id, Some(extra_trade), now).await;
    match room.and_then(|room| room.amount(amount).map(drop).map_err(NotDone::Refused)) {
        Err(NotDone::Refused(refusal)) if refusal.passes() => Ok(()),
        checked => checked,
    }
}

/// How much of a payment was returned or is reserved, if the gateway takes one more refund of it.
fn reserved(all: &[Refund], payment: &Payment, now: OffsetDateTime) -> Result<Money, RefundRefusal> {
    if all.iter().any(|refund| refund.status.in_flight()) {
        return Err(RefundRefusal::InProgress);
    }
    // A failed refund never existed at the gateway, and a request does not exist there yet.
    let of_payment: Vec<&Refund> =
        all.iter().filter(|refund| refund.transaction_id == payment.id && refund.status.reserves()).collect();
    if let Some(text) = limits(payment.payment_method).refuses(now - payment.paid_at, of_payment.len()) {
        return Err(RefundRefusal::NotRefundable(text));
    }
    // What the gateway says was refunded is gone, whether or not we have booked it.
    Ok(trade::sum(of_payment.iter().copied()).max(payment.returned))
}
