//! How the pool handles sessions with a hidden fault: left by a host that vanished, on a read-only server,
//! with an open transaction, or with no server at the other end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgPool};
use store::DbError;
use testkit::Relay;
use tokio::time::{Instant, timeout};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use url::Url;

/// The address of a test's database, for a pool like that of a process.
pub fn url_of(db: &PgPool) -> SecretString {
    SecretString::from(String::from(url(db)))
}

fn url(db: &PgPool) -> Url {
    let mut url = Url::parse(&testkit::env("DATABASE_URL")).unwrap();
    url.set_path(db.connect_options().get_database().unwrap());
    url
}

/// Without them a host that vanishes holds its locks, the relay's lead among them, for hours.
#[sqlx::test]
async fn a_session_of_a_host_that_vanished_ends_soon(db: PgPool) {
    let pool = store::connect::connect(&url_of(&db), "test", 1).await.unwrap();
    let setting = async |name: &str| -> i64 {
        sqlx::query_scalar("select setting::bigint from pg_settings where name = $1")
            .bind(name.to_owned())
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    let after = setting("tcp_keepalives_idle").await
        + setting("tcp_keepalives_interval").await * setting("tcp_keepalives_count").await;
    assert!((1..=30).contains(&after), "{after} s");
    assert!((1..=10_000).contains(&setting("tcp_user_timeout").await));
}

/// After a failover a session may be on a read-only server: no row is at fault, and the pool closes the session.
#[sqlx::test]
async fn a_session_that_only_reads_blames_no_row_and_is_replaced(db: PgPool) {
    sqlx::query("create table written (n int)").execute(&db).await.unwrap();
    let pool = store::connect::connect(&url_of(&db), "test", 1).await.unwrap();
    let backend = async || sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&pool).await.unwrap();
    let write = async || sqlx::query("insert into written values (1)").execute(&pool).await.map_err(DbError::from);
    let first = backend().await;
    assert_eq!(backend().await, first, "one that writes is kept");
    // Sessions see this on a standby, and on a primary that an operator has fenced.
    sqlx::query("set default_transaction_read_only = on").execute(&pool).await.unwrap();
    assert_ne!(backend().await, first, "one that only reads is not");
    write().await.unwrap();

    let mut reads = sqlx::PgConnection::connect_with(&db.connect_options()).await.unwrap();
    reads.execute("set default_transaction_read_only = on").await.unwrap();
    let refused = sqlx::query("insert into written values (2)").execute(&mut reads).await;
    let refused = DbError::from(refused.unwrap_err());
    assert!(matches!(refused, DbError::Unavailable(_)) && !refused.blames_the_rows(), "{refused:?}");
}

/// A migration that makes a column longer changes the result of statements that a session has prepared. They fail once, and
/// no session that may hold one is used again.
#[sqlx::test]
async fn a_statement_from_before_a_migration_fails_once(db: PgPool) {
    sqlx::raw_sql("create table users (name varchar(32)); insert into users values ('u1')").execute(&db).await.unwrap();
    let pool = store::connect::connect(&url_of(&db), "test", 2).await.unwrap();
    let read = async || {
        let name = sqlx::query_scalar::<_, String>("select name from users where name = $1").bind("u1");
        name.fetch_one(&pool).await.map_err(DbError::from)
    };
    // Both sessions have prepared it: one reads while the other is taken.
    for _ in 0..2 {
        let (first, second) = tokio::join!(read(), read());
        assert_eq!([first.unwrap(), second.unwrap()], ["u1", "u1"]);
    }
    let mut migration = sqlx::PgConnection::connect_with(&db.connect_options()).await.unwrap();
    migration.execute("alter table users alter column name type varchar(64)").await.unwrap();
    let refused = read().await.unwrap_err();
    assert!(matches!(refused, DbError::Unavailable(_)) && !refused.blames_the_rows(), "{refused:?}");
    for _ in 0..4 {
        assert_eq!(read().await.unwrap(), "u1");
    }
}

