//! `refund_records`: creating refunds, and the moves of a refund. Lock the order's row before the refund's.

use domain::{
    AccountName, Money, OrderId, PaymentMethod, RefundId, RefundNo, RefundOrigin, RefundStatus, TradeNo, TransactionId,
    UserId,
};
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::Wanted;
use crate::tables::reading::{Reading, text};

/// One row, with the trade that it returns.
#[derive(Debug, Clone)]
pub struct Refund {
    /// Our id, for paths and events.
    pub id: RefundId,
    /// The order.
    pub order_id: OrderId,
    /// The payment of the order that is returned.
    pub transaction_id: TransactionId,
    /// Our number for the gateways.
    pub refund_no: RefundNo,
    /// The amount to return.
    pub amount: Money,
    /// The state of the refund.
    pub status: RefundStatus,
    /// Who sent it to the gateway.
    pub origin: RefundOrigin,
    /// What the buyer reads, where the gateway shows it.
    pub reason: Option<String>,
    /// The gateway's number of the refund.
    pub gateway_refund_no: Option<String>,
    /// How many times we sent the request.
    pub attempts: i32,
    /// The last error, in words.
    pub last_error: Option<String>,
    /// When we last sent the request.
    pub sent_at: Option<OffsetDateTime>,
    /// The code of the gateway's last refusal.
    pub refused_code: Option<String>,
    /// Who requested it.
    pub requested_by: String,
    /// The person who approved the request, or the first of two.
    pub approved_by: Option<String>,
    /// Who declined or withdrew it.
    pub ended_by: Option<String>,
    /// Why it was declined.
    pub decline_reason: Option<String>,
    /// The attempt that the gateway refused for the merchant's balance.
    pub short_attempt: Option<i32>,
    /// When the money was returned, by the gateway's clock if the gateway states it.
    pub succeeded_at: Option<OffsetDateTime>,
    /// By our clock.
    pub created_at: OffsetDateTime,
    /// By our clock.
    pub updated_at: OffsetDateTime,
    /// The trade of the payment.
    pub trade_no: TradeNo,
    /// The amount of the payment.
    pub payment_amount: Money,
    /// The gateway of the payment, which also returns it.
    pub payment_method: PaymentMethod,
    /// The account of the payment, if it is not the order's.
    pub account: Option<AccountName>,
}

impl Refund {
    /// Whether the gateway's last answer to a request was a refusal for the merchant's balance, and the refund waits.
    pub fn waits_for_balance(&self) -> bool {
        self.status == RefundStatus::Processing && self.short_attempt == Some(self.attempts)
    }

    /// Whether it is a request, or ended before it was sent. The gateway cannot know it.
    pub fn was_never_sent(&self) -> bool {
        match self.status {
            RefundStatus::Requested | RefundStatus::Declined => true,
            RefundStatus::Withdrawn => self.sent_at.is_none(),
            _ => false,
        }
    }
}

/// The columns of whole refunds, handed to another macro: one list for every query, and for errors. As with orders, an
/// impossible time is left out.
macro_rules! refund_columns {
    ($then:ident $($rest:tt)*) => {
        $then!(
            r#"
            select
              r.id as "id: RefundId", r.order_id as "order_id: OrderId", r.transaction_id as "transaction_id: TransactionId",
              r.refund_no as "refund_no: RefundNo", r.refund_amount as "amount: Money", r.status as "status: RefundStatus",
              r.origin as "origin: RefundOrigin", r.refund_reason as reason, r.gateway_refund_no, r.attempts, r.last_error, r.sent_at, r.refused_code,
              r.requested_by, r.approved_by, r.ended_by, r.decline_reason, r.short_attempt,
              case when r.succeeded_at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
                then r.succeeded_at end as succeeded_at,
              r.created_at, r.updated_at,
              p.gateway_no as "trade_no!: TradeNo", p.amount as "payment_amount: Money",
              p.payment_method as "payment_method: PaymentMethod", p.account as "account: AccountName"
            from refund_records r join payment_transactions p on p.id = r.transaction_id
            "#,
            $($rest)*
        )
    };
}

/// Reads refunds with these columns, and a clause.
macro_rules! read_refunds {
    ($columns:tt, $tail:tt $(, $argument:expr)* $(,)?) => { sqlx::query_as!(Refund, $columns + $tail $(, $argument)*) };
}

/// Reads whole refunds by a clause.
macro_rules! select_refunds {
    ($($rest:tt)*) => { refund_columns!(read_refunds $($rest)*) };
}

const REFUNDS: Reading =
    Reading { tables: &[("r", "refund_records"), ("p", "payment_transactions")], query: refund_columns!(text) };

