//! `hourly_stats`: what each hour brought, and how far the counting has come.

use domain::{OrderId, PaymentMethod};
use sqlx::{PgConnection, PgExecutor};
use time::{Date, OffsetDateTime};

use crate::error::DbError;

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

/// The rules by which hours are counted: since form 2 the extra payments stand beside the orders' own.
const FORM: i32 = 2;

/// Reads the progress, under a lock: one counts at a time. `None`: nothing was counted by the rules of today.
///
/// # Errors
/// [`DbError`].
pub async fn progress(tx: &mut PgConnection) -> Result<Option<Progress>, DbError> {
    let row = sqlx::query!("select seq, next_seq, hour, form from stats_progress for update");
    let row = row.fetch_optional(tx).await?.filter(|row| row.form == FORM);
    Ok(row.map(|row| Progress { seq: row.seq, next_seq: row.next_seq, hour: row.hour }))
}

/// Writes the progress.
///
/// # Errors
/// [`DbError`].
pub async fn note_progress(tx: &mut PgConnection, progress: Progress, now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into stats_progress (seq, next_seq, hour, refreshed_at, form) values ($1, $2, $3, $4, $5)
        on conflict on constraint stats_progress_pkey do update
        set seq = $1, next_seq = $2, hour = $3, refreshed_at = $4, form = $5
        "#,
        progress.seq,
        progress.next_seq,
        progress.hour,
        now,
        FORM,
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

/// The hours (since 1970) whose orders, payments or refunds the events after `seq` tell of: ids begin with their milliseconds.
///
/// An order that takes a late payment makes it its own, and so the payment's refunds: their hours change with it. Such an order
/// was closed before, so its version is above that of an order that was paid at once.
///
/// # Errors
/// [`DbError`].
pub async fn changed_hours(tx: &mut PgConnection, seq: i64) -> Result<Vec<i64>, DbError> {
    let rows = sqlx::query!(
        r#"
        with told as (
          select order_id, type, data from events where seq > $1
        ), honoured as (
          select order_id from told
          where type = 'order.paid' and order_id is not null and (data ->> 'order_version')::bigint > 2
        ), changed as (
          select order_id::text as id from told where order_id is not null
          union
          select data ->> 'refund_id' from told where data ? 'refund_id'
          union
          select t.id::text from honoured join payment_transactions t using (order_id) where t.action_type = 'payment'
          union
          select r.id::text from honoured join refund_records r using (order_id)
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
    let counted = sqlx::query!(
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
          -- Nobody placed those that were made to return a payment (`unplaced::NO_USER`).
          where o.user_id <> '-'
          group by h.hour, o.payment_method
        ), extra as (
          -- The first payment of an order has the order's id.
          select h.hour, t.payment_method, count(*) as payments, sum(t.amount) as amount
          from hours h join payment_transactions t on t.id >= h.first and t.id < h.past
          where t.id <> t.order_id and t.action_type = 'payment' and t.status = 'succeeded'
            and (select o.trade_no is distinct from t.gateway_no from payment_orders o where o.id = t.order_id)
          group by h.hour, t.payment_method
        ), asked as (
          -- Looked up one by one (`limit`): a join may be planned as a scan of all transactions.
          select h.hour, r.status, r.refund_amount, p.payment_method, p.own
          from hours h join refund_records r on r.id >= h.first and r.id < h.past
          cross join lateral (
            select p.payment_method, o.trade_no is not distinct from p.gateway_no as own
            from payment_transactions p join payment_orders o on o.id = p.order_id
            where p.id = r.transaction_id
            limit 1
          ) as p
        ), refunded as (
          select r.hour, r.payment_method,
            count(*) filter (where r.own) as refunds,
            count(*) filter (where r.own and r.status = 'succeeded') as succeeded,
            count(*) filter (where r.own and r.status = 'failed') as failed,
            coalesce(sum(r.refund_amount) filter (where r.own and r.status = 'succeeded'), 0) as amount,
            count(*) filter (where not r.own) as extra_refunds,
            coalesce(sum(r.refund_amount) filter (where not r.own and r.status = 'succeeded'), 0) as extra_amount
          from asked r
          group by r.hour, r.payment_method
        )
        insert into hourly_stats
          (hour, payment_method, orders, paid, returned, amount, settle_seconds, refunds, refunds_succeeded,
           refunds_failed, refunded_amount, extra_payments, extra_amount, extra_refunds, extra_refunded, refreshed_at)
        select hour, payment_method, coalesce(o.orders, 0), coalesce(o.paid, 0), coalesce(o.returned, 0),
          coalesce(o.amount, 0), coalesce(o.settle_seconds, 0)::float8, coalesce(r.refunds, 0), coalesce(r.succeeded, 0),
          coalesce(r.failed, 0), coalesce(r.amount, 0), coalesce(e.payments, 0), coalesce(e.amount, 0),
          coalesce(r.extra_refunds, 0), coalesce(r.extra_amount, 0), $4
        from placed o full join refunded r using (hour, payment_method) full join extra e using (hour, payment_method)
          -- An hour that has lost its last payment is counted as well.
          full join (select hour, payment_method from hourly_stats join hours using (hour)) k using (hour, payment_method)
        on conflict on constraint hourly_stats_pkey do update
        set orders = excluded.orders, paid = excluded.paid, returned = excluded.returned, amount = excluded.amount,
          settle_seconds = excluded.settle_seconds, refunds = excluded.refunds,
          refunds_succeeded = excluded.refunds_succeeded, refunds_failed = excluded.refunds_failed,
          refunded_amount = excluded.refunded_amount, extra_payments = excluded.extra_payments,
          extra_amount = excluded.extra_amount, extra_refunds = excluded.extra_refunds,
          extra_refunded = excluded.extra_refunded, refreshed_at = excluded.refreshed_at
        "#,
        &hours.iter().map(|hour| hour.begin).collect::<Vec<_>>(),
        &hours.iter().map(|hour| hour.first).collect::<Vec<_>>() as &[OrderId],
        &hours.iter().map(|hour| hour.past).collect::<Vec<_>>() as &[OrderId],
        now,
    );
    counted.execute(tx).await?;
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
    /// Refunds of the orders' own payments, requested that day.
    pub refunds: i64,
    /// Of these, returned.
    pub refunds_succeeded: i64,
    /// Of these, failed.
    pub refunds_failed: i64,
    /// What those that succeeded returned, in yuan.
    pub refunded_amount: String,
    /// Late and second payments that were recorded that day and that no order took.
    pub extra_payments: i64,
    /// What they brought, in yuan.
    pub extra_amount: String,
    /// Refunds of such payments, requested that day.
    pub extra_refunds: i64,
    /// What those of them that succeeded returned, in yuan.
    pub extra_refunded: String,
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
          sum(refunded_amount)::text as "refunded_amount!", sum(extra_payments)::bigint as "extra_payments!",
          sum(extra_amount)::text as "extra_amount!", sum(extra_refunds)::bigint as "extra_refunds!",
          sum(extra_refunded)::text as "extra_refunded!"
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
