//! SIGKILL in the middle of the work, again and again, under load.

use std::future::pending;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use e2e::process::Process;
use e2e::{SOON, Setup, World, eventually};
use futures_util::future::join_all;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// Orders of one run.
const ORDERS: usize = 500;
/// Kills of one run.
const KILLS: usize = 12;
const LONG: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_in_the_middle_of_a_batch_again_and_again_settle_each_order_once() {
    let world = World::with(Setup { workers: 2, speed: 300.0, ..Setup::default() }).await;
    let orders = world.buy_many(ORDERS).await;
    for (kill, few) in orders.chunks(ORDERS.div_ceil(KILLS)).enumerate() {
        // The worker with this order's batch cannot continue: it is in its transaction, and nothing is acknowledged.
        let held = world.hold(&[&few[kill % few.len()]]).await;
        join_all(few.iter().map(|order| world.pay(order))).await;
        let victim = eventually("a worker in the middle of a batch", SOON, async || {
            world.stuck("callback-worker", &world.workers).await.pop()
        })
        .await;
        world.kill_stuck(&victim).await;
        held.release().await;
        victim.process.spawn();
    }
    join_all(world.workers.iter().map(Process::ready)).await;
    world.wait_all_paid(LONG).await;
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(ORDERS as i64));
    assert_eq!(world.number("select count(*) from cases").await, Some(0), "no callback ended as a dead letter");
    let starts = world.logs().matches("callback-worker is running").count();
    assert_eq!(starts, 2 + ORDERS.div_ceil(ORDERS.div_ceil(KILLS)), "each kill was a life more");
    world.logs_are_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_at_any_moment_under_load_settle_each_order_once() {
    let world = World::with(Setup { workers: 2, speed: 300.0, ..Setup::default() }).await;
    let kills = AtomicUsize::new(0);
    // As long as it takes: a slow machine kills less often for each order.
    let load = async {
        let mut rounds = 0;
        while rounds < 10 || kills.load(Relaxed) < 10 {
            let orders = world.buy_many(ORDERS / 10).await;
            join_all(orders.iter().map(|order| world.pay(order))).await;
            rounds += 1;
        }
    };
    let kill = async {
        // A message is a dead letter after 20 deliveries, and on a slow machine one of them could be in every worker that dies.
        while kills.load(Relaxed) < 18 {
            let victim = &world.workers[kills.load(Relaxed) % 2];
            // Wherever it is: in a transaction, between commit and ack, starting.
            let before = settled(&world).await;
            eventually("something was settled", SOON, async || (settled(&world).await != before).then_some(())).await;
            victim.kill();
            victim.spawn();
            kills.fetch_add(1, Relaxed);
        }
        pending::<()>().await;
    };
    // A load that does not end in time shows in the number of kills, or in orders that stay unpaid.
    let _ = timeout(LONG, async {
        tokio::select! { () = load => {}, () = kill => {} }
    })
    .await;
    let kills = kills.into_inner();
    assert!(kills >= 10, "only {kills} kills");
    join_all(world.workers.iter().map(Process::ready)).await;
    world.wait_all_paid(LONG).await;
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from cases").await, Some(0), "no callback ended as a dead letter");
    world.logs_are_clean();
}

async fn settled(world: &World) -> i64 {
    world.number("select count(*) from callbacks").await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_killed_in_the_middle_of_a_batch_is_replaced_and_each_event_arrives() {
    let world = World::with(Setup { relays: 2, speed: 300.0, ..Setup::default() }).await;
    let orders = world.buy_many(ORDERS).await;
    for few in orders.chunks(ORDERS.div_ceil(KILLS)) {
        // Events pile up while no relay leads, and one of them cannot be marked as published.
        world.relays.iter().for_each(Process::kill);
        join_all(few.iter().map(|order| world.pay(order))).await;
        world_settled(&world, few).await;
        let mut held = PgConnection::connect(&world.addresses.database).await.expect("a connection");
        let mut hold = held.begin().await.expect("a transaction");
        let lock = sqlx::query("select 1 from events where published_at is null order by seq desc limit 1 for update");
        assert_eq!(lock.execute(&mut *hold).await.expect("a lock").rows_affected(), 1);
        world.relays.iter().for_each(Process::spawn);
        let active = eventually("a relay that has published and not yet marked", SOON, async || {
            world.stuck("relay", &world.relays).await.pop()
        })
        .await;
        world.kill_stuck(&active).await;
        hold.rollback().await.expect("an end");
        // The standby takes over.
        eventually("the other relay publishes everything", SOON, async || {
            (world.number("select count(*) from events where published_at is null").await? == 0).then_some(())
        })
        .await;
    }
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    let times = world.downstream.times();
    assert_eq!(times.len(), ORDERS);
    let repeated = times.values().filter(|times| **times > 1).count();
    assert!(repeated > 0, "a kill between publishing and marking shows as a repeat under the same id");
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    world.logs_are_clean();
}

async fn world_settled(world: &World, few: &[e2e::Order]) {
    let ids: Vec<&str> = few.iter().map(|order| order.id.as_str()).collect();
    eventually("these orders are paid", SOON, async || {
        let count =
            sqlx::query_scalar::<_, i64>("select count(*) from payment_orders where id = any($1) and status = 'paid'");
        let paid = count.bind(&ids).fetch_one(&world.db).await.ok()?;
        (paid == ids.len() as i64).then_some(())
    })
    .await;
}