/// One refund by its id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: impl PgExecutor<'_>, id: RefundId) -> Result<Option<Refund>, DbError> {
    select_refunds!("where r.id = $1", id as RefundId)
        .fetch_optional(db)
        .await
        .map_err(|error| REFUNDS.error(id, error))
}

/// Every refund of an order, oldest first. Under the order's lock the list does not change.
///
/// # Errors
/// [`DbError`].
pub async fn of_order(db: impl PgExecutor<'_>, order_id: OrderId) -> Result<Vec<Refund>, DbError> {
    select_refunds!("where r.order_id = $1 order by r.id", order_id as OrderId)
        .fetch_all(db)
        .await
        .map_err(|error| REFUNDS.error(format_args!("of order {order_id}"), error))
}

/// The refund with this number, if it is one of ours.
///
/// # Errors
/// [`DbError`].
pub async fn by_refund_no(db: impl PgExecutor<'_>, refund_no: &str) -> Result<Option<Refund>, DbError> {
    select_refunds!("where r.refund_no = $1", refund_no)
        .fetch_optional(db)
        .await
        .map_err(|error| REFUNDS.error(refund_no, error))
}

/// One page of a user's refunds, newest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_user(
    db: impl PgExecutor<'_>,
    user_id: &UserId,
    wanted: &Wanted<RefundId, RefundStatus>,
) -> Result<Vec<Refund>, DbError> {
    let (first, past) = wanted.id_range();
    let past = RefundId::from_u128(past).min(wanted.before.unwrap_or(RefundId::from_u128(u128::MAX)));
    // Through the user's orders. The id is compared as text: otherwise the planner walks the refunds of all users by
    // the primary key to save the sort.
    select_refunds!(
        r#"
        where r.order_id = any(array(
            select id from payment_orders where user_id = $1 and ($5::text is null or payment_method = $5)))
          and r.id::text < $2 and r.id::text >= $3
          and ($4::text is null or r.status = $4)
          and ($6::timestamptz is null or r.created_at >= $6)
          and ($7::timestamptz is null or r.created_at < $7)
        order by r.id::text desc
        limit $8
        "#,
        user_id.as_str(),
        past.to_string(),
        RefundId::from_u128(first).to_string(),
        wanted.status.map(RefundStatus::as_str),
        wanted.method.map(PaymentMethod::as_str),
        wanted.from,
        wanted.to,
        wanted.limit,
    )
    .fetch_all(db)
    .await
    .map_err(|error| REFUNDS.error(format_args!("of user {user_id}"), error))
}

/// What the job of a refund says of its wait.
#[derive(Debug, Clone)]
pub struct Wait {
    /// The refund.
    pub id: RefundId,
    /// What the worker stored last. Only some of these texts name what the refund waits for
    /// ([`domain::RefundFailure::read`]).
    pub note: String,
}

/// What the jobs of these refunds say of their waits. A refund that no worker has postponed yet is left out.
///
/// # Errors
/// [`DbError`].
pub async fn waits(db: impl PgExecutor<'_>, ids: &[RefundId]) -> Result<Vec<Wait>, DbError> {
    let waits = sqlx::query_as!(
        Wait,
        r#"
        select ref_id as "id!: RefundId", last_error as "note!"
        from jobs
        where kind = 'refund' and ref_id = any($1::bpchar[]) and last_error is not null
        "#,
        ids as &[RefundId],
    );
    Ok(waits.fetch_all(db).await?)
}

/// The content of a new refund. We store its number before any request to the gateway.
#[derive(Debug, Clone)]
pub struct NewRefund {
    /// A new UUIDv7.
    pub id: RefundId,
    /// The order.
    pub order_id: OrderId,
    /// The payment.
    pub transaction_id: TransactionId,
    /// A new number, or one derived from the trade that is returned.
    pub refund_no: RefundNo,
    /// The amount to return.
    pub amount: Money,
    /// What the buyer reads.
    pub reason: Option<String>,
    /// Who requests it.
    pub requested_by: String,
}

