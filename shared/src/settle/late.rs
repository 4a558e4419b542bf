//! Money that came when none was owed: a payment of a closed order, a second payment of a paid one.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::refunds::{self, Wish};
use crate::clock::Clock;
use crate::db::orders::{self, Order, Paid};
use crate::db::{DbError, cases, events, jobs, refunds as records, transactions};
use crate::domain::{LatePaymentPolicy, OrderEvent, OrderId, OrderStatus, Policies, RefundId, RefundNo, TradeNo};
use crate::event;

/// Who asks for what a policy returns.
pub const POLICY: &str = "policy";

/// Money that goes back because the account's policy says so.
pub(super) struct Return {
    /// A fresh id.
    pub id: RefundId,
    /// Of which order.
    pub order_id: OrderId,
    /// What brought it.
    pub trade_no: TradeNo,
}

/// Asks for the refund of an extra payment, once however often its fact comes, and says in the case what came of it.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn give_back(
    tx: &mut PgConnection,
    back: &Return,
    evidence: &mut Value,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let refund_no = refund_no_of(&back.trade_no);
    evidence["refund_no"] = refund_no.as_str().into();
    if records::by_refund_no(&mut *tx, refund_no.as_str()).await?.is_some() {
        return Ok(());
    }
    let wish = Wish {
        id: back.id,
        order_id: back.order_id,
        extra_trade: Some(back.trade_no.clone()),
        refund_no,
        amount: None,
        reason: None,
        requested_by: POLICY.to_owned(),
    };
    if let Err(refusal) = refunds::ask(tx, &wish, now).await? {
        evidence[cases::NOT_REFUNDED] = refusal.to_string().into();
    }
    Ok(())
}

/// Requests what had to wait for another refund of the order, now that one is no longer in flight. The policy of today decides: where
/// it is no longer `refund`, the money stays until people decide.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn give_back_what_waited(
    tx: &mut PgConnection,
    order: &Order,
    policies: &Policies,
    clock: &Clock,
) -> Result<(), DbError> {
    if policies.of(order.payment_method, &order.account) != LatePaymentPolicy::Refund {
        return Ok(());
    }
    let order_id = order.id;
    for mut case in cases::not_refunded(tx, order_id).await? {
        let Ok(trade_no) = TradeNo::parse(case.gateway_no) else { continue };
        if let Some(known) = case.evidence.as_object_mut() {
            known.remove(cases::NOT_REFUNDED);
        }
        let back = Return { id: RefundId::from_u128(clock.fresh_bits()), order_id, trade_no };
        give_back(tx, &back, &mut case.evidence, clock.now()).await?;
        cases::note_evidence(tx, case.id, &case.evidence, clock.now()).await?;
    }
    Ok(())
}

/// The number of a policy's refund follows from the trade, so that a repeat of the fact finds it. A trade number that does
/// not fit is named by its digest.
pub fn refund_no_of(trade_no: &TradeNo) -> RefundNo {
    RefundNo::parse(format!("L{trade_no}")).unwrap_or_else(|_| {
        let digest = digest(&SHA256, trade_no.as_str().as_bytes());
        let hex: String = digest.as_ref().iter().take(31).map(|byte| format!("{byte:02x}")).collect();
        RefundNo::parse(format!("L{hex}")).unwrap_or_else(|_| unreachable!("63 letters and digits are a refund number"))
    })
}

/// Why a late payment cannot be honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHonoured {
    /// No such order, or no payment of this trade for it.
    #[error("this trade brought the order no payment")]
    NoPayment,
    /// The order is not closed.
    #[error("the order is not closed")]
    NotClosed,
    /// Some or all of the money is on its way back.
    #[error("the payment has been returned, or is on its way back")]
    Returned,
}

/// Takes a late payment for its closed order, as a person decided: the order is paid, with its event.
///
/// `paid_at` of the order is the gateway's time of this payment.
///
/// # Errors
/// [`DbError`]; inside, why it cannot be done.
pub async fn honour(
    tx: &mut PgConnection,
    order_id: OrderId,
    trade_no: &TradeNo,
    now: OffsetDateTime,
) -> Result<Result<(), NotHonoured>, DbError> {
    let Some(order) = orders::lock_one(tx, order_id).await? else { return Ok(Err(NotHonoured::NoPayment)) };
    let Some(payment) = transactions::payment_of_trade(tx, &order, trade_no).await? else {
        return Ok(Err(NotHonoured::NoPayment));
    };
    let paid_at = payment.paid_at;
    let all = records::of_order(&mut *tx, order_id).await?;
    if all.iter().any(|refund| refund.trade_no == *trade_no && refund.status.reserves()) {
        return Ok(Err(NotHonoured::Returned));
    }
    if order.status.next(OrderEvent::PaymentHonoured).is_err() {
        return Ok(Err(NotHonoured::NotClosed));
    }
    let paid = Paid { id: order.id, trade_no: trade_no.clone(), paid_at };
    orders::mark_honoured(tx, std::slice::from_ref(&paid), now).await?;
    events::append(tx, &[event::order_paid(&order, trade_no, paid_at)], now).await?;
    jobs::drop_checks(tx, &[order_id]).await?;
    Ok(Ok(()))
}

/// The order in memory after a payment.
pub(super) fn take(order: &mut Order, next: OrderStatus, paid: &Paid) {
    order.status = next;
    order.trade_no = Some(paid.trade_no.clone());
    order.paid_at = Some(paid.paid_at);
    order.version += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trade_has_one_refund_number_of_its_own() {
        let numbers = ["2026010522001400001000000002", "42000-1", "42000*1", &"1".repeat(64)];
        let refunds: Vec<RefundNo> =
            numbers.iter().map(|number| refund_no_of(&TradeNo::parse(*number).unwrap())).collect();
        assert_eq!(refunds[0].as_str(), "L2026010522001400001000000002");
        for (n, refund) in refunds.iter().enumerate() {
            assert!(!refunds[..n].contains(refund), "{refund}");
        }
    }
}
