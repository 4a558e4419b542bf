//! Refunds that this service did not send: booking them, and recording the refunded totals that the gateways state.

use domain::{CaseId, Money, OrderId, RefundId, RefundNo, TransactionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::cases::Case;

/// A refund to book that is not ours.
#[derive(Debug, Clone)]
pub struct OutsideRefund {
    /// A new UUIDv7.
    pub id: RefundId,
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub transaction_id: TransactionId,
    /// Our number, for lists and events; the gateway does not know it.
    pub refund_no: RefundNo,
    /// The amount that was returned.
    pub amount: Money,
    /// Identifies the refund, whichever message reports it.
    pub key: String,
    /// The gateway's number of it, or else the number that its sender chose.
    pub gateway_refund_no: Option<String>,
    /// When the money was returned, by the gateway's clock if the gateway states it.
    pub succeeded_at: OffsetDateTime,
}

/// Books a refund that is not ours, with its transaction.
///
/// # Errors
/// [`DbError::Constraint`] `refund_records_outside_once` when it is booked already.
pub async fn book(tx: &mut PgConnection, refund: &OutsideRefund, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        with refund as (
          insert into refund_records
            (id, order_id, transaction_id, refund_no, refund_amount, status, origin, outside_key, gateway_refund_no,
             requested_by, succeeded_at, created_at, updated_at)
          values ($1, $2, $3, $4, $5, 'succeeded', 'outside', $6, $7, 'outside', $8, $9, $9)
        )
        insert into payment_transactions
          (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at, updated_at)
        select $1, $2, 'R' || $1, payment_method, 'refund', $5, 'succeeded', coalesce($7, $4), $9, $9
        from payment_orders where id = $2
        "#,
        refund.id as RefundId,
        refund.order_id as OrderId,
        refund.transaction_id as TransactionId,
        refund.refund_no.as_str(),
        refund.amount as Money,
        refund.key,
        refund.gateway_refund_no,
        refund.succeeded_at,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether a refund that is not ours is booked.
///
/// # Errors
/// [`DbError`].
pub async fn is_booked(tx: &mut PgConnection, key: &str) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from refund_records where outside_key = $1) as "booked!""#, key);
    Ok(row.fetch_one(tx).await?.booked)
}

/// Records the refunded total that the gateway states for a payment. A smaller total is older news; a total above the
/// payment is wrong. Both are ignored.
///
/// # Errors
/// [`DbError`].
pub async fn note_returned(tx: &mut PgConnection, payment: TransactionId, sum: Money) -> Result<(), DbError> {
    sqlx::query!(
        "update payment_transactions set returned_amount = $2 where id = $1 and returned_amount < $2 and amount >= $2",
        payment as TransactionId,
        sum as Money,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Those of these refunds that still have a query scheduled.
///
/// # Errors
/// [`DbError`].
pub async fn to_be_queried(tx: &mut PgConnection, refunds: &[RefundId]) -> Result<Vec<RefundId>, DbError> {
    let ids = sqlx::query_scalar!(
        r#"select ref_id as "id!: RefundId" from jobs where kind = 'refund' and ref_id = any($1::bpchar[])"#,
        refunds as &[RefundId],
    );
    Ok(ids.fetch_all(tx).await?)
}

/// Writes the gateway's number of an outside refund that was booked without one.
///
/// # Errors
/// [`DbError`].
pub async fn note_number(tx: &mut PgConnection, id: RefundId, number: &str) -> Result<(), DbError> {
    sqlx::query!(
        "update refund_records set gateway_refund_no = $2 where id = $1 and gateway_refund_no is null",
        id as RefundId,
        number,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Resolves a case that needs no decision any more. A proposed action lapses.
///
/// # Errors
/// [`DbError`].
pub async fn resolve(
    tx: &mut PgConnection,
    case: &Case,
    resolution: &str,
    by: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update cases
        set status = 'resolved', resolution = $2, resolved_by = $3, version = version + 1, updated_at = $4
        where id = $1 and status <> 'resolved'
        "#,
        case.id as CaseId,
        resolution,
        by,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}
