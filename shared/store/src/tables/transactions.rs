//! `payment_transactions`: one row for each attempted movement of money.

use std::collections::HashSet;

use domain::{AccountName, Money, OrderId, PaymentMethod, TradeNo, TransactionId};
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::orders::Order;

/// Moves the pending payments of orders to succeeded, each with the trade that paid it.
///
/// # Errors
/// [`DbError::Moved`] when one of them is no longer pending.
pub(super) async fn mark_succeeded(
    tx: &mut PgConnection,
    order_ids: &[OrderId],
    gateway_nos: &[&str],
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update payment_transactions t
        set status = 'succeeded', gateway_no = p.gateway_no, updated_at = $3
        from unnest($1::bpchar[], $2::text[]) as p (order_id, gateway_no)
        where t.order_id = p.order_id and t.action_type = 'payment' and t.status = 'pending'
        "#,
        order_ids as &[OrderId],
        gateway_nos as &[&str],
        now,
    )
    .execute(tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), order_ids.len())
}

/// Moves the pending payments of orders to failed.
///
/// # Errors
/// [`DbError::Moved`] when one of them is no longer pending.
pub(super) async fn mark_failed(
    tx: &mut PgConnection,
    order_ids: &[OrderId],
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let failed = fail_pending(tx, order_ids, now).await?;
    DbError::expect_rows(failed, order_ids.len())
}

/// Moves the pending payments of orders, if there are any, to failed, because another trade paid.
///
/// # Errors
/// [`DbError`].
pub(super) async fn mark_unused(
    tx: &mut PgConnection,
    order_ids: &[OrderId],
    now: OffsetDateTime,
) -> Result<(), DbError> {
    fail_pending(tx, order_ids, now).await.map(drop)
}

