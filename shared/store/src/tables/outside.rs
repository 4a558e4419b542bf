//! Refunds that this service did not send: what is booked of them, and what the gateways say went back in all.

use domain::{CaseId, Money, OrderId, RefundId, RefundNo, TransactionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::cases::Case;

/// A refund to book that is not ours.
#[derive(Debug, Clone)]
pub struct OutsideRefund {
    /// A fresh UUIDv7.
    pub id: RefundId,
    /// Of which order.
    pub order_id: OrderId,
    /// Of which payment.
    pub transaction_id: TransactionId,
    /// A number of ours, for lists and events: the gateway does not know it.
    pub refund_no: RefundNo,
    /// How much went back.
    pub amount: Money,
    /// What makes it one, whichever message tells of it.
    pub key: String,
    /// The gateway's number of it, or the merchant's other one.
    pub gateway_refund_no: Option<String>,
    /// When the money went back, by the gateway's clock where it tells.
    pub succeeded_at: OffsetDateTime,
}

/// Books a refund that is not ours, with its movement of money.
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

/// Notes what the gateway says went back of a payment in all. A smaller sum is older news, and one beyond the payment is wrong.
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

/// Those of these refunds that will still be asked about.
///
/// # Errors
/// [`DbError`].
pub async fn to_be_asked(tx: &mut PgConnection, refunds: &[RefundId]) -> Result<Vec<RefundId>, DbError> {
    let ids = sqlx::query_scalar!(
        r#"select ref_id as "id!: RefundId" from jobs where kind = 'refund' and ref_id = any($1::bpchar[])"#,
        refunds as &[RefundId],
    );
    Ok(ids.fetch_all(tx).await?)
}

/// Writes the number of a refund from outside that was booked without one.
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

/// Resolves a case about which nothing is left to decide; what was proposed goes with it.
///
/// # Errors
/// [`DbError`].
pub async fn resolve(
    tx: &mut PgConnection,
    case: &Case,
    (resolution, by): (&str, &str),
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
