//! `hourly_stats`: what each hour brought, and how far the counting has come.

use sqlx::{PgConnection, PgExecutor};
use time::{Date, OffsetDateTime};

use super::DbError;
use crate::domain::{OrderId, PaymentMethod};

/// How far the counting has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Events up to this one were looked at.
    pub seq: i64,
    /// The newest event of the last round.
    pub next_seq: i64,
    /// Hours before this one are counted.
    pub hour: OffsetDateTime,
}

/// Reads the progress, under a lock: one counts at a time.
///
/// # Errors
/// [`DbError`].
pub async fn progress(tx: &mut PgConnection) -> Result<Option<Progress>, DbError> {
    Ok(sqlx::query_as!(Progress, "select seq, next_seq, hour from stats_progress for update")
        .fetch_optional(tx)
        .await?)
}

/// Writes the progress.
///
/// # Errors
/// [`DbError`].
pub async fn note_progress(tx: &mut PgConnection, progress: Progress, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into stats_progress (seq, next_seq, hour, refreshed_at) values ($1, $2, $3, $4)
        on conflict on constraint stats_progress_pkey do update
        set seq = $1, next_seq = $2, hour = $3, refreshed_at = $4
        "#,
        progress.seq,
        progress.next_seq,
        progress.hour,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The oldest order.
///
/// # Errors
/// [`DbError`].
pub async fn first_order(tx: &mut PgConnection) -> Result<Option<OrderId>, DbError> {
    let row = sqlx::query!(r#"select id as "id: OrderId" from payment_orders order by id limit 1"#);
    Ok(row.fetch_optional(tx).await?.map(|row| row.id))
}

/// The number of the newest event.
///
/// # Errors
/// [`DbError`].
pub async fn newest_event(tx: &mut PgConnection) -> Result<i64, DbError> {
    let row = sqlx::query!(r#"select coalesce(max(seq), 0) as "seq!" from events"#).fetch_one(tx).await?;
    Ok(row.seq)
}

/// The hours (since 1970) whose orders or refunds the events after `seq` tell of: ids begin with their milliseconds.
///
/// # Errors
/// [`DbError`].
pub async fn changed_hours(tx: &mut PgConnection, seq: i64) -> Result<Vec<i64>, DbError> {
    let rows = sqlx::query!(
        r#"
        with changed as (
          select order_id::text as id from events where seq > $1 and order_id is not null
          union
          select data ->> 'refund_id' from events where seq > $1 and data ? 'refund_id'
        )
        select distinct ('x' || substr(id, 1, 12))::bit(48)::bigint / 3600000 as "hour!" from changed
        "#,
        seq,
    );
    Ok(rows.fetch_all(tx).await?.into_iter().map(|row| row.hour).collect())
}

/// An hour, and the ids that were made in it.
#[derive(Debug, Clone, Copy)]
pub struct Hour {
    /// Its beginning.
    pub begin: OffsetDateTime,
    /// The least id.
    pub first: OrderId,
    /// The least id of the next hour.
    pub past: OrderId,
}

/// Counts hours anew.
///
/// # Errors
/// [`DbError`].
pub async fn refresh(tx: &mut PgConnection, hours: &[Hour], now: OffsetDateTime) -> Result<(), DbError> {
    let begins: Vec<OffsetDateTime> = hours.iter().map(|hour| hour.begin).collect();
    let firsts: Vec<OrderId> = hours.iter().map(|hour| hour.first).collect();
    let pasts: Vec<OrderId> = hours.iter().map(|hour| hour.past).collect();
    sqlx::query!(
        r#"
        with hours as (
          select h.hour, h.first, h.past
          from unnest($1::timestamptz[], $2::bpchar[], $3::bpchar[]) as h (hour, first, past)
        ), placed as (
          select h.hour, o.payment_method, count(*) as orders,
            count(*) filter (where o.paid_at is not null) as paid,
            count(*) filter (where o.refunded_amount > 0) as returned,
            coalesce(sum(o.amount) filter (where o.paid_at is not null), 0) as amount,
            coalesce(sum(greatest(extract(epoch from o.paid_at - o.created_at), 0)), 0) as settle_seconds
          from hours h join payment_orders o on o.id >= h.first and o.id < h.past
          group by h.hour, o.payment_method
        ), asked as (
          -- Looked up one by one: a join may be planned as a scan of all transactions.
          select h.hour, r.status, r.refund_amount,
            (select p.payment_method from payment_transactions p where p.id = r.transaction_id) as payment_method
          from hours h join refund_records r on r.id >= h.first and r.id < h.past
        ), refunded as (
          select r.hour, r.payment_method, count(*) as refunds,
            count(*) filter (where r.status = 'succeeded') as succeeded,
            count(*) filter (where r.status = 'failed') as failed,
            coalesce(sum(r.refund_amount) filter (where r.status = 'succeeded'), 0) as amount
          from asked r
          group by r.hour, r.payment_method
        )
        insert into hourly_stats
          (hour, payment_method, orders, paid, returned, amount, settle_seconds, refunds, refunds_succeeded,
           refunds_failed, refunded_amount, refreshed_at)
        select hour, payment_method, coalesce(o.orders, 0), coalesce(o.paid, 0), coalesce(o.returned, 0),
          coalesce(o.amount, 0), coalesce(o.settle_seconds, 0)::float8, coalesce(r.refunds, 0), coalesce(r.succeeded, 0),
          coalesce(r.failed, 0), coalesce(r.amount, 0), $4
        from placed o full join refunded r using (hour, payment_method)
        on conflict on constraint hourly_stats_pkey do update
        set orders = excluded.orders, paid = excluded.paid, returned = excluded.returned, amount = excluded.amount,
          settle_seconds = excluded.settle_seconds, refunds = excluded.refunds,
          refunds_succeeded = excluded.refunds_succeeded, refunds_failed = excluded.refunds_failed,
          refunded_amount = excluded.refunded_amount, refreshed_at = excluded.refreshed_at
        "#,
        &begins,
        &firsts as &[OrderId],
        &pasts as &[OrderId],
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// What a day in Beijing brought at one gateway. Sums are text: they may be larger than any amount.
#[derive(Debug, Clone)]
pub struct Day {
    /// In Beijing.
    pub day: Date,
    /// At which gateway.
    pub payment_method: PaymentMethod,
    /// Placed that day.
    pub orders: i64,
    /// Of these, paid since.
    pub paid: i64,
    /// Of these, with money returned since.
    pub returned: i64,
    /// What those that were paid brought, in yuan.
    pub amount: String,
    /// Seconds from creation to payment, all of them together.
    pub settle_seconds: i64,
    /// Asked for that day.
    pub refunds: i64,
    /// Of these, returned.
    pub refunds_succeeded: i64,
    /// Of these, failed.
    pub refunds_failed: i64,
    /// What those that succeeded returned, in yuan.
    pub refunded_amount: String,
}

/// The days of the hours from `from` until `to`.
///
/// # Errors
/// [`DbError`].
pub async fn days(db: impl PgExecutor<'_>, from: OffsetDateTime, to: OffsetDateTime) -> Result<Vec<Day>, DbError> {
    Ok(sqlx::query_as!(
        Day,
        r#"
        select
          ((hour + interval '8 hours') at time zone 'UTC')::date as "day!",
          payment_method as "payment_method: PaymentMethod",
          sum(orders)::bigint as "orders!", sum(paid)::bigint as "paid!", sum(returned)::bigint as "returned!",
          sum(amount)::text as "amount!", sum(settle_seconds)::bigint as "settle_seconds!", sum(refunds)::bigint as "refunds!",
          sum(refunds_succeeded)::bigint as "refunds_succeeded!", sum(refunds_failed)::bigint as "refunds_failed!",
          sum(refunded_amount)::text as "refunded_amount!"
        from hourly_stats
        where hour >= $1 and hour < $2
        group by 1, 2
        order by 1, 2
        "#,
        from,
        to,
    )
    .fetch_all(db)
    .await?)
}

/// When the counting last came by.
///
/// # Errors
/// [`DbError`].
pub async fn refreshed_at(db: impl PgExecutor<'_>) -> Result<Option<OffsetDateTime>, DbError> {
    let row = sqlx::query!("select refreshed_at from stats_progress").fetch_optional(db).await?;
    Ok(row.map(|row| row.refreshed_at))
}
