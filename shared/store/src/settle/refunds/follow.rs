//! Updates an order after its refunds have changed.

use domain::{Money, RefundStatus, TradeNo, status_by_refunds};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::orders::Order;
use crate::tables::refunds::Refund;
use crate::tables::{extra, orders, refunds};

/// Updates an order from the refunds of its own payment and returns the updated order.
pub(in crate::settle) async fn follow(
    tx: &mut PgConnection,
    order: &Order,
    now: OffsetDateTime,
) -> Result<Order, DbError> {
    let mut order = order.clone();
    if !order.status.was_paid() {
        return Ok(order);
    }
    let all = refunds::of_order(&mut *tx, order.id).await?;
    let own: Vec<&Refund> = all.iter().filter(|refund| Some(&refund.trade_no) == order.trade_no.as_ref()).collect();
    let succeeded = own.iter().filter(|refund| refund.status == RefundStatus::Succeeded);
    // A failed refund can turn out to be returned after its successor was returned too. That opens a case, and the
    // order counts as fully refunded.
    let returned = Money::from_fen(succeeded.map(|refund| refund.amount.fen()).sum()).unwrap_or(Money::MAX);
    let returned = returned.min(order.amount);
    let in_flight = own.iter().any(|refund| refund.status.in_flight());
    let to = status_by_refunds(in_flight, returned, order.amount);
    if (to, returned) != (order.status, order.refunded_amount) {
        orders::mark_by_refunds(tx, &order, to, returned, now).await?;
        (order.status, order.refunded_amount, order.version) = (to, returned, order.version + 1);
    }
    Ok(order)
}

/// Updates what the buyer reads about a payment that was not owed, after a refund of it has changed.
pub(super) async fn follow_extra(
    tx: &mut PgConnection,
    order: &Order,
    trade_no: &TradeNo,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    if order.trade_no.as_ref() == Some(trade_no) { Ok(()) } else { extra::follow(tx, &[order.id], now).await }
}
