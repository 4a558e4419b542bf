//! SIGTERM under load: an orderly end in time, and nothing lost.

use std::time::Duration;

use e2e::process::Process;
use e2e::shop::Purchase;
use e2e::{Gateway, SOON, Setup, World};
use futures_util::future::join_all;

/// What design §3 allows.
const ALLOWED: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_program_stops_in_time_under_load_with_exit_code_0_and_nothing_is_lost() {
    let world = World::with(Setup { workers: 2, relays: 2, speed: 300.0, ..Setup::default() }).await;
    let orders = world.buy_many(200).await;
    let pay = async {
        for few in orders.chunks(10) {
            join_all(few.iter().map(|order| world.pay(order))).await;
        }
    };
    let create = async {
        // While the ingress is away nobody answers; the same key is asked again and makes one order.
        let mut made = Vec::new();
        for _ in 0..100 {
            let purchase = Purchase::new(Gateway::Alipay, "page", "2.00");
            made.push(
                e2e::eventually("the order is created", LONG, async || {
                    world.shop.ask(&purchase).await.ok().filter(|answer| answer.status == 201)
                })
                .await,
            );
        }
        made
    };
    let stop = async {
        for process in
            [&world.workers[0], &world.api, &world.relays[0], &world.workers[1], &world.relays[1], &world.api]
        {
            stop_and_start(process).await;
        }
    };
    let ((), made, ()) = tokio::join!(pay, create, stop);
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(300), "one order for each key");
    let unpaid = made.len() as i64;
    e2e::eventually("everything that was paid is settled", LONG, async || {
        let sql = "select count(*) from payment_orders where status <> 'paid'";
        (world.number(sql).await? == unpaid).then_some(())
    })
    .await;
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    world.no_panics();
}

async fn stop_and_start(process: &Process) {
    let (status, took) = process.terminate().await;
    assert_eq!(status.code(), Some(0), "{}: {status}\n{}", process.name, process.log());
    assert!(took < ALLOWED, "{} took {took:?}", process.name);
    println!("{} stopped in {took:?}", process.name);
    process.start().await;
}
