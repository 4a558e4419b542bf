//! Payments that were not owed: a payment of a closed order, or a second payment of a paid one.

use aws_lc_rs::digest::{SHA256, digest};
use domain::{
    CaseId, CaseKind, CaseStatus, Fact, LatePaymentPolicy, OrderEvent, OrderId, OrderStatus, Policies, RefundId,
    RefundNo, RefundOrigin, TradeNo, Verdict,
};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::events;
use crate::error::{DbError, NotDone};
use crate::settle::refunds::follow::follow;
use crate::settle::refunds::request::{self, RequestedRefund};
use crate::settle::trade;
use crate::tables::cases::{self, Case};
use crate::tables::orders::Paid;
use crate::tables::orders::{self, Order};
use crate::tables::refunds as records;
use crate::tables::refunds::Refund;
use crate::tables::transactions::{self, Payment};
use crate::tables::{events as outbox, extra, jobs, outside};

/// Recorded as the requester of a refund that a policy makes, and as the resolver of a case that a policy fulfils.
pub const POLICY: &str = "policy";
/// The resolution of a case whose payment a policy accepted for its order.
pub(super) const BY_POLICY: &str = "taken for its order: the account's policy is fulfil";
/// The member of a case's evidence that says why the order could not become paid.
const NOT_FULFILLED: &str = "not_fulfilled";

/// A payment that we return because of the account's policy.
pub(super) struct Return {
    /// A new id.
    pub id: RefundId,
    /// The order.
    pub order_id: OrderId,
    /// The trade that we return.
    pub trade_no: TradeNo,
}

/// Requests the refund of an extra payment, once, however often its fact arrives. The case's evidence records the
/// result.
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
    let request = RequestedRefund {
        id: back.id,
        order_id: back.order_id,
        extra_trade: Some(back.trade_no.clone()),
        refund_no,
        amount: None,
        reason: None,
        requested_by: POLICY.to_owned(),
    };
    if let Err(not_done) = request::request(tx, &request, now).await {
        evidence[cases::NOT_REFUNDED] = not_done.refusal()?.to_string().into();
    }
    Ok(())
}

/// Requests the refunds that had to wait for another refund of the order, now that none is in flight. The current
/// policy decides: if it is no longer `refund`, we hold the money until people decide.
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
        let Ok(trade_no) = TradeNo::parse(case.subject_ref) else { continue };
        if let Some(known) = case.evidence.as_object_mut() {
            known.remove(cases::NOT_REFUNDED);
        }
        let back = Return { id: RefundId::from_u128(clock.fresh_bits()), order_id, trade_no };
        give_back(tx, &back, &mut case.evidence, clock.now()).await?;
        cases::note_evidence(tx, case.id, &case.evidence, clock.now()).await?;
    }
    Ok(())
}

/// The number of a policy's refund is derived from the trade, so a repeat of the fact finds the same refund. If the
/// trade number does not fit, we use its digest.
pub fn refund_no_of(trade_no: &TradeNo) -> RefundNo {
    RefundNo::parse(format!("L{trade_no}")).unwrap_or_else(|_| {
        let digest = digest(&SHA256, trade_no.as_str().as_bytes());
        let hex: String = digest.as_ref().iter().take(31).map(|byte| format!("{byte:02x}")).collect();
        RefundNo::parse(format!("L{hex}")).unwrap_or_else(|_| unreachable!("63 letters and digits are a refund number"))
    })
}

/// The reason why a late payment cannot be accepted for its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHonoured {
    /// There is no such order, or this trade did not pay for it.
    #[error("this trade brought the order no payment")]
    NoPayment,
    /// The payment is more or less than the order's amount.
    #[error("the payment is of another amount than the order")]
    AnotherAmount,
    /// The order is not closed or pending any more: it is already paid.
    #[error("the order is not closed")]
    NotClosed,
    /// Another order of the purchase is paid, or can still be paid.
    #[error("another order of the purchase is open or paid")]
    AnotherOrder,
    /// All of the payment was refunded, or we have a refund of it that has not failed.
    #[error("the payment has been returned, or is on its way back")]
    Returned,
    /// We queried the gateway, and its answer does not show the payment.
    #[error("the gateway does not say that the money of this trade is there")]
    NotThere,
    /// Some of it was refunded, and the gateway does not state how much.
    #[error("book first what was returned at the gateway")]
    NotBooked,
}

/// Whether people may accept the payment of such a case for its order.
pub const fn can_fulfil(kind: CaseKind) -> bool {
    matches!(kind, CaseKind::LatePayment | CaseKind::RefundedElsewhere)
}

/// Whether a late payment could be accepted for its order by our books alone. The gateway is queried later.
///
/// # Errors
/// [`NotDone`], with the reason if it cannot be done.
pub async fn can_honour(
    tx: &mut PgConnection,
    order_id: OrderId,
    trade_no: &TradeNo,
) -> Result<(), NotDone<NotHonoured>> {
    Late::read(tx, order_id, trade_no).await.map(drop)
}

