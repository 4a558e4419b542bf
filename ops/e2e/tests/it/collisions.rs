//! Transactions that the database ends because another was in the way: serialization failures and deadlocks, by the
//! dozen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{SOON, Setup, World, eventually};
use runtime::service::Service;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::sleep;

const BUYERS: usize = 6;
/// Of each kind, before it counts as having happened.
const ENOUGH: usize = 10;

/// Every role of the service works so in the database of this world, from its next session on.
async fn set_for_every_role(world: &World, setting: &str, value: &str) {
    let database = sqlx::query_scalar::<_, String>("select current_database()::text").fetch_one(&world.db).await;
    let database = database.expect("the database answers");
    for service in Service::ALL {
        let (url, _) = world.addresses.login(service.as_str());
        let url = url::Url::parse(&url).expect("a URL");
        let sql = format!("alter role {} in database {database} set {setting} = '{value}'", url.username());
        sqlx::query(AssertSqlSafe(sql)).execute(&world.db).await.expect("the owner may set it");
    }
}

/// Locks a few orders again and again, in the opposite order to the service. A session that holds one and waits
/// for another of them waits for ever. The service's side is the one that is ended: it looks for a deadlock sooner.
async fn lock_the_wrong_way_round(world: &World, go_on: &AtomicBool) {
    let mut connection = PgConnection::connect(&world.addresses.database).await.expect("a connection");
    sqlx::query("set deadlock_timeout = '1min'").execute(&mut connection).await.expect("the owner may set it");
    while go_on.load(Ordering::Relaxed) {
        let sql =
            "select id::text from payment_orders where status in ('pending', 'refunding') order by id desc limit 6";
        let few = sqlx::query(sql).fetch_all(&mut connection).await.expect("the database answers");
        let mut tx = connection.begin().await.expect("a transaction");
        for row in few {
            let lock = sqlx::query("select 1 from payment_orders where id = $1::text::bpchar for update");
            lock.bind(row.get::<String, _>(0)).execute(&mut *tx).await.expect("not the one that is ended");
            // Real time: a transaction holds each lock for a while.
            sleep(Duration::from_millis(20)).await;
        }
        tx.rollback().await.expect("a rollback");
        sleep(Duration::from_millis(20)).await;
    }
}

fn occurrences(world: &World, what: &str) -> usize {
    world.logs().lines().filter(|line| line.contains(what)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serialization_failures_and_deadlocks_are_tried_again_and_lose_nothing() {
    let setup =
        Setup { apis: 2, workers: 3, check_workers: 2, refund_workers: 2, relays: 2, speed: 300.0, ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;
    set_for_every_role(&world, "default_transaction_isolation", "serializable").await;
    set_for_every_role(&world, "deadlock_timeout", "20ms").await;
    for process in world.processes() {
        process.terminate().await;
        process.start().await;
    }
    // Every callback four times at once, so that workers meet at the same order.
    world.gateways.faults(&json!({ "callbacks": { "parallel": 4 } })).await;
    let go_on = AtomicBool::new(true);
    let collide = async {
        eventually("transactions collide", SOON * 3, async || {
            let enough = occurrences(&world, "could not serialize access") >= ENOUGH
                && occurrences(&world, "deadlock detected") >= ENOUGH;
            sleep(Duration::from_millis(100)).await;
            enough.then_some(())
        })
        .await;
        go_on.store(false, Ordering::Relaxed);
    };
    let (_, made) =
        world.under_load(BUYERS, async { tokio::join!(lock_the_wrong_way_round(&world, &go_on), collide) }).await;
    for what in
        ["could not serialize access", "deadlock detected", "trying again", "next round will repeat", "A job failed"]
    {
        println!("{what}: {}", occurrences(&world, what));
    }
    assert!(made.paid >= 50 && made.returned >= 10, "hardly any load: {made:?}");
    world.all_completed(made).await;
    let deadlocks = world.number("select deadlocks from pg_stat_database where datname = current_database()").await;
    assert!(deadlocks >= Some(ENOUGH as i64), "{deadlocks:?} deadlocks");
    let mut repeated = Vec::new();
    for process in world.processes() {
        let metrics = process.metrics().await;
        assert_eq!(metrics.sum("amqp_acked_total", &[("ack", "dead")]), 0.0, "{}", process.name);
        if metrics.sum("db_collisions_total", &[]) > 0.0 {
            repeated.push(process.name.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit()));
        }
    }
    for service in ["payment-api", "callback-worker", "refund-worker"] {
        assert!(repeated.contains(&service), "{service} has tried nothing again: {repeated:?}");
    }
}
