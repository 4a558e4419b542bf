//! SIGTERM under load: an orderly end in time, and nothing lost.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use e2e::process::Process;
use e2e::shop::{Purchase, order};
use e2e::{Gateway, SOON, Setup, World, eventually};
use futures_util::future::join_all;

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
    world.no_panics();
}

/// Buys until the last stop, and pays all but each third; how many it has bought and paid.
async fn buy_and_pay(world: &World, stopping: &AtomicBool) -> (i64, i64) {
    let (mut bought, mut paid) = (0, 0);
    while stopping.load(Relaxed) {
        let (gateway, scene) = if bought % 2 == 0 { (Gateway::Alipay, "page") } else { (Gateway::Wechat, "native") };
        let purchase = Purchase::new(gateway, scene, "2.00");
        // While the ingress is away nobody answers; the same key is asked again and makes one order.
        let asked = async || world.shop.ask(&purchase).await.ok().filter(|answer| answer.status == 201);
        let made = order(&purchase, &eventually("the order is created", LONG, asked).await);
        bought += 1;
        if bought % 3 != 0 {
            world.pay(&made).await;
            paid += 1;
        }
    }
    (bought, paid)
}

async fn stop_and_start(process: &Process) {
    let (status, took) = process.terminate().await;
    assert_eq!(status.code(), Some(0), "{}: {status}\n{}", process.name, process.log());
    assert!(took < ALLOWED, "{} took {took:?}", process.name);
    println!("{} stopped in {took:?}", process.name);
    process.start().await;
}