/// Moves the pending payments of orders to failed and returns how many there were.
async fn fail_pending(tx: &mut PgConnection, order_ids: &[OrderId], now: OffsetDateTime) -> Result<u64, DbError> {
    let done = sqlx::query!(
        r#"
        update payment_transactions
        set status = 'failed', updated_at = $2
        where order_id = any($1::bpchar[]) and action_type = 'payment' and status = 'pending'
        "#,
        order_ids as &[OrderId],
        now,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

/// A payment of an order beside the order's own: a late one, a second one, or one that only a case recorded.
pub struct ExtraPayment {
    /// A new UUIDv7.
    pub id: TransactionId,
    /// The order that the gateway names.
    pub order_id: OrderId,
    /// The gateway where it was paid.
    pub payment_method: PaymentMethod,
    /// The trade.
    pub gateway_no: TradeNo,
    /// The amount.
    pub amount: Money,
    /// When it was paid, by the gateway's clock.
    pub paid_at: OffsetDateTime,
    /// The account that received it, if it is not the order's.
    pub account: Option<AccountName>,
}

/// Records extra payments. If a trade has a row already, that row does not change.
///
/// # Errors
/// [`DbError`].
pub async fn note_extra(tx: &mut PgConnection, extra: &[ExtraPayment], now: OffsetDateTime) -> Result<(), DbError> {
    let ids: Vec<TransactionId> = extra.iter().map(|e| e.id).collect();
    let order_ids: Vec<OrderId> = extra.iter().map(|e| e.order_id).collect();
    let methods: Vec<&str> = extra.iter().map(|e| e.payment_method.as_str()).collect();
    let gateway_nos: Vec<&str> = extra.iter().map(|e| e.gateway_no.as_str()).collect();
    let amounts: Vec<Money> = extra.iter().map(|e| e.amount).collect();
    let paid_at: Vec<OffsetDateTime> = extra.iter().map(|e| e.paid_at).collect();
    let accounts: Vec<Option<&str>> = extra.iter().map(|e| e.account.as_ref().map(AccountName::as_str)).collect();
    sqlx::query!(
        r#"
        insert into payment_transactions
          (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at, updated_at,
           paid_at, account)
        select e.id, e.order_id, 'P' || e.id, e.payment_method, 'payment', e.amount, 'succeeded', e.gateway_no, $6, $6,
          e.paid_at, e.account
        from unnest($1::bpchar[], $2::bpchar[], $3::text[], $4::text[], $5::numeric[], $7::timestamptz[], $8::text[])
          as e (id, order_id, payment_method, gateway_no, amount, paid_at, account)
        on conflict (payment_method, gateway_no) where action_type = 'payment' do nothing
        "#,
        &ids as &[TransactionId],
        &order_ids as &[OrderId],
        &methods as &[&str],
        &gateway_nos as &[&str],
        &amounts as &[Money],
        now,
        &paid_at,
        &accounts as &[Option<&str>],
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Which of these trades have a row already.
///
/// # Errors
/// [`DbError`].
pub async fn recorded(
    tx: &mut PgConnection,
    gateway_nos: &[&str],
) -> Result<HashSet<(PaymentMethod, String)>, DbError> {
    let rows = sqlx::query!(
        r#"
        select payment_method as "payment_method: PaymentMethod", gateway_no as "gateway_no!"
        from payment_transactions
        where action_type = 'payment' and payment_method in ('alipay', 'wechat') and gateway_no = any($1)
        "#,
        gateway_nos as &[&str],
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|row| (row.payment_method, row.gateway_no)).collect())
}

/// A payment of an order, found by its trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// The id of its row.
    pub id: TransactionId,
    /// The gateway that received it.
    pub payment_method: PaymentMethod,
    /// What the buyer paid.
    pub amount: Money,
    /// The largest refunded total that the gateway has stated for it; zero if it never stated one.
    pub returned: Money,
    /// When it was paid, by the gateway's clock. An earlier release did not store that time; then it is the time of the
    /// row, by our clock.
    pub paid_at: OffsetDateTime,
}

/// The payment of an order that this trade made: the order's own or another one.
///
/// # Errors
/// [`DbError`].
pub async fn payment_of_trade(
    tx: &mut PgConnection,
    order: &Order,
    trade_no: &TradeNo,
) -> Result<Option<Payment>, DbError> {
    let row = sqlx::query!(
        r#"
        select id as "id: TransactionId", payment_method as "payment_method: PaymentMethod", amount as "amount: Money",
          returned_amount as "returned: Money",
          coalesce(paid_at, created_at) as "paid_at!"
        from payment_transactions
        where order_id = $1 and gateway_no = $2 and action_type = 'payment' and status = 'succeeded'
        -- Two gateways may use one number: the order's own counts first.
        order by payment_method = $3 desc
        limit 1
        "#,
        order.id as OrderId,
        trade_no.as_str(),
        order.payment_method.as_str(),
    );
    let own = order.paid_at.filter(|_| order.trade_no.as_ref() == Some(trade_no));
    let row = row.fetch_optional(tx).await?;
    Ok(row.map(|row| Payment {
        id: row.id,
        payment_method: row.payment_method,
        amount: row.amount,
        returned: row.returned,
        paid_at: own.unwrap_or(row.paid_at),
    }))
}

/// One movement of money.
#[derive(Debug, Clone)]
pub struct Movement {
    /// Our id.
    pub id: TransactionId,
    /// Our number, for the books.
    pub transaction_no: String,
    /// `payment` or `refund`.
    pub action_type: String,
    /// The amount.
    pub amount: Money,
    /// `pending`, `succeeded` or `failed`.
    pub status: String,
    /// The gateway's number, once it is known.
    pub gateway_no: Option<String>,
    /// By our clock.
    pub created_at: OffsetDateTime,
    /// By our clock.
    pub updated_at: OffsetDateTime,
}

/// Every movement of an order's money, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_order(db: impl PgExecutor<'_>, order_id: OrderId) -> Result<Vec<Movement>, DbError> {
    Ok(sqlx::query_as!(
        Movement,
        r#"
        select id as "id: TransactionId", transaction_no, action_type, amount as "amount: Money", status, gateway_no, created_at, updated_at
        from payment_transactions
        where order_id = $1
        order by id
        "#,
        order_id as OrderId,
    )
    .fetch_all(db)
    .await?)
}
