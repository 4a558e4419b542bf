//! Rows to export, a place for their files, and ways to disturb an export.

use std::path::PathBuf;
use std::sync::Arc;

use domain::{OrderId, RefundId, first_id_at};
use export::desk::Desk;
use export::make::Made;
use export::write::Progress;
use export::{ExportError, Format, Limits, Selection, Task, make};
use runtime::clock::Clock;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgPool, Postgres};
use store::tables::order_list::OrderFilter;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// When the newest order was placed: 2026-11-29 00:30:05 in Beijing.
pub const AT: OffsetDateTime = datetime!(2026-11-28 16:30:05.75 UTC);

pub async fn set(db: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Orders ORDER_0 to ORDER_5 of 10.00 yuan, placed so many hours before [`AT`].
pub async fn placed(db: &PgPool) -> Vec<String> {
    testkit::make_up_facts(db).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        let at = AT - Duration::hours(n);
        let id = OrderId::from_u128(first_id_at(at) | n.unsigned_abs() as u128).to_string();
        set(
            db,
            &format!(
                "insert into payment_orders (id, user_id, order_no, product_type, subject, amount, payment_method, scene,
                    account, expires_at, prepay, created_at, updated_at)
                select '{id}', 'u_{n}', 'ORDER_{n}', 'membership', 'one month', 10, 'wechat', 'native', 'main',
                    at + interval '30 minutes', '{{}}', at, at
                from (select timestamptz '{at}' as at) times"
            ),
        )
        .await;
        ids.push(id);
    }
    ids
}

/// A payment of an order, with a refund that may be in any state.
pub async fn refunded(db: &PgPool, order: &str, n: u8, columns: &str, values: &str) -> String {
    let at = AT + Duration::hours(n.into());
    let id = RefundId::from_u128(first_id_at(at) | u128::from(n)).to_string();
    let payment = format!("{n:0>32}");
    set(
        db,
        &format!(
            "insert into payment_transactions (id, order_id, transaction_no, payment_method, action_type, amount, status,
                gateway_no, created_at, updated_at, account)
            select '{payment}', id, 'T_{n}', payment_method, 'payment', amount, 'succeeded', '42000022192022112900{n}', '{at}',
                '{at}', account from payment_orders where id = '{order}';
            insert into refund_records (id, order_id, transaction_id, refund_no, created_at, updated_at, {columns})
            values ('{id}', '{order}', '{payment}', 'REFUND_{n}', '{at}', '{at}', {values})"
        ),
    )
    .await;
    id
}

/// A folder of its own for a test, deleted at its end.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Place {
        let path = std::env::temp_dir().join(format!("exports-{:032x}", Clock::system().fresh_bits()));
        std::fs::create_dir(&path).unwrap();
        Place(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of all files, also below.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if name != "lock" {
                    found.push(name);
                }
            }
        }
        found.sort_unstable();
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn orders(format: Format) -> Task {
    let selection = Selection::Orders(OrderFilter::default());
    Task { selection, format, filters: "无".to_owned(), at: AT, limits: Limits { page: 2, ..Limits::default() } }
}

/// Makes an export in the folder, as `out` and the end of its format.
pub async fn made(db: &PgPool, place: &Place, task: &Task) -> Result<Made, ExportError> {
    let path = place.file(&format!("out.{}", task.format));
    make(db, task, &path, &Arc::default(), &CancellationToken::new()).await
}

/// Puts a view in the place of the orders, in which one column is an expression. The rows are in `kept_orders`. The view has
/// the order of the list, so a page reads its own rows and no others.
pub async fn seen_with(db: &PgPool, column: &str, expression: &str) {
    let sql =
        "select string_agg(case when attname = $1 then $2 || ' as ' || attname::text else attname::text end, ', ' order by attnum)
        from pg_attribute where attrelid = 'payment_orders'::regclass and attnum > 0 and not attisdropped";
    let columns: String = sqlx::query_scalar(sql).bind(column).bind(expression).fetch_one(db).await.unwrap();
    set(db, "alter table payment_orders rename to kept_orders").await;
    set(db, &format!("create view payment_orders as select {columns} from kept_orders order by id desc")).await;
}

/// While it is held, an export stops at the order `ORDER_3` after it has read the pages before.
pub struct Barrier(PoolConnection<Postgres>);

impl Barrier {
    pub async fn set(db: &PgPool) -> Barrier {
        // The planner takes a stable function for one that may be left out, so the sums do not wait.
        set(
            db,
            "create function passed() returns varchar stable language plpgsql as
            'begin perform pg_advisory_lock_shared(77); return null; end'",
        )
        .await;
        let subject = "case when order_no = 'ORDER_3' then coalesce(passed(), subject) else subject end";
        seen_with(db, "subject", subject).await;
        let mut connection = db.acquire().await.unwrap();
        sqlx::query("select pg_advisory_lock(77)").execute(&mut *connection).await.unwrap();
        Barrier(connection)
    }

    pub async fn open(mut self) {
        sqlx::query("select pg_advisory_unlock(77)").execute(&mut *self.0).await.unwrap();
    }
}

/// Waits until it is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + std::time::Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < patience, "{what}");
        sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Waits until so many rows are written.
pub async fn written(progress: &Progress, rows: i64) {
    until("rows are written", || progress.written() == rows).await;
}

/// A desk that pages by two rows, with a clock that stands still.
pub fn desk(db: &PgPool, place: &Place) -> Desk {
    let limits = Limits { page: 2, rows: 6 };
    Desk::new(db.clone(), place.file("exports"), Clock::fixed(AT), limits)
}