/// sqlx 0.9.0 gives a connection back with an open transaction when `begin()` is dropped halfway
/// (transact-rs/sqlx#4393). The pool's own hook has to end it. A pool without the hook goes through the same and loses
/// rows that it has acknowledged: if it does not, this shows nothing.
#[sqlx::test]
async fn a_cancelled_begin_loses_no_row(db: PgPool) {
    sqlx::query("create table kept (pool text, n int, primary key (pool, n))").execute(&db).await.unwrap();
    let ours = store::connect::connect(&url_of(&db), "test", 3).await.unwrap();
    let without = PgPoolOptions::new()
        .max_connections(3)
        .test_before_acquire(false)
        .connect_with((*db.connect_options()).clone())
        .await
        .unwrap();
    for (name, pool) in [("ours", ours), ("without", without)] {
        for n in 0..300 {
            // Before, while and after BEGIN is on the wire: the first waits are those of the hook.
            dropped_after(usize::try_from(n % 7).unwrap(), pool.begin()).await;
            let insert = sqlx::query("insert into kept values ($1, $2)").bind(name).bind(n);
            insert.execute(&pool).await.unwrap();
        }
        pool.close().await;
    }
    let mut fresh = sqlx::PgConnection::connect_with(&db.connect_options()).await.unwrap();
    let mut kept = async |name: &str| -> i64 {
        let count = sqlx::query_scalar("select count(*) from kept where pool = $1").bind(name.to_owned());
        count.fetch_one(&mut fresh).await.unwrap()
    };
    assert_eq!(kept("ours").await, 300);
    let without = kept("without").await;
    assert!(without < 300, "{without}: no begin() was dropped halfway");
}

/// Polls `future` until it has had to wait for `waits` + 1 answers, then drops it; a timer would be a thousand times
/// too coarse to hit the moment.
async fn dropped_after<F: Future>(waits: usize, future: F) {
    let mut future = std::pin::pin!(future);
    let mut left = waits;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Pending if left > 0 => {
            left -= 1;
            Poll::Pending
        }
        _ => Poll::Ready(()),
    })
    .await;
}

/// A server writes warnings into its log: one for each use of a connection would fill its disk.
#[sqlx::test]
async fn using_a_connection_logs_no_warning(db: PgPool) {
    let pool = store::connect::connect(&url_of(&db), "test", 1).await.unwrap();
    let warnings = Warnings::default();
    let _here = tracing_subscriber::registry().with(warnings.clone()).set_default();
    pool.execute("set client_min_messages = 'warning'").await.unwrap();
    for _ in 0..3 {
        at_rest(&pool, 1).await;
        store::connect::ping(&pool).await.unwrap();
    }
    assert_eq!(warnings.0.load(Ordering::SeqCst), 0);
    pool.execute("rollback").await.unwrap();
    assert_eq!(warnings.0.load(Ordering::SeqCst), 1, "a warning would have been seen");
}

/// Counts what servers warn of.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::postgres::notice" {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A pool of two by a way of its own, which can be lost.
async fn by_a_relay(db: &PgPool) -> (PgPool, Relay) {
    let mut url = url(db);
    let relay = Relay::to(format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())).await;
    url.set_port(Some(relay.port())).unwrap();
    (store::connect::connect(&SecretString::from(String::from(url)), "test", 2).await.unwrap(), relay)
}

/// Waits until this many connections rest in the pool.
async fn at_rest(pool: &PgPool, count: usize) {
    let back = async {
        while pool.num_idle() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), back).await.expect("the connections come back");
}

#[sqlx::test]
async fn resting_connections_whose_server_has_vanished_are_replaced_within_one_acquire(db: PgPool) {
    let (pool, relay) = by_a_relay(&db).await;
    let (first, second) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    drop((first, second));
    at_rest(&pool, 2).await;
    relay.strand();
    for _ in 0..2 {
        store::connect::ping(&pool).await.unwrap();
    }
    assert_eq!(relay.accepted(), 4, "each had its turn");
}

/// sqlx tests a returned connection without a time limit: its place in the pool would be lost permanently.
#[sqlx::test]
async fn connections_in_use_whose_server_has_vanished_give_their_places_back(db: PgPool) {
    let (pool, relay) = by_a_relay(&db).await;
    let (mut statement, mut transaction) = (pool.acquire().await.unwrap(), pool.begin().await.unwrap());
    relay.strand();
    for silent in [&mut *statement, &mut *transaction] {
        let answer = timeout(Duration::from_millis(200), store::connect::ping(silent)).await;
        assert!(answer.is_err(), "nobody answers: {answer:?}");
    }
    drop(statement);
    drop(transaction);
    assert!(matches!(store::connect::ping(&pool).await, Err(DbError::Unavailable(_))), "both places are taken");
    let since = Instant::now();
    while let Err(error) = store::connect::ping(&pool).await {
        assert!(since.elapsed() < Duration::from_secs(30), "the places are lost: {error}");
    }
    let (first, second) = (pool.acquire().await, pool.acquire().await);
    assert!(first.is_ok() && second.is_ok(), "both places are back");
}