/// Writes the refund, its transaction and its job.
///
/// # Errors
/// [`DbError::Constraint`] `refund_records_in_flight` when another refund of the order is in flight, and
/// `refund_records_refund_no_key` when the number is used already.
pub async fn create(tx: &mut PgConnection, new: &NewRefund, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        with refund as (
          insert into refund_records
            (id, order_id, transaction_id, refund_no, refund_amount, refund_reason, requested_by, created_at, updated_at)
          values ($1, $2, $3, $4, $5, $6, $7, $8, $8)
        ), movement as (
          insert into payment_transactions
            (id, order_id, transaction_no, payment_method, action_type, amount, created_at, updated_at)
          select $1, $2, 'R' || $1, payment_method, 'refund', $5, $8, $8
          from payment_transactions where id = $3
        )
        insert into jobs (kind, ref_id, due_at, created_at) values ('refund', $1, now(), now())
        "#,
        new.id as RefundId,
        new.order_id as OrderId,
        new.transaction_id as TransactionId,
        new.refund_no.as_str(),
        new.amount as Money,
        new.reason,
        new.requested_by,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records that a request is about to be sent; a pending refund becomes processing. Commit this before you send the
/// request. Returns how many times it is sent then.
///
/// # Errors
/// [`DbError::Moved`] when the refund is no longer in flight.
pub async fn mark_sent(tx: &mut PgConnection, id: RefundId, now: OffsetDateTime) -> Result<i32, DbError> {
    let attempts = sqlx::query_scalar!(
        r#"
        update refund_records
        set status = 'processing', sent_at = $2, attempts = attempts + 1, refused_code = null, updated_at = $2
        where id = $1 and status in ('pending', 'processing')
        returning attempts
        "#,
        id as RefundId,
        now,
    )
    .fetch_optional(tx)
    .await?;
    attempts.ok_or(DbError::Moved)
}

/// Records the gateway's number of a refund that had none.
///
/// # Errors
/// [`DbError`].
pub async fn note_number(
    tx: &mut PgConnection,
    id: RefundId,
    gateway_refund_no: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        "update refund_records set gateway_refund_no = coalesce(gateway_refund_no, $2), updated_at = $3 where id = $1",
        id as RefundId,
        gateway_refund_no,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Changes the amount of a refund that is processing or abnormal, and of its transaction.
///
/// # Errors
/// [`DbError`].
pub async fn note_amount(
    tx: &mut PgConnection,
    id: RefundId,
    amount: Money,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        with refund as (
          update refund_records set refund_amount = $2, updated_at = $3
          where id = $1 and status in ('processing', 'abnormal')
          returning id
        )
        update payment_transactions t set amount = $2, updated_at = $3 from refund where t.id = refund.id
        "#,
        id as RefundId,
        amount as Money,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records an error that does not end the refund; `refused_code` only for a refusal. A failed refund keeps the words of its
/// failure, whatever a later query meets.
///
/// # Errors
/// [`DbError`].
pub async fn note_error(
    tx: &mut PgConnection,
    id: RefundId,
    refused_code: Option<&str>,
    error: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update refund_records
        set refused_code = coalesce($2, refused_code),
            last_error = case when status = 'failed' then last_error else $3 end, updated_at = $4
        where id = $1
        "#,
        id as RefundId,
        refused_code,
        error,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// One move of a refund, with what we learned about it.
#[derive(Debug, Clone)]
pub struct Move {
    /// The refund.
    pub id: RefundId,
    /// The state before.
    pub from: RefundStatus,
    /// The state after.
    pub to: RefundStatus,
    /// The gateway's number, if it is stated.
    pub gateway_refund_no: Option<String>,
    /// When the money was returned.
    pub succeeded_at: Option<OffsetDateTime>,
    /// The error of a refund that did not succeed.
    pub error: Option<String>,
}

/// Moves a refund and its transaction.
///
/// # Errors
/// [`DbError::Moved`] when the refund has left the state `from`.
pub async fn apply(tx: &mut PgConnection, step: &Move, now: OffsetDateTime) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update refund_records
        set status = $3, gateway_refund_no = coalesce($4, gateway_refund_no), succeeded_at = $5,
            last_error = coalesce($6, last_error), updated_at = $7
        where id = $1 and status = $2
        "#,
        step.id as RefundId,
        step.from.as_str(),
        step.to.as_str(),
        step.gateway_refund_no,
        step.succeeded_at,
        step.error,
        now,
    )
    .execute(&mut *tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)?;
    let movement = match step.to {
        RefundStatus::Succeeded => "succeeded",
        RefundStatus::Failed | RefundStatus::Declined | RefundStatus::Withdrawn => "failed",
        RefundStatus::Requested | RefundStatus::Pending | RefundStatus::Processing | RefundStatus::Abnormal => {
            "pending"
        }
    };
    // If the gateway gave the refund no number, its transaction shows our number.
    sqlx::query!(
        r#"
        update payment_transactions t
        set status = $2, gateway_no = coalesce($3, t.gateway_no, r.refund_no), updated_at = $4
        from refund_records r
        where t.id = $1 and r.id = $1
        "#,
        step.id as RefundId,
        movement,
        step.gateway_refund_no,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}
