//! Broker and database stopped, both stopped, the broker wiped: on servers of the test's own.

use std::time::Duration;

use e2e::servers::{PrivateServers, Servers};
use e2e::{SOON, Setup, World, eventually};
use futures_util::future::join_all;
use reqwest::Method;

/// A server that was away for a while, and everything that waits behind it.
const LONG: Duration = Duration::from_secs(90);

/// The business on servers of its own.
async fn world(purpose: &str, speed: f64) -> World {
    let servers = Servers::Private(PrivateServers::up(purpose).await);
    World::on(servers, Setup { relays: 2, speed, ..Setup::default() }.trusting_this_machine()).await
}

/// How often each outcome was counted at the ingress.
async fn received(world: &World, outcome: &str) -> f64 {
    world.api.metrics().await.sum("callbacks_received_total", &[("outcome", outcome)])
}

/// Every paid trade was answered with success, the first time it was notified.
async fn all_accepted_at_once(world: &World) {
    world.wait_all_answered().await;
    let trades = world.gateways.ledger().await;
    let repeated: Vec<_> = trades.iter().filter(|trade| trade["state"] == "paid" && trade["notified"] != 1).collect();
    assert!(repeated.is_empty(), "told more than once: {repeated:?}");
    assert_eq!(received(world, "unavailable").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_broker_stopped_every_callback_is_taken_and_settled_when_it_returns() {
    let world = world("broker", 100.0).await;
    let orders = world.buy_many(60).await;
    let (before, during) = orders.split_at(24);
    tokio::join!(world.pay_slowly(before), world.servers().server("stop", "rabbitmq"));
    world.pay_slowly(during).await;
    all_accepted_at_once(&world).await;
    let stored = stored_in_database(&world).await;
    assert!(stored >= during.len() as f64, "{stored} callbacks went to the database");
    world.servers().server("start", "rabbitmq").await;
    world.all_settled(orders.len(), LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_broker_or_a_database_that_hangs_every_callback_is_taken_and_settled_afterwards() {
    let world = world("hangs", 100.0).await;
    let orders = world.buy_many(60).await;
    let (mute_broker, mute_database) = orders.split_at(30);
    world.servers().server("pause", "rabbitmq").await;
    world.pay_slowly(mute_broker).await;
    all_accepted_at_once(&world).await;
    let stored = stored_in_database(&world).await;
    assert!(stored >= mute_broker.len() as f64, "{stored} callbacks went to the database");
    world.servers().server("resume", "rabbitmq").await;
    eventually("the first half is settled", LONG, async || {
        let sql = "select count(*) from payment_orders where status = 'paid'";
        (world.number(sql).await? == mute_broker.len() as i64).then_some(())
    })
    .await;

    world.servers().server("pause", "postgres").await;
    world.pay_slowly(mute_database).await;
    all_accepted_at_once(&world).await;
    world.servers().server("resume", "postgres").await;
    world.all_settled(orders.len(), LONG).await;
}

async fn stored_in_database(world: &World) -> f64 {
    world.api.metrics().await.sum("callbacks_stored_total", &[("road", "database")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_database_stopped_every_callback_is_taken_and_settled_when_it_returns() {
    let world = world("database", 100.0).await;
    let orders = world.buy_many(60).await;
    let (before, during) = orders.split_at(24);
    tokio::join!(world.pay_slowly(before), world.servers().server("kill", "postgres"));
    world.pay_slowly(during).await;
    all_accepted_at_once(&world).await;
    world.servers().server("start", "postgres").await;
    world.all_settled(orders.len(), LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_stopped_the_answer_is_503_and_the_repeats_lose_nothing() {
    // The gateways' last pauses are 6 and 15 hours: 36 and 90 s here.
    let world = world("both", 600.0).await;
    let orders = world.buy_many(40).await;
    let servers = world.servers();
    tokio::join!(servers.server("kill", "rabbitmq"), servers.server("stop", "postgres"));
    world.pay_slowly(&orders).await;
    eventually("a refusal", SOON, async || (received(&world, "unavailable").await > 0.0).then_some(())).await;
    let trades = world.gateways.ledger().await;
    assert!(trades.iter().all(|trade| trade["delivered"] == false), "success without a receipt");
    let answers: Vec<&str> = trades.iter().filter_map(|trade| trade["last_answer"].as_str()).collect();
    assert!(answers.iter().all(|answer| answer.starts_with("503 ")), "{answers:?}");
    servers.server("start", "postgres").await;
    servers.server("start", "rabbitmq").await;
    world.all_settled(orders.len(), Duration::from_secs(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_broker_is_noticed_rebuilt_counted_and_everything_completes() {
    let world = world("wiped", 100.0).await;
    let orders = world.buy_many(60).await;
    let (first, rest) = orders.split_at(20);
    let (second, third) = rest.split_at(20);
    world.pay_slowly(first).await;
    eventually("the first are told", SOON, async || (world.downstream.times().len() == first.len()).then_some(()))
        .await;
    world.wait_quiet(SOON).await;

    // An operator deletes the queues, with nothing in them that is nowhere else.
    for queue in ["payment.callbacks", "payment.dead"] {
        delete_queue(&world, queue).await;
    }
    world.pay_slowly(second).await;
    rebuilds(&world, 1.0).await;
    eventually("the second are told", LONG, async || {
        (world.downstream.times().len() == first.len() + second.len()).then_some(())
    })
    .await;
    let again = world.downstream.times().values().filter(|times| **times > 1).count();
    assert!(again >= first.len(), "events that were published go out again: {again}");

    // The disk is replaced: no exchange, no queue, and users with no rights until the deploy step gives them theirs.
    world.wait_quiet(SOON).await;
    world.servers().server("wipe", "rabbitmq").await;
    world.pay_slowly(third).await;
    world.servers().server("start", "rabbitmq").await;
    world.set_up_broker().await;
    rebuilds(&world, 2.0).await;
    world.all_settled(orders.len(), LONG).await;
}

/// Waits until the relays have counted this many rebuilds.
async fn rebuilds(world: &World, count: f64) {
    eventually("a rebuild is counted", LONG, async || {
        let counted = world.relays.iter().map(|relay| async { relay.metrics().await.sum("relay_rebuilds_total", &[]) });
        (join_all(counted).await.into_iter().sum::<f64>() >= count).then_some(())
    })
    .await;
}

async fn delete_queue(world: &World, queue: &str) {
    let url = format!("{}/api/queues/%2F/{queue}", world.addresses.management);
    let answer = e2e::http::http_client().request(Method::DELETE, url).send().await.expect("the broker answers");
    assert!(answer.status().is_success(), "{queue}: {}", answer.status());
}
