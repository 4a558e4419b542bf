//! The run's own database: created, filled, observed, dropped.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

/// The amount of every order.
pub(crate) const AMOUNT_FEN: i64 = 1234;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The number of the nth order.
pub(crate) fn order_no(order: u32) -> String {
    format!("B{order:012}")
}

/// The id of the nth order.
pub(crate) fn order_id(order: u32) -> String {
    format!("{}{order:020x}", id_prefix())
}

/// The beginning of the ids: the milliseconds at which the order was created, from which the relay derives the hour
/// to count. Here all orders were created at the start of the run.
pub(crate) fn id_prefix() -> &'static str {
    static PREFIX: LazyLock<String> = LazyLock::new(|| Uuid::now_v7().simple().to_string()[..12].to_owned());
    &PREFIX
}

/// The gateway's number of the order's payment, as [`pay`] writes it.
pub(crate) fn trade_no(order: u32) -> String {
    format!("42{order:026}")
}

/// See the module.
pub(crate) struct Database {
    server: Url,
    name: String,
    pub(crate) url: Url,
}

impl Database {
    pub(crate) async fn create(server: &Url) -> Result<Database> {
        let name = format!("bench_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(server.as_str()).await.context("connecting to PostgreSQL")?;
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::query(create).execute(&mut connection).await.context("creating a database")?;
        let mut url = server.clone();
        url.set_path(&name);
        Ok(Database { server: server.clone(), name, url })
    }

    pub(crate) async fn connect(&self) -> Result<PgPool> {
        let pool = PgPoolOptions::new().max_connections(2).connect(self.url.as_str()).await;
        pool.context("connecting to the run's database")
    }

    pub(crate) async fn drop(&self) -> Result<()> {
        let mut connection = PgConnection::connect(self.server.as_str()).await.context("connecting to PostgreSQL")?;
        let drop = AssertSqlSafe(format!("drop database if exists {} with (force)", self.name));
        sqlx::query(drop).execute(&mut connection).await.context("dropping the run's database")?;
        Ok(())
    }
}

/// Empties every table and inserts `orders` pending orders with their related rows, as `POST /v1/orders` leaves them.
pub(crate) async fn refill(db: &PgPool, orders: u32) -> Result<()> {
    let empty = "truncate payment_orders, payment_transactions, refund_records, refunds_of_a_day, order_credentials, callbacks, jobs, events, \
                 cases, dead_letters, idempotency_keys";
    sqlx::query(empty).execute(db).await.context("emptying the tables")?;
    place(db, orders).await
}

/// The same, but keeps what [`place_history`] has inserted.
pub(crate) async fn replace(db: &PgPool, orders: u32) -> Result<()> {
    for remove in [
        "truncate callbacks, jobs, events, cases, dead_letters, idempotency_keys",
        "delete from payment_transactions where id < 'f'",
        "delete from payment_orders where id < 'f'",
    ] {
        sqlx::query(remove).execute(db).await.context("removing the orders of the last repeat")?;
    }
    place(db, orders).await
}

/// How many orders one statement inserts.
const AT_ONCE: u32 = 250_000;

/// Inserts the orders `first` to `last` of those that were paid long ago, with their payments; `progress` receives the
/// progress.
pub(crate) async fn place_history(db: &PgPool, first: u32, last: u32, progress: impl Fn(u32)) -> Result<()> {
    let end = last;
    for first in (first..=end).step_by(AT_ONCE as usize) {
        let last = end.min(first + AT_ONCE - 1);
        for fill in [HISTORY, HISTORY_PAYMENTS] {
            let fill = sqlx::query(fill).bind(i64::from(first)).bind(i64::from(last));
            fill.execute(db).await.context("placing orders that were paid long ago")?;
        }
        progress(last);
    }
    Ok(())
}

/// Their ids begin with an f, and no other order's id does.
const HISTORY: &str = "
insert into payment_orders
  (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, status, trade_no, expires_at, paid_at,
   client_ip, metadata, prepay, version, created_at, updated_at)
select 'f' || lpad(to_hex(n), 31, '0'), 'bench-' || n % 100000, 'H' || md5(n::text), 'membership', 'bench', 12.34,
  case n % 2 when 1 then 'alipay' else 'wechat' end, case n % 2 when 1 then 'page' else 'native' end, 'main', 'paid', 'H' || n,
  now() - interval '1 year', now() - interval '1 year', '127.0.0.1', '{\"shop\": \"bench\"}',
  jsonb_build_object('filler', repeat('x', 300)), 2, now() - interval '1 year', now() - interval '1 year'
from generate_series($1, $2) n";

const HISTORY_PAYMENTS: &str = "
insert into payment_transactions
  (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at, updated_at)
select id, id, 'P' || id, payment_method, 'payment', amount, 'succeeded', trade_no, created_at, updated_at
from payment_orders
where id between ('f' || lpad(to_hex($1), 31, '0'))::bpchar and ('f' || lpad(to_hex($2), 31, '0'))::bpchar";

async fn place(db: &PgPool, orders: u32) -> Result<()> {
    let placing = sqlx::query(ORDERS).bind(i64::from(orders)).bind(id_prefix());
    placing.execute(db).await.context("placing orders")?;
    for fill in [TRANSACTIONS, JOBS] {
        sqlx::query(fill).execute(db).await.context("placing what belongs to orders")?;
    }
    for tidy in ["vacuum analyze payment_orders", "vacuum analyze payment_transactions", "vacuum analyze jobs"] {
        sqlx::query(tidy).execute(db).await.context("analysing the tables")?;
    }
    Ok(())
}

const ORDERS: &str = "
insert into payment_orders
  (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, expires_at, client_ip, metadata,
   prepay, created_at, updated_at)
select $2 || lpad(to_hex(n), 20, '0'), 'bench-' || n % 1000, 'B' || lpad(n::text, 12, '0'), 'membership', 'bench', 12.34,
  case n % 2 when 1 then 'alipay' else 'wechat' end, case n % 2 when 1 then 'page' else 'native' end, 'main',
  now() + interval '1 day', '127.0.0.1', '{\"shop\": \"bench\"}', jsonb_build_object('filler', repeat('x', 300)), now(), now()
from generate_series(1, $1) n";

const TRANSACTIONS: &str = "
insert into payment_transactions
  (id, order_id, transaction_no, payment_method, action_type, amount, created_at, updated_at)
select id, id, 'P' || id, payment_method, 'payment', amount, created_at, updated_at
from payment_orders
where id < 'f'
order by id";

const JOBS: &str = "
insert into jobs (kind, ref_id, due_at, created_at)
select 'check', id, expires_at, created_at
from payment_orders
where id < 'f'
order by id";

/// The number of orders whose close was requested.
pub(crate) async fn closes_requested(db: &PgPool) -> Result<i64> {
    let sql = "select count(*) from payment_orders where close_requested_at is not null";
    sqlx::query_scalar(sql).fetch_one(db).await.context("counting orders that are to end")
}

/// Marks the orders `first` to `last` as paid, as settling leaves them.
pub(crate) async fn pay(db: &PgPool, first: u32, last: u32) -> Result<()> {
    for pay in PAY {
        sqlx::query(pay).bind(order_id(first)).bind(order_id(last)).execute(db).await.context("paying orders")?;
    }
    Ok(())
}

const PAY: [&str; 3] = [
    "update payment_orders
     set status = 'paid', trade_no = '42' || lpad(substr(order_no, 2), 26, '0'), paid_at = now(), updated_at = now(), version = 2
     where id between $1::bpchar and $2::bpchar",
    "update payment_transactions
     set status = 'succeeded', gateway_no = orders.trade_no, updated_at = now()
     from payment_orders orders
     where order_id = orders.id and order_id between $1::bpchar and $2::bpchar",
    "delete from jobs where kind = 'check' and ref_id between $1::bpchar and $2::bpchar",
];

/// Makes every check due now.
pub(crate) async fn check_now(db: &PgPool) -> Result<()> {
    sqlx::query("update jobs set due_at = now() where kind = 'check'")
        .execute(db)
        .await
        .context("making checks due")?;
    Ok(())
}

/// Waits until every refund has ended.
pub(crate) async fn until_refunded(db: &PgPool, within: Duration) -> Result<()> {
    let waiting = "select exists (select from jobs where kind = 'refund')";
    until(db, waiting, within).await.context("waiting for every refund")
}

/// Verifies that this many refunds exist and all succeeded.
pub(crate) async fn check_refunded(db: &PgPool, refunds: u32) -> Result<()> {
    let counts = "select array[count(*), count(*) filter (where status = 'succeeded')] from refund_records";
    let counts: Vec<i64> = sqlx::query_scalar(counts).fetch_one(db).await?;
    ensure!(counts == [i64::from(refunds); 2], "of {refunds} refunds there are, and succeeded, {counts:?}");
    Ok(())
}

/// The number of waiting jobs of this kind.
pub(crate) async fn jobs(db: &PgPool, kind: &str) -> Result<f64> {
    let waiting: i64 = sqlx::query_scalar("select count(*) from jobs where kind = $1").bind(kind).fetch_one(db).await?;
    Ok(waiting as f64)
}

/// Waits until no order is pending. An order's check job is removed when it is paid, and the query is fast in a
/// table of any size.
pub(crate) async fn until_paid(db: &PgPool, within: Duration) -> Result<()> {
    let pending = "select exists (select from jobs where kind = 'check')";
    until(db, pending, within).await.context("waiting for every order to be paid")
}

/// Waits until the relay has published every event.
pub(crate) async fn until_published(db: &PgPool, within: Duration) -> Result<()> {
    let waiting = "select exists (select from events where published_at is null)";
    until(db, waiting, within).await.context("waiting for every event to be published")
}

async fn until(db: &PgPool, unfinished: &'static str, within: Duration) -> Result<()> {
    let since = Instant::now();
    while sqlx::query_scalar::<_, bool>(unfinished).fetch_one(db).await? {
        if since.elapsed() > within {
            bail!("not finished after {} s", within.as_secs());
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Verifies that every callback had its complete effect: a figure for incomplete work would be worthless.
pub(crate) async fn check_settled(db: &PgPool, orders: u32) -> Result<()> {
    let counts = "select array[
        (select count(*) from payment_orders where status = 'paid' and id < 'f'),
        (select count(*) from payment_transactions where status = 'succeeded' and id < 'f'),
        (select count(*) from events where type = 'order.paid'),
        (select count(*) from callbacks where verdict = 'settled')]";
    let counts: Vec<i64> = sqlx::query_scalar(counts).fetch_one(db).await?;
    let jobs: i64 = sqlx::query_scalar("select count(*) from jobs where kind = 'check'").fetch_one(db).await?;
    if counts.iter().any(|count| *count != i64::from(orders)) || jobs != 0 {
        bail!(
            "{orders} callbacks left paid orders, succeeded payments, events, settled callbacks {counts:?}, jobs {jobs}"
        );
    }
    Ok(())
}

/// Verifies that this many events of this type were written.
pub(crate) async fn check_events(db: &PgPool, kind: &str, expected: u32) -> Result<()> {
    let written =
        sqlx::query_scalar::<_, i64>("select count(*) from events where type = $1").bind(kind).fetch_one(db).await?;
    ensure!(i64::from(expected) == written, "{written} events {kind} were written, not {expected}");
    Ok(())
}

/// The number of callbacks that wait in the database because the broker did not accept them in time.
pub(crate) async fn callbacks_stored(db: &PgPool) -> Result<u32> {
    let stored: i64 = sqlx::query_scalar("select count(*) from jobs where kind = 'callback'").fetch_one(db).await?;
    Ok(u32::try_from(stored)?)
}

/// The server's version and the settings that determine its durability.
pub(crate) async fn settings(db: &PgPool) -> Result<String> {
    let mut settings = Vec::new();
    for show in ["show server_version", "show fsync", "show synchronous_commit", "show shared_buffers"] {
        settings.push(sqlx::query_scalar::<_, String>(show).fetch_one(db).await?);
    }
    let names = ["", "fsync ", "synchronous_commit ", "shared_buffers "];
    let named: Vec<String> = names.iter().zip(settings).map(|(name, value)| format!("{name}{value}")).collect();
    Ok(named.join(", "))
}
