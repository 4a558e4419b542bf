//! SIGTERM under load: an orderly stop in time, and nothing lost.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use e2e::process::Process;
use e2e::shop::{Purchase, RefundRequest, order};
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::json;
use testkit::jobs::leases_end_of;

/// What design §3 allows.
const ALLOWED: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);
/// Buyers at once, and how often each process is stopped while they buy.
const BUYERS: usize = 6;
const ROUNDS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_program_stops_in_time_under_load_with_exit_code_0_and_nothing_is_lost() {
    let world = World::with(Setup { workers: 2, relays: 2, speed: 300.0, ..Setup::default() }).await;
    let stopping = AtomicBool::new(true);
    let buyers = join_all((0..BUYERS).map(|_| buy_and_pay(&world, &stopping)));
    let stop = async {
        for _ in 0..ROUNDS {
            for process in world.processes() {
                stop_and_start(process).await;
            }
        }
        stopping.store(false, Relaxed);
    };
    let (made, ()) = tokio::join!(buyers, stop);
    let (bought, paid) = made.iter().fold((0, 0), |sum, made| (sum.0 + made.0, sum.1 + made.1));
    assert!(paid >= 50, "hardly any load: {paid} payments");
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(bought), "one order for each key");
    eventually("everything that was paid is settled", LONG, async || {
        let sql = "select count(*) from payment_orders where status = 'paid'";
        (world.number(sql).await? == paid).then_some(())
    })
    .await;
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    world.logs_are_clean();
}

/// Buys until the last stop, and pays all but each third; how many it has bought and paid.
async fn buy_and_pay(world: &World, stopping: &AtomicBool) -> (i64, i64) {
    let (mut bought, mut paid) = (0, 0);
    while stopping.load(Relaxed) {
        let (gateway, scene) = if bought % 2 == 0 { (Gateway::Alipay, "page") } else { (Gateway::Wechat, "native") };
        let purchase = Purchase::new(gateway, scene, "2.00");
        // While the ingress is down there is no answer; the request is repeated with the same key and makes one order.
        let created = async || world.shop.request_order(&purchase).await.ok().filter(|answer| answer.status == 201);
        let made = order(&purchase, &eventually("the order is created", LONG, created).await);
        bought += 1;
        if bought % 3 != 0 {
            world.pay(&made).await;
            paid += 1;
        }
    }
    (bought, paid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_checks_and_refunds_stop_in_time_under_load_with_exit_code_0_and_nothing_is_lost() {
    let setup = Setup { check_workers: 2, refund_workers: 2, speed: 300.0, ..Setup::default() };
    let world = World::with(setup).await;
    // No callback comes, so each payment is found by a check. A gateway that takes its time has calls under way.
    world.gateways.faults(&json!({ "callbacks": { "lose": 1.0 }, "api": { "slow_ms": 200 } })).await;
    let stopping = AtomicBool::new(true);
    let buyers = join_all((0..BUYERS).map(|_| buy_and_return(&world, &stopping)));
    let stop = async {
        for _ in 0..ROUNDS {
            for process in world.check_workers.iter().chain(&world.refund_workers) {
                busy(process).await;
                stop_and_start(process).await;
            }
        }
        stopping.store(false, Relaxed);
    };
    let (returned, ()) = tokio::join!(buyers, stop);
    let returned: i64 = returned.iter().sum();
    println!("{returned} orders paid and returned");
    // Well before any lease ends: a stopped worker leaves nothing half done.
    eventually("everything is paid and returned", LONG, async || {
        let sql = "select count(*) from payment_orders where status = 'refunded'";
        (world.number(sql).await? == returned).then_some(())
    })
    .await;
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(returned));
    assert_eq!(world.number("select count(*) from jobs where kind <> 'look_back'").await, Some(0));
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    world.logs_are_clean();
}

/// Buys, pays, and asks for the money back once the order is paid, until the last stop; how many orders.
async fn buy_and_return(world: &World, stopping: &AtomicBool) -> i64 {
    let mut returned = 0;
    while stopping.load(Relaxed) {
        let (gateway, scene) = if returned % 2 == 0 { (Gateway::Alipay, "page") } else { (Gateway::Wechat, "native") };
        let order = world.buy(gateway, scene, "2.00").await;
        world.gateways.pay_silently(&order).await;
        poll_is_due(world, &order).await;
        let paid = async || (world.status(&order).await == "paid").then_some(());
        eventually("a check finds the order paid", LONG, paid).await;
        world.shop.refund(&order, &RefundRequest::of_the_rest()).await;
        returned += 1;
    }
    returned
}

/// Time passes until the first poll of an order.
async fn poll_is_due(world: &World, order: &Order) {
    leases_end_of(&world.db, &[&order.id]).await;
}

/// Waits until a worker has a call at a gateway behind it that it had not at first, so that it is stopped at work.
async fn busy(process: &Process) {
    let calls = async || process.metrics().await.sum("gateway_calls_total", &[]);
    let before = calls().await;
    let what = format!("{} calls a gateway", process.name);
    eventually(&what, LONG, async || (calls().await > before).then_some(())).await;
}

async fn stop_and_start(process: &Process) {
    let (status, took) = process.terminate().await;
    assert_eq!(status.code(), Some(0), "{}: {status}\n{}", process.name, process.log());
    assert!(took < ALLOWED, "{} took {took:?}", process.name);
    println!("{} stopped in {took:?}", process.name);
    process.start().await;
}
