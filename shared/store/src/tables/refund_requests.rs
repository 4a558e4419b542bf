//! `refund_records` before the gateway: requests that wait for a person, and what ends a refund that was not sent. The
//! ingress writes these states through two functions of the database, which allow no other move.

use domain::message::job::{JobRequest, RefundRequest as JobOfRefund};
use domain::{RefundId, RefundStatus};
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::tables::jobs;
use crate::tables::refunds::{NewRefund, Refund};

/// Writes a refund that waits for a person. It has no transaction and no job, and reserves nothing.
///
/// # Errors
/// [`DbError::Constraint`] `refund_records_one_request` when another request of the order is open.
pub async fn create(tx: &mut PgConnection, new: &NewRefund, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        "select create_refund_request($1, $2, $3, $4, $5::text::numeric, $6, $7, $8)::text as done",
        new.id.to_string(),
        new.order_id.to_string(),
        new.transaction_id.to_string(),
        new.refund_no.as_str(),
        new.amount.to_string(),
        new.reason,
        new.requested_by,
        now,
    )
    .fetch_one(tx)
    .await?;
    Ok(())
}

/// A move of a refund that was not sent, and who makes it.
#[derive(Debug, Clone, Copy)]
pub struct UnsentMove<'a> {
    /// The refund.
    pub id: RefundId,
    /// The state before: `requested` or `pending`.
    pub from: RefundStatus,
    /// The state after. From `requested` to `requested`: the first of two approvals is noted.
    pub to: RefundStatus,
    /// Who makes the move.
    pub by: &'a str,
    /// Why it is declined.
    pub reason: Option<&'a str>,
}

/// Moves a refund that was not sent. False: it has left the state `from`.
///
/// # Errors
/// [`DbError`].
pub async fn apply(tx: &mut PgConnection, step: UnsentMove<'_>, now: OffsetDateTime) -> Result<bool, DbError> {
    let moved = sqlx::query_scalar!(
        r#"select move_unsent_refund($1, $2, $3, $4, $5, $6) as "moved!""#,
        step.id.to_string(),
        step.from.as_str(),
        step.to.as_str(),
        step.by,
        step.reason,
        now,
    );
    Ok(moved.fetch_one(tx).await? == 1)
}

/// Writes the transaction and the job of an approved request.
///
/// # Errors
/// [`DbError`].
pub async fn begin(tx: &mut PgConnection, refund: &Refund, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into payment_transactions
          (id, order_id, transaction_no, payment_method, action_type, amount, created_at, updated_at)
        select r.id, r.order_id, 'R' || r.id, p.payment_method, 'refund', r.refund_amount, $2, $2
        from refund_records r join payment_transactions p on p.id = r.transaction_id
        where r.id = $1
        "#,
        refund.id as RefundId,
        now,
    )
    .execute(&mut *tx)
    .await?;
    jobs::request(tx, &JobRequest::Refund(refund.id, JobOfRefund::default()), Duration::ZERO).await
}

/// Locks the row of a refund, so that no worker marks it as sent before this transaction ends. Lock the order's row
/// first.
///
/// # Errors
/// [`DbError`].
pub async fn lock(tx: &mut PgConnection, id: RefundId) -> Result<(), DbError> {
    sqlx::query!("select id from refund_records where id = $1 for update", id as RefundId).fetch_optional(tx).await?;
    Ok(())
}

/// Records that the gateway refused this attempt for the merchant's balance. `None`: the gateway has the refund after all,
/// so that refusal is not its last answer any more.
///
/// # Errors
/// [`DbError`].
pub async fn note_short(tx: &mut PgConnection, id: RefundId, attempt: Option<i32>) -> Result<(), DbError> {
    sqlx::query!("update refund_records set short_attempt = $2 where id = $1", id as RefundId, attempt)
        .execute(tx)
        .await?;
    Ok(())
}

/// How many requests wait for a person, and how long the oldest one has waited.
///
/// # Errors
/// [`DbError`].
pub async fn backlog(db: impl PgExecutor<'_>) -> Result<(i64, Duration), DbError> {
    let row = sqlx::query!(
        r#"
        select count(*) as "count!",
          greatest(coalesce(extract(epoch from now() - min(created_at)) * 1000, 0), 0)::bigint as "oldest!"
        from refund_records where status = 'requested'
        "#
    )
    .fetch_one(db)
    .await?;
    Ok((row.count, Duration::milliseconds(row.oldest)))
}
