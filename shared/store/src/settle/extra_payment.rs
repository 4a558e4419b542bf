//! Decides about payments that were not owed.

use domain::{
    CaseKind, LatePaymentPolicy, Notification, OrderEvent, OrderStatus, RefundId, Source, TradeNo, TransactionId,
    Verdict,
};
use time::OffsetDateTime;

use super::books::Books;
use super::events;
use super::evidence::new_case;
use super::late::{self, Return};
use crate::tables::orders::Paid;
use crate::tables::transactions::ExtraPayment;

impl Books<'_> {
    /// Records a payment beside the order's own payment. False: it is already recorded.
    pub(super) fn note_extra(
        &mut self,
        notification: &Notification,
        trade_no: &TradeNo,
        paid_at: OffsetDateTime,
    ) -> bool {
        let Some(order) = self.orders.get(&notification.order_no) else { return false };
        let fresh = self.recorded.insert((notification.method, trade_no.as_str().to_owned()));
        if fresh {
            self.effects.extra.push(ExtraPayment {
                id: TransactionId::from_u128(self.clock.fresh_bits()),
                order_id: order.id,
                payment_method: notification.method,
                gateway_no: trade_no.clone(),
                amount: order.amount,
                paid_at,
                account: None,
            });
        }
        fresh
    }

    /// A payment that we already know was refunded. After a query to the gateway, people decide whether we deliver for
    /// it.
    pub(super) fn came_and_went(
        &mut self,
        notification: &Notification,
        trade_no: &TradeNo,
        paid_at: OffsetDateTime,
    ) -> Verdict {
        let id = self.orders.get(&notification.order_no).map(|order| order.id);
        self.note_extra(notification, trade_no, paid_at);
        self.case(Verdict::NotPending, CaseKind::RefundedElsewhere, id, notification)
    }

    /// Handles a payment that was not owed, by the account's policy.
    pub(super) fn extra(
        &mut self,
        notification: &Notification,
        trade_no: &TradeNo,
        paid_at: OffsetDateTime,
    ) -> Verdict {
        let Some(order) = self.orders.get_mut(&notification.order_no) else { return Verdict::UnknownOrder };
        let (id, closed) = (order.id, order.status == OrderStatus::Closed);
        let has_another = closed && self.with_another.contains(&id);
        let kind = if closed { CaseKind::LatePayment } else { CaseKind::DoublePayment };
        let policy = match self.policies.of(order.payment_method, &order.account) {
            // This order exists only so that we can return a payment. There is nothing to deliver.
            LatePaymentPolicy::Fulfil if !order.was_placed() => LatePaymentPolicy::Hold,
            // The buyer may pay the other order, or has paid it. People decide which payment counts.
            _ if has_another => LatePaymentPolicy::Hold,
            policy => policy,
        };
        metrics::counter!("extra_payments_total", "kind" => kind.as_str(), "policy" => policy.as_str()).increment(1);
        if policy == LatePaymentPolicy::Fulfil && closed && notification.source == Source::Notice {
            // Query the gateway first: the notice may be older than a refund.
            let mut case = new_case(kind, Some(id), notification, self.clock);
            case.evidence[late::POLICY] = policy.as_str().into();
            self.effects.fulfil.push((id, case.id));
            self.effects.cases.push(case);
            self.tell_extra(notification, trade_no, kind, policy);
            return Verdict::NotPending;
        }
        if policy == LatePaymentPolicy::Fulfil
            && let Ok(next) = order.status.next(OrderEvent::PaymentHonoured)
        {
            let paid = Paid { id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(events::order_paid(order, trade_no, paid_at));
            order.become_paid(next, &paid);
            self.effects.honoured.push(paid);
            let case = new_case(kind, Some(id), notification, self.clock);
            self.effects.decided.push(case);
            return Verdict::Settled;
        }
        if policy == LatePaymentPolicy::Refund {
            let back =
                Return { id: RefundId::from_u128(self.clock.fresh_bits()), order_id: id, trade_no: trade_no.clone() };
            self.effects.returns.push((back, self.effects.cases.len()));
        }
        self.tell_extra(notification, trade_no, kind, policy);
        self.case(Verdict::NotPending, kind, Some(id), notification)
    }

    /// Reports a payment that was not owed and that its order does not accept now.
    fn tell_extra(
        &mut self,
        notification: &Notification,
        trade_no: &TradeNo,
        kind: CaseKind,
        policy: LatePaymentPolicy,
    ) {
        let of_trade =
            |payment: &&ExtraPayment| (payment.payment_method, &payment.gateway_no) == (notification.method, trade_no);
        let order = self.orders.get(&notification.order_no);
        // A second payment buys nothing more.
        let is_second = (kind, policy) == (CaseKind::DoublePayment, LatePaymentPolicy::Fulfil);
        let policy = if is_second { LatePaymentPolicy::Hold } else { policy };
        if let Some((order, payment)) = order.zip(self.effects.extra.iter().find(of_trade)) {
            self.effects.events.push(events::extra_payment_received(order, payment, kind, policy));
        }
    }
}