/// Accepts a late payment for its order, as the case `case_id` requests, if the gateway has just confirmed that the
/// money is there. The order becomes paid and its event is published; otherwise the case states why not. `Ignored`: the
/// case was decided in another way in the meantime.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn fulfil(
    tx: &mut PgConnection,
    order_id: OrderId,
    case_id: CaseId,
    said: Option<&Fact>,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let now = clock.now();
    // Lock the order before anything that belongs to it, as every transaction does.
    orders::lock_one(tx, order_id).await?;
    let case = cases::get(&mut *tx, case_id).await?.filter(|case| case.status != CaseStatus::Resolved);
    let fits = |case: &Case| case.order_id == Some(order_id) && can_fulfil(case.kind);
    let Some(mut case) = case.filter(fits) else { return Ok(Verdict::Ignored) };
    let Ok(trade_no) = TradeNo::parse(&*case.subject_ref) else { return Ok(Verdict::Ignored) };
    let refusal = match honour(tx, order_id, &trade_no, said, now).await {
        Ok(()) => {
            let by_policy = case.evidence.get(POLICY).is_some();
            let (resolution, by) =
                if by_policy { (BY_POLICY, POLICY) } else { ("the order is paid by this trade", "service") };
            outside::resolve(tx, &case, resolution, by, now).await?;
            return Ok(Verdict::Settled);
        }
        Err(not_done) => not_done.refusal()?.to_string(),
    };
    if case.evidence[NOT_FULFILLED] != *refusal {
        case.evidence[NOT_FULFILLED] = refusal.into();
        cases::note_evidence(tx, case.id, &case.evidence, now).await?;
    }
    Ok(Verdict::NotPending)
}

/// Marks the order as paid by a late payment and publishes the event. If a part was refunded before, its event is
/// published after that, so that a consumer computes the same sums as we do.
async fn honour(
    tx: &mut PgConnection,
    order_id: OrderId,
    trade_no: &TradeNo,
    said: Option<&Fact>,
    now: OffsetDateTime,
) -> Result<(), NotDone<NotHonoured>> {
    let late = Late::read(tx, order_id, trade_no).await?;
    let paid_at = late.is_there(trade_no, said).map_err(NotDone::Refused)?.unwrap_or(late.payment.paid_at);
    let paid = Paid { id: order_id, trade_no: trade_no.clone(), paid_at };
    orders::mark_honoured(tx, std::slice::from_ref(&paid), now).await?;
    let mut news = vec![events::order_paid(&late.order, trade_no, paid_at)];
    let mut after = late.order;
    after.become_paid(late.next, &paid);
    let after = follow(tx, &after, now).await?;
    let went = late.went_back.iter();
    news.extend(
        went.map(|refund| events::refund_succeeded(&after, refund, refund.succeeded_at.unwrap_or(refund.created_at))),
    );
    outbox::append(tx, &news, now).await?;
    jobs::end_checks(tx, &[order_id]).await?;
    Ok(extra::follow(tx, &[order_id], now).await?)
}

/// A late payment that our books allow the order to accept.
struct Late {
    order: Order,
    next: OrderStatus,
    payment: Payment,
    /// The refunds of it that were made outside.
    went_back: Vec<Refund>,
}

impl Late {
    async fn read(tx: &mut PgConnection, order_id: OrderId, trade_no: &TradeNo) -> Result<Late, NotDone<NotHonoured>> {
        let refused = |refusal| Err(NotDone::Refused(refusal));
        let order = orders::lock_one(tx, order_id).await?.filter(Order::was_placed);
        let Some(order) = order else { return refused(NotHonoured::NoPayment) };
        let Some(payment) = transactions::payment_of_trade(tx, &order, trade_no).await? else {
            return refused(NotHonoured::NoPayment);
        };
        if payment.amount != order.amount {
            return refused(NotHonoured::AnotherAmount);
        }
        let mut went_back = records::of_order(&mut *tx, order_id).await?;
        went_back.retain(|refund| refund.trade_no == *trade_no && refund.status.reserves());
        let ours = went_back.iter().any(|refund| refund.origin == RefundOrigin::Service);
        if ours || trade::sum(went_back.iter()).max(payment.returned) >= payment.amount {
            return refused(NotHonoured::Returned);
        }
        if order.has_purchase() && orders::with_another(tx, &[order_id]).await?.contains(&order_id) {
            return refused(NotHonoured::AnotherOrder);
        }
        match order.status.next(OrderEvent::PaymentHonoured) {
            Ok(next) => Ok(Late { order, next, payment, went_back }),
            Err(_) => refused(NotHonoured::NotClosed),
        }
    }

    /// When the buyer paid, if the gateway states it. An error if the gateway's answer does not show the money.
    fn is_there(&self, trade_no: &TradeNo, said: Option<&Fact>) -> Result<Option<OffsetDateTime>, NotHonoured> {
        match said {
            Some(Fact::Paid { trade_no: stated, amount: Some(amount), paid_at })
                if stated == trade_no && *amount == self.payment.amount =>
            {
                Ok(Some(*paid_at))
            }
            Some(Fact::PaidAndReturned(stated)) if stated.trade_no == *trade_no => match stated.returned {
                Some(sum) if sum >= self.payment.amount => Err(NotHonoured::Returned),
                None if self.went_back.is_empty() => Err(NotHonoured::NotBooked),
                _ => Ok(stated.paid_at),
            },
            _ => Err(NotHonoured::NotThere),
        }
    }
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
