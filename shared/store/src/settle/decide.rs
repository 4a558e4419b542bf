//! Decides each fact of a batch.

use domain::{CaseKind, Fact, Merchant, Notification, OrderEvent, OrderStatus, TradeNo, Verdict};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::books::Books;
use super::refunds::{self, RefundVerdict};
use super::whose::elsewhere;
use super::{events, outside};
use crate::error::DbError;
use crate::tables::orders::Paid;

impl Books<'_> {
    /// Decides one fact: returns its verdict, collects the effects and changes the order in memory. `None`: the fact is
    /// about a refund.
    pub(super) fn decide(&mut self, notification: &Notification) -> Option<Verdict> {
        if notification.fact == Fact::Nothing {
            return Some(Verdict::Ignored);
        }
        let Some(order) = self.orders.get(&notification.order_no) else {
            return Some(self.case(Verdict::UnknownOrder, CaseKind::UnknownOrder, None, notification));
        };
        let id = Some(order.id);
        if let Some((verdict, kind)) = elsewhere(order, notification) {
            // One of our refunds may return a payment that arrived at another account.
            let of_refund = !matches!(notification.merchant, Merchant::Other(_))
                && matches!(notification.fact, Fact::Refund { .. });
            return if of_refund { None } else { Some(self.case(verdict, kind, id, notification)) };
        }
        Some(match &notification.fact {
            Fact::Paid { amount, .. } if *amount != Some(order.amount) => {
                self.case(Verdict::AmountMismatch, CaseKind::AmountMismatch, id, notification)
            }
            Fact::Paid { trade_no, .. } if !order.status.was_paid() && self.knows(notification.method, trade_no) => {
                Verdict::Duplicate
            }
            Fact::Paid { trade_no, paid_at, .. }
                if !order.status.was_paid() && self.gone.contains(&(order.id, trade_no.to_string())) =>
            {
                self.came_and_went(notification, trade_no, *paid_at)
            }
            Fact::Paid { trade_no, paid_at, .. } => self.paid(notification, trade_no, *paid_at),
            Fact::ClosedUnpaid => self.closed(notification),
            Fact::Nothing => Verdict::Ignored,
            Fact::PaidAndReturned(_) | Fact::Refund { .. } => return None,
        })
    }

    /// Settles a refund that a callback or a query answer reports.
    pub(super) async fn refund(
        &mut self,
        tx: &mut PgConnection,
        notification: &Notification,
    ) -> Result<Verdict, DbError> {
        let Some(order) = self.orders.get(&notification.order_no) else { return Ok(Verdict::Ignored) };
        let (id, elsewhere) = (order.id, elsewhere(order, notification));
        let Some(ours) = refunds::notice(tx, notification, order, self.policies, self.clock).await? else {
            return match elsewhere {
                Some((verdict, kind)) => Ok(self.case(verdict, kind, Some(id), notification)),
                None => outside::returned(tx, notification, id, self.clock).await,
            };
        };
        // The same message also states the total refunded for the trade, which may be more than our refund.
        if let Some(trade) = notification.fact.returned_trade()
            && outside::beside_ours(tx, id, trade, self.clock).await? == Verdict::Settled
        {
            return Ok(Verdict::Settled);
        }
        Ok(match ours {
            RefundVerdict::Settled => Verdict::Settled,
            RefundVerdict::Duplicate => Verdict::Duplicate,
            RefundVerdict::AmountMismatch => Verdict::AmountMismatch,
        })
    }

    /// Settles a payment of the order's amount. It is a duplicate if this trade has already paid the order. Otherwise
    /// `next` of `domain::OrderStatus` says whether the order becomes paid. If it does not, the payment was not owed.
    fn paid(&mut self, notification: &Notification, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Verdict {
        let Some(order) = self.orders.get_mut(&notification.order_no) else { return Verdict::UnknownOrder };
        if order.trade_no.as_ref() == Some(trade_no) {
            return Verdict::Duplicate;
        }
        if let Ok(next) = order.status.next(OrderEvent::PaymentSucceeded) {
            let paid = Paid { id: order.id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(events::order_paid(order, trade_no, paid_at));
            order.become_paid(next, &paid);
            self.effects.paid.push(paid);
            return Verdict::Settled;
        }
        if !self.note_extra(notification, trade_no, paid_at) {
            return Verdict::Duplicate;
        }
        self.extra(notification, trade_no, paid_at)
    }

    /// Settles a close: only an order that is not paid moves.
    fn closed(&mut self, notification: &Notification) -> Verdict {
        let Some(order) = self.orders.get_mut(&notification.order_no) else { return Verdict::UnknownOrder };
        match order.status.next(OrderEvent::ClosedUnpaid) {
            Ok(next) => {
                self.effects.closed.push(order.id);
                self.effects.events.push(events::order_closed(order, self.now));
                order.status = next;
                order.version += 1;
                Verdict::Settled
            }
            Err(_) if order.status == OrderStatus::Closed => Verdict::Duplicate,
            // The close was under way while the payment settled. The payment wins.
            Err(_) => Verdict::Ignored,
        }
    }
}
