//! Withdraws a refund that the gateway refused for the merchant's balance, and does what follows from a withdrawal.

use domain::{Policies, RefundEvent, RefundStatus};
use runtime::clock::Clock;
use sqlx::PgConnection;

use super::follow::follow;
use super::tell::ended;
use crate::error::DbError;
use crate::settle::{events, late, outside};
use crate::tables::refunds::{self, Move, Refund};
use crate::tables::{cases, events as outbox, orders, refund_requests};

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
