//! Our refunds: requesting them (`request`), and settling what the gateway reports about them. Facts from callbacks and from
//! queries both arrive here.
//!
//! Everything runs under the lock of the order's row, so the order's other refunds cannot change while one of them
//! moves.

use domain::message::job::{JobRequest, RefundRequest};
use domain::{
    CaseKind, Fact, Notification, OrderStatus, Policies, RefundEvent, RefundReport, RefundState, RefundStatus,
};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::events;
use crate::error::DbError;
use crate::settle::opening::{case_of, open};
use crate::settle::{late, outside};
use crate::tables::orders::Order;
use crate::tables::refunds::{Move, Refund};
use crate::tables::{events as outbox, jobs, orders, refunds};

mod amount;
mod by_rule;
mod decide;
pub(super) mod follow;
pub(super) mod request;
mod room;
mod tell;
mod withdraw;

pub use amount::accept_amount;
pub use by_rule::{Requester, request_by_rule};
pub use decide::{Decided, DecisionRefusal, approve, decline};
pub use request::{RequestedRefund, request};
pub use room::{RefundRefusal, has_room};
pub use tell::LOOK_BACK;
pub use withdraw::{Withdrawer, after_withdrawal, withdraw, withdraw_unknown};

use follow::{follow, follow_extra};
use tell::{ended, failure, never_sent, no_move, tell};

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundVerdict {
    /// The refund moved.
    Settled,
    /// The refund was already in this state or a later one.
    Duplicate,
    /// The amount differs from the refund's: we open a case, and the refund does not move.
    AmountMismatch,
}

/// The name of a final state, for logs and metrics.
pub const fn named(state: RefundState) -> &'static str {
    match state {
        RefundState::Succeeded => "succeeded",
        RefundState::Absent | RefundState::Closed => "failed",
        RefundState::Abnormal => "abnormal",
        RefundState::Processing => "processing",
    }
}

/// Applies what the gateway states about a refund to its row and to the order: states, transaction, events, cases. The
/// caller passes `Absent` only if the gateway has refused the request, so that none can take effect any more.
/// `Processing` makes the next query due now.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn settle(
    tx: &mut PgConnection,
    refund: &Refund,
    report: &RefundReport,
    policies: &Policies,
    clock: &Clock,
) -> Result<RefundVerdict, DbError> {
    let now = clock.now();
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    // Read again under the lock: another fact may have arrived first.
    let refund = refunds::get(&mut *tx, refund.id).await?.ok_or(DbError::Moved)?;
    if refund.was_never_sent() {
        never_sent(tx, &refund, report, clock).await?;
        return Ok(RefundVerdict::Duplicate);
    }
    if report.state == RefundState::Succeeded
        && let Some(amount) = report.amount
        && amount != refund.amount
    {
        let (amount, requested) = (amount.to_string(), refund.amount.to_string());
        let evidence = json!({ "refund_no": refund.refund_no, "amount": amount, "requested_amount": requested });
        open(tx, &case_of(clock, CaseKind::AmountMismatch, &refund, evidence), now).await?;
        return Ok(RefundVerdict::AmountMismatch);
    }
    let event = match report.state {
        RefundState::Succeeded => RefundEvent::Returned,
        RefundState::Absent | RefundState::Closed => RefundEvent::Failed,
        RefundState::Abnormal => RefundEvent::Undeliverable,
        RefundState::Processing if refund.status == RefundStatus::Succeeded => return Ok(RefundVerdict::Duplicate),
        // Also for a failed refund: an earlier request may have taken effect late.
        RefundState::Processing => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), Duration::ZERO).await?;
            return Ok(RefundVerdict::Settled);
        }
    };
    // A fact about a refund that we have not marked as sent proves that it was sent.
    let mut from = refund.status;
    if from == RefundStatus::Pending {
        refunds::mark_sent(tx, refund.id, now).await?;
        from = RefundStatus::Processing;
    }
    let Some(to) = from.next(event) else {
        no_move(tx, &refund, report, clock).await?;
        return Ok(RefundVerdict::Duplicate);
    };
    refunds::apply(tx, &step(&refund, from, to, report, now), now).await?;
    let after = follow(tx, &order, now).await?;
    follow_extra(tx, &after, &refund.trade_no, now).await?;
    tell(tx, &after, &refund, report, clock).await?;
    if after.status == OrderStatus::Refunded && order.status != OrderStatus::Refunded {
        outbox::append(tx, &[events::order_refunded(&after, &refund)], now).await?;
    }
    if let Some(sum) = report.returned {
        crate::tables::outside::note_returned(tx, refund.transaction_id, sum).await?;
    }
    if to.is_final() {
        ended(tx, &refund, to, report.returned, clock).await?;
    }
    // This also applies to an abnormal refund: it no longer blocks the order's other refunds.
    late::give_back_what_waited(tx, &after, policies, clock).await?;
    count(&refund, report.state, now);
    Ok(RefundVerdict::Settled)
}

/// We queried a failed refund once more, and the gateway does not know it.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn looked_back(tx: &mut PgConnection, refund: &Refund, clock: &Clock) -> Result<(), DbError> {
    outside::compare_again(tx, refund, None, clock).await
}

/// Counts how refunds finish and how long they take.
fn count(refund: &Refund, state: RefundState, now: OffsetDateTime) {
    let labels = [("gateway", refund.payment_method.as_str()), ("outcome", named(state))];
    metrics::counter!("refunds_total", &labels).increment(1);
    let took = (now - refund.created_at).as_seconds_f64();
    metrics::histogram!("refund_duration_seconds", &labels).record(took.max(0.0));
}

fn step(refund: &Refund, from: RefundStatus, to: RefundStatus, report: &RefundReport, now: OffsetDateTime) -> Move {
    let succeeded_at = (report.state == RefundState::Succeeded).then(|| report.at.unwrap_or(now));
    // The number of a closed refund leads to no money.
    let has_number = matches!(report.state, RefundState::Succeeded | RefundState::Abnormal);
    let gateway_refund_no = report.gateway_refund_no.clone().filter(|_| has_number);
    Move { id: refund.id, from, to, gateway_refund_no, succeeded_at, error: failure(refund, report.state) }
}

/// Settles what a callback says about one of our refunds. `None`: we have no refund with this number, or that refund
/// belongs to another order, trade or account; then a person must judge.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn notice(
    tx: &mut PgConnection,
    notification: &Notification,
    order: &Order,
    policies: &Policies,
    clock: &Clock,
) -> Result<Option<RefundVerdict>, DbError> {
    let Fact::Refund { trade, refund_no, report } = &notification.fact else { return Ok(None) };
    // Compare the account of the payment, not of the order: people may return a payment that arrived at another
    // account.
    let paid_there = |refund: &Refund| {
        let account = refund.account.as_ref().unwrap_or(&order.account);
        (refund.payment_method, account) == (notification.method, &notification.account)
    };
    let found = refunds::by_refund_no(&mut *tx, refund_no).await?;
    let found =
        found.filter(|refund| refund.order_id == order.id && refund.trade_no == trade.trade_no && paid_there(refund));
    let Some(refund) = found else { return Ok(None) };
    settle(tx, &refund, report, policies, clock).await.map(Some)
}
