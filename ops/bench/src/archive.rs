//! A year of orders, for what the merchant's people search and list.

use anyhow::{Context, Result};
use sqlx::PgPool;

/// How many orders one statement inserts.
const AT_ONCE: u32 = 250_000;

/// Empties the tables and inserts the orders of the last 365 days, with their payments, refunds, cases and events;
/// `progress` receives the number of orders.
pub(crate) async fn fill(db: &PgPool, size: u32, progress: impl Fn(u32)) -> Result<()> {
    crate::database::refill(db, 0).await?;
    run(db, "alter table events disable trigger user").await?;
    for first in (1..=size).step_by(AT_ONCE as usize) {
        let last = size.min(first + AT_ONCE - 1);
        let fill = sqlx::query(ORDERS).bind(i64::from(first)).bind(i64::from(last)).bind(i64::from(size));
        fill.execute(db).await.context("placing the orders of a year")?;
        progress(last);
    }
    for fill in [PAYMENTS, REFUNDS, CASES, EVENTS, "alter table events enable trigger user"] {
        run(db, fill).await?;
    }
    for table in ["payment_orders", "payment_transactions", "refund_records", "cases", "events"] {
        run(db, &format!("vacuum analyze {table}")).await?;
    }
    Ok(())
}

async fn run(db: &PgPool, sql: &str) -> Result<()> {
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db).await.context("filling the tables with a year of orders")?;
    Ok(())
}

/// Of a hundred orders, 80 are paid, 18 are closed and two have refunds. Each user has a hundred. An account, a product
/// and a state are rare: one order in a thousand, in a thousand, and in ten thousand.
const ORDERS: &str = "
insert into payment_orders
  (id, user_id, order_no, merchant_order_no, vouched_by, voucher, product_type, subject, amount, payment_method, scene, account,
   status, is_closed, trade_no, refunded_amount, extra_state, expires_at, paid_at, closed_at, client_ip, metadata, prepay,
   version, created_at, updated_at)
select
  lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'),
  'archive-' || (n / 100 + n % 100 * 37) % greatest($3 / 100, 1),
  to_char(at at time zone 'Asia/Shanghai', 'YYMMDD') || substr(md5(n::text), 1, 26),
  'M' || upper(substr(md5('m' || n), 1, 20)), 'backend', 'key archive',
  case when n % 1000 = 3 then 'poster' when n % 10 = 0 then 'book' else 'membership' end, 'bench',
  0.01 + n * 7919 % 100000 / 100.0, case n % 2 when 1 then 'alipay' else 'wechat' end,
  case n % 4 when 0 then 'native' when 1 then 'page' when 2 then 'jsapi' else 'qr' end,
  case when n % 1000 = 5 then 'third' when n % 4 = 0 then 'second' else 'main' end,
  status, status = 'closed',
  case when status <> 'closed' then
    case n % 2 when 1 then to_char(at, 'YYYYMMDD') || '22001' else '4200002' || to_char(at, 'YYYYMMDD') end
      || lpad(n::text, 13, '0')
  end,
  case status when 'refunded' then 0.01 + n * 7919 % 100000 / 100.0 when 'partially_refunded' then 0.01 else 0 end,
  case when status = 'closed' and n % 5000 = 85 then 'held' end,
  at + interval '15 minutes', case when status <> 'closed' then at + interval '1 minute' end,
  case when status = 'closed' then at + interval '15 minutes' end, '127.0.0.1', '{\"shop\": \"bench\"}',
  jsonb_build_object('filler', repeat('x', 300)), 2, at, at
from (
  select n, now() - interval '365 days' * (($3 - n)::float8 / $3) as at,
    case when n % 10000 = 11 then 'refunding' when n % 100 < 80 then 'paid' when n % 100 < 98 then 'closed'
      when n % 100 = 98 then 'refunded' else 'partially_refunded' end as status
  from generate_series($1, $2) n
) as made";

const PAYMENTS: &str = "
insert into payment_transactions
  (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at, updated_at)
select id, id, 'P' || id, payment_method, 'payment', amount, 'succeeded', trade_no, created_at, updated_at
from payment_orders
where trade_no is not null
order by id";

const REFUNDS: &str = "
insert into refund_records
  (id, order_id, transaction_id, refund_no, refund_amount, status, gateway_refund_no, requested_by, origin, outside_key,
   succeeded_at, created_at, updated_at)
select id, id, id, 'R' || order_no, amount, case status when 'refunding' then 'processing' else 'succeeded' end,
  case when status <> 'refunding' then '50000' || trade_no end,
  case when product_type = 'poster' then 'key poster-desk' else 'user ' || user_id end,
  case when account = 'third' then 'outside' else 'service' end, case when account = 'third' then id end,
  case when status <> 'refunding' then created_at end, created_at, updated_at
from payment_orders
where status in ('refunding', 'refunded', 'partially_refunded')
order by id";

/// One late payment in ten waits for people.
const CASES: &str = "
insert into cases (id, kind, order_id, subject_ref, evidence, status, resolution, resolved_by, created_at, updated_at)
select id, 'late_payment', id, '42' || order_no, '{}', state, case state when 'resolved' then 'refund' end,
  case state when 'resolved' then 'bench' end, created_at, updated_at
from (
  select *, case when row_number() over (order by id desc) % 10 = 1 then 'open' else 'resolved' end as state
  from payment_orders
  where extra_state is not null
) as late
order by id";

/// Events are deleted after some time; those of the last three days are there.
const EVENTS: &str = "
insert into events (event_id, type, order_id, data, occurred_at, published_at)
select 'order.paid:' || id, 'order.paid', id, jsonb_build_object('order_id', id, 'filler', repeat('x', 300)), paid_at, paid_at
from payment_orders
where trade_no is not null and created_at > now() - interval '3 days'
order by id";

/// The texts of a query, in a random choice: at most `wanted`, at least one.
pub(crate) async fn sample(db: &PgPool, column: &str, table: &str, wanted: usize) -> Result<Vec<String>> {
    let sql = format!(
        "select {column}::text from {table} tablesample bernoulli (
           (select least(100, 200.0 * {wanted} / greatest(count(*), 1)) from {table})
         ) where {column} is not null order by random() limit {wanted}"
    );
    let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_all(db)
        .await
        .with_context(|| format!("choosing among {column} of {table}"))?;
    anyhow::ensure!(!found.is_empty(), "{table} has no {column}");
    Ok(found)
}
