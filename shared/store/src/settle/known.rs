//! Reads what we know of the trades that a batch names.

use std::collections::HashSet;

use domain::{Fact, Notification, OrderId, PaymentMethod};
use sqlx::PgConnection;

use super::whose::is_whose_it_says;
use crate::error::DbError;
use crate::tables::orders::Order;
use crate::tables::{cases, transactions};

/// The trades that already have a row in `payment_transactions`. A repeat of such a payment is a duplicate: it never
/// pays the order by itself.
pub(super) async fn recorded_trades(
    tx: &mut PgConnection,
    notifications: &[&Notification],
) -> Result<HashSet<(PaymentMethod, String)>, DbError> {
    let paid = notifications.iter().filter_map(|notification| match &notification.fact {
        Fact::Paid { trade_no, .. } => Some(trade_no.as_str()),
        _ => None,
    });
    let paid: Vec<&str> = paid.collect();
    if paid.is_empty() { Ok(HashSet::new()) } else { transactions::recorded(tx, &paid).await }
}

/// The trades that were refunded, fully or in part, before we recorded the payment. A case (open or resolved) or
/// another fact of this batch shows the refund. A payment notice that arrives later may be about money that is gone.
pub(super) async fn gone_trades(
    tx: &mut PgConnection,
    notifications: &[&Notification],
    locked: &[Order],
) -> Result<HashSet<(OrderId, String)>, DbError> {
    let mut paid = Vec::new();
    let mut gone = HashSet::new();
    for notification in notifications {
        if let Fact::Paid { trade_no, .. } = &notification.fact {
            paid.push(trade_no.as_str());
        }
        let order = locked.iter().find(|order| order.order_no.as_str() == notification.order_no);
        if let Some((trade, order)) =
            notification.fact.returned_trade().zip(order).filter(|(_, order)| is_whose_it_says(notification, order))
        {
            gone.insert((order.id, trade.trade_no.to_string()));
        }
    }
    let unpaid: Vec<OrderId> = locked.iter().filter(|order| !order.status.was_paid()).map(|order| order.id).collect();
    if !paid.is_empty() && !unpaid.is_empty() {
        gone.extend(cases::returned_elsewhere(tx, &paid, &unpaid).await?);
    }
    Ok(gone)
}
