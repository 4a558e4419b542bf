//! Withdraws a refund that was not sent, or that the gateway refused for the merchant's balance, and does what follows.

use domain::message::job::{JobRequest, RefundRequest};
use domain::{Policies, RefundEvent, RefundId, RefundStatus, UserId};
use runtime::clock::Clock;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::decide::{Decided, DecisionRefusal, changed, locked};
use super::follow::follow;
use super::tell::ended;
use crate::error::{DbError, NotDone};
use crate::settle::{events, late, outside};
use crate::tables::refund_requests::UnsentMove;
use crate::tables::refunds::{self, Move, Refund};
use crate::tables::{cases, events as outbox, jobs, orders, refund_requests};

/// Who withdraws a refund.
#[derive(Debug, Clone, Copy)]
pub enum Withdrawer<'a> {
    /// The buyer of the order, who withdraws what the same buyer requested.
    Buyer(&'a UserId),
    /// The merchant, under this name, who withdraws any.
    Merchant(&'a str),
}

/// Withdraws a refund that was not sent. One that waits for the merchant's balance is withdrawn by the refund worker,
/// once a query knows no such refund: its job is requested, and the refund stays as it is.
///
/// # Errors
/// [`NotDone`], with the reason if the gateway may have it, or if this caller may not withdraw it.
pub async fn withdraw(
    tx: &mut PgConnection,
    id: RefundId,
    by: Withdrawer<'_>,
    now: OffsetDateTime,
) -> Result<Decided, NotDone<DecisionRefusal>> {
    let (order, refund) = locked(tx, id).await?;
    let name = match by {
        Withdrawer::Buyer(user) if refund.requested_by != user.as_str() => {
            return Err(NotDone::Refused(DecisionRefusal::NotRequester));
        }
        Withdrawer::Buyer(user) => user.as_str(),
        Withdrawer::Merchant(name) => name,
    };
    // What returns an extra payment was decided by people or by a policy, and the money is not the merchant's.
    let is_own = events::is_own(&order, &refund);
    match refund.status {
        RefundStatus::Withdrawn => return Ok(Decided { refund, is_changed: false }),
        RefundStatus::Requested => {}
        RefundStatus::Pending if is_own => {}
        RefundStatus::Processing if is_own && refund.waits_for_balance() => {
            let withdraw = JobRequest::Refund(id, RefundRequest::withdraw());
            jobs::request(&mut *tx, &withdraw, Duration::ZERO).await?;
            return Ok(Decided { refund, is_changed: true });
        }
        other => return Err(NotDone::Refused(DecisionRefusal::NotWithdrawable(other))),
    }
    let step = UnsentMove { id, from: refund.status, to: RefundStatus::Withdrawn, by: name, reason: None };
    if !refund_requests::apply(tx, step, now).await? {
        // The worker has just begun to send it.
        return Err(NotDone::Refused(DecisionRefusal::NotWithdrawable(RefundStatus::Processing)));
    }
    let after = follow(tx, &order, now).await?;
    outbox::append(tx, &[events::refund_withdrawn(&after, &refund)], now).await?;
    if refund.status == RefundStatus::Pending {
        // The refund worker ends the job, and begins what waited for this refund.
        jobs::request(&mut *tx, &JobRequest::Refund(id, RefundRequest::default()), Duration::ZERO).await?;
    }
    changed(tx, id).await
}

/// Withdraws a processing refund that the gateway does not know, and whose last request it refused for the merchant's
/// balance. `refund` is as the worker read it before its query: if it was sent once more since, or has moved, nothing
/// happens, and the answer is false.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn withdraw_unknown(
    tx: &mut PgConnection,
    refund: &Refund,
    policies: &Policies,
    clock: &Clock,
) -> Result<bool, DbError> {
    let now = clock.now();
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    // A worker that has lost the job can still mark the refund as sent: either before this lock, or not at all.
    refund_requests::lock(tx, refund.id).await?;
    let present = refunds::get(&mut *tx, refund.id).await?.ok_or(DbError::Moved)?;
    let to = present.status.next(RefundEvent::Withdrawn);
    let Some(to) = to.filter(|_| present.waits_for_balance() && present.attempts == refund.attempts) else {
        return Ok(false);
    };
    let from = present.status;
    let step = Move { id: refund.id, from, to, gateway_refund_no: None, succeeded_at: None, error: None };
    refunds::apply(tx, &step, now).await?;
    let after = follow(tx, &order, now).await?;
    outbox::append(tx, &[events::refund_withdrawn(&after, &present)], now).await?;
    cases::end_of_refund(tx, &present, "the refund was withdrawn", now).await?;
    ended(tx, &present, to, None, clock).await?;
    late::give_back_what_waited(tx, &after, policies, clock).await?;
    Ok(true)
}

/// Compares what was returned outside, and begins what waited for a refund that is withdrawn. Nothing is done twice.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn after_withdrawal(
    tx: &mut PgConnection,
    refund: &Refund,
    policies: &Policies,
    clock: &Clock,
) -> Result<(), DbError> {
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    let present = refunds::get(&mut *tx, refund.id).await?.ok_or(DbError::Moved)?;
    if present.status != RefundStatus::Withdrawn {
        return Ok(());
    }
    outside::compare_again(tx, &present, None, clock).await?;
    // A comparison can book a refund, which moves the order.
    let order = orders::lock_one(tx, order.id).await?.ok_or(DbError::Moved)?;
    late::give_back_what_waited(tx, &order, policies, clock).await
}
