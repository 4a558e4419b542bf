//! The moves of an order. Each move starts only from the states that allow it. A trigger refuses every other move
//! (`migrations/0028_events_and_moves_are_facts.sql`).

use domain::{Money, OrderId, OrderStatus, TradeNo};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::orders::Order;
use crate::tables::transactions;

/// One order that was paid.
pub struct Paid {
    /// The order.
    pub id: OrderId,
    /// The trade that paid it.
    pub trade_no: TradeNo,
    /// When it was paid, by the gateway's clock.
    pub paid_at: OffsetDateTime,
}

impl Order {
    /// The same move in memory, so that a repeat of the payment in the same batch finds a paid order.
    pub fn become_paid(&mut self, next: OrderStatus, paid: &Paid) {
        self.status = next;
        self.trade_no = Some(paid.trade_no.clone());
        self.paid_at = Some(paid.paid_at);
        self.version += 1;
    }
}

/// Moves pending orders to paid, and their payments to succeeded.
///
/// # Errors
/// [`DbError::Moved`] when one of them is no longer pending; then the caller must not commit.
pub async fn mark_paid(tx: &mut PgConnection, paid: &[Paid], now: OffsetDateTime) -> Result<(), DbError> {
    let ids: Vec<OrderId> = paid.iter().map(|p| p.id).collect();
    let trade_nos: Vec<&str> = paid.iter().map(|p| p.trade_no.as_str()).collect();
    let paid_at: Vec<OffsetDateTime> = paid.iter().map(|p| p.paid_at).collect();
    let done = sqlx::query!(
        r#"
        update payment_orders o
        set status = 'paid', trade_no = p.trade_no, paid_at = p.paid_at, updated_at = $4, version = version + 1
        from unnest($1::bpchar[], $2::text[], $3::timestamptz[]) as p (id, trade_no, paid_at)
        where o.id = p.id and o.status = 'pending'
        "#,
        &ids as &[OrderId],
        &trade_nos as &[&str],
        &paid_at,
        now,
    )
    .execute(&mut *tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), paid.len())?;
    transactions::mark_succeeded(tx, &ids, &trade_nos, now).await
}

/// Moves unpaid orders to paid, each by a trade that already has a transaction of its own. The payment that the order
/// was placed with is marked as failed.
///
/// # Errors
/// [`DbError::Moved`] when one of them is paid already; then the caller must not commit. [`DbError::Again`] when another
/// order of its purchase was placed at this moment: the repeat finds that one.
pub async fn mark_honoured(tx: &mut PgConnection, paid: &[Paid], now: OffsetDateTime) -> Result<(), DbError> {
    let ids: Vec<OrderId> = paid.iter().map(|p| p.id).collect();
    let trade_nos: Vec<&str> = paid.iter().map(|p| p.trade_no.as_str()).collect();
    let paid_at: Vec<OffsetDateTime> = paid.iter().map(|p| p.paid_at).collect();
    let done = sqlx::query!(
        r#"
        update payment_orders o
        set status = 'paid', trade_no = p.trade_no, paid_at = p.paid_at, updated_at = $4, version = version + 1
        from unnest($1::bpchar[], $2::text[], $3::timestamptz[]) as p (id, trade_no, paid_at)
        where o.id = p.id and o.status in ('pending', 'closed')
        "#,
        &ids as &[OrderId],
        &trade_nos as &[&str],
        &paid_at,
        now,
    )
    .execute(&mut *tx)
    .await;
    let done = done.map_err(|error| match DbError::from(error) {
        DbError::PurchaseTaken(error) => DbError::Again(error),
        other => other,
    })?;
    DbError::expect_rows(done.rows_affected(), paid.len())?;
    transactions::mark_unused(tx, &ids, now).await
}

/// Moves pending orders to closed, and their payments to failed.
///
/// # Errors
/// [`DbError::Moved`] when one of them is no longer pending; then the caller must not commit.
pub async fn mark_closed(tx: &mut PgConnection, ids: &[OrderId], now: OffsetDateTime) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update payment_orders
        set status = 'closed', closed_at = $2, updated_at = $2, version = version + 1
        where id = any($1::bpchar[]) and status = 'pending'
        "#,
        ids as &[OrderId],
        now,
    )
    .execute(&mut *tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), ids.len())?;
    transactions::mark_failed(tx, ids, now).await
}

/// Writes the status and the refunded amount that follow from the refunds of a paid order.
///
/// # Errors
/// [`DbError::Moved`] when the order is no longer in the state that it was read in.
pub async fn mark_by_refunds(
    tx: &mut PgConnection,
    order: &Order,
    to: OrderStatus,
    returned: Money,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update payment_orders
        set status = $3, refunded_amount = $4, updated_at = $5, version = version + 1
        where id = $1 and status = $2
        "#,
        order.id as OrderId,
        order.status.as_str(),
        to.as_str(),
        returned as Money,
        now,
    )
    .execute(tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)
}
