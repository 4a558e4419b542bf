//! `hourly_stats`: totals for each hour, and the progress of the counting.

use domain::{OrderId, PaymentMethod};
use sqlx::{PgConnection, PgExecutor};
use time::{Date, OffsetDateTime};

use crate::error::DbError;

/// The progress of the counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The events up to this one are processed.
    pub seq: i64,
    /// The newest event in the last round.
    pub next_seq: i64,
    /// The hours before this one are counted.
    pub hour: OffsetDateTime,
}

/// The version of the counting rules. Since form 2, extra payments are counted apart from the orders' own payments.
const FORM: i32 = 2;

/// Reads the progress and locks it, so only one process counts at a time. `None`: nothing was counted by the current
/// rules.
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

/// The hours (since 1970) of the orders, payments and refunds that the events after `seq` are about. The ids give the
/// hours: each id begins with its milliseconds.
///
/// When an order accepts a late payment, the payment and its refunds become the order's own, so their hours change too.
/// Such an order was closed first, so its version is higher than that of an order that was paid at once.
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

/// An hour, and the range of ids that were made in it.
#[derive(Debug, Clone, Copy)]
pub struct Hour {
    /// The beginning of the hour.
    pub begin: OffsetDateTime,
    /// The smallest id of the hour.
    pub first: OrderId,
    /// The smallest id of the next hour.
    pub past: OrderId,
}

/// Counts these hours again.
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
            count(*) filter (where r.own and r.status not in ('requested', 'declined', 'withdrawn')) as refunds,
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

/// The totals of one day (Beijing time) at one gateway. The sums are text, because they may exceed the largest
/// [`domain::Money`].
#[derive(Debug, Clone)]
pub struct Day {
    /// The day in Beijing.
    pub day: Date,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// Orders placed on that day.
    pub orders: i64,
    /// Those of them that are paid now.
    pub paid: i64,
    /// Those of them with money returned now.
    pub returned: i64,
    /// The sum of the paid orders, in yuan.
    pub amount: String,
    /// The sum of the seconds from creation to payment.
    pub settle_seconds: i64,
    /// Refunds of the orders' own payments, requested that day.
    pub refunds: i64,
    /// Those of them that succeeded.
    pub refunds_succeeded: i64,
    /// Those of them that failed.
    pub refunds_failed: i64,
    /// The sum of those that succeeded, in yuan.
    pub refunded_amount: String,
    /// Late and second payments that were recorded on that day and that no order accepted.
    pub extra_payments: i64,
    /// The sum of these payments, in yuan.
    pub extra_amount: String,
    /// Refunds of such payments, requested that day.
    pub extra_refunds: i64,
    /// The sum of those that succeeded, in yuan.
    pub extra_refunded: String,
}

/// The days that the hours from `from` until `to` belong to.
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

/// When the counting last ran.
///
/// # Errors
/// [`DbError`].
pub async fn refreshed_at(db: impl PgExecutor<'_>) -> Result<Option<OffsetDateTime>, DbError> {
    let row = sqlx::query!("select refreshed_at from stats_progress").fetch_optional(db).await?;
    Ok(row.map(|row| row.refreshed_at))
}
