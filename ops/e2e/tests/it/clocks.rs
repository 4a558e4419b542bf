//! Clocks that are set forward and back while everything runs, each process's by itself and all of them apart from those of
//! the database and the gateways.

use std::time::Duration;

use e2e::process::Process;
use e2e::shop::Wish;
use e2e::{Gateway, Made, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;

const BUYERS: usize = 4;
const MINUTE: i32 = 60;
/// Payments after which business counts as going on.
const ENOUGH: i64 = 40;
/// Paid while the ingress's clock is wrong, each time.
const PAID_MEANWHILE: usize = 8;
const LONG: Duration = Duration::from_secs(90);

fn set<'a>(processes: impl IntoIterator<Item = &'a Process>, minutes: &[i32]) {
    for (process, minutes) in processes.into_iter().zip(minutes.iter().cycle()) {
        process.step_clock(minutes * MINUTE);
    }
}

/// What a clock that was ahead has put off for longer than anybody waits here, comes to be due.
async fn the_future_comes(world: &World) {
    for sql in [
        "update jobs set due_at = least(due_at, now()), lease_until = least(lease_until, now())",
        "update refund_records set sent_at = least(sent_at, now() - interval '10 s') where sent_at > now()",
        "update events set retry_at = least(retry_at, now()) where retry_at > now()",
    ] {
        sqlx::query(sql).execute(&world.db).await.expect("the database answers");
    }
}

async fn business_goes_on(world: &World) {
    let paid = async || world.number("select count(*) from payment_orders where status <> 'pending'").await;
    let before = paid().await.expect("the database answers");
    eventually("business goes on", LONG, async || (paid().await? >= before + ENOUGH).then_some(())).await;
}

/// The relays, the one that leads first: it says what is due, and were it behind, no refund would be asked for meanwhile.
async fn leader_first(relays: &[Process]) -> Vec<&Process> {
    let leads = join_all(relays.iter().map(async |relay| relay.metrics().await.sum("relay_active", &[]) > 0.0)).await;
    let (leader, others): (Vec<_>, Vec<_>) = relays.iter().zip(leads).partition(|(_, leads)| *leads);
    leader.into_iter().chain(others).map(|(relay, _)| relay).collect()
}

async fn count(processes: &[Process], name: &str, labels: &[(&str, &str)]) -> f64 {
    join_all(processes.iter().map(async |process| process.metrics().await.sum(name, labels))).await.iter().sum()
}

/// Pays these while the ingress's clock is wrong, and waits until WeChat Pay's callbacks were refused for it.
async fn pay_while_stale(world: &World, orders: &[Order]) {
    let stale = async || world.api.metrics().await.sum("callbacks_received_total", &[("outcome", "stale")]);
    let before = stale().await;
    world.pay_slowly(orders).await;
    eventually("a callback is out of the window", SOON, async || (stale().await > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_step_apart_by_minutes_delay_and_lose_nothing_and_close_nothing_that_is_paid() {
    let setup = Setup { workers: 2, check_workers: 2, refund_workers: 2, relays: 2, speed: 300.0, ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;
    let early = world.buy_many(2 * PAID_MEANWHILE).await;
    let (one, other) = early.split_at(PAID_MEANWHILE);
    let workers = || world.processes().skip(1);
    let steps = async {
        business_goes_on(&world).await;
        set(workers(), &[10, -10]);
        set(leader_first(&world.relays).await, &[10, -10]);
        business_goes_on(&world).await;
        let refused = async || count(&world.refund_workers, "gateway_calls_total", &[("outcome", "unknown")]).await;
        eventually("WeChat Pay refuses refunds by a wrong clock", LONG, async || (refused().await > 0.0).then_some(()))
            .await;
        // Back and forth in one step, and the ingress as well.
        set(workers(), &[-10, 10]);
        set([&world.api], &[10]);
        pay_while_stale(&world, one).await;
        set([&world.api], &[-10]);
        pay_while_stale(&world, other).await;
        set([&world.api], &[0]);
        business_goes_on(&world).await;
        set(workers(), &[0]);
        the_future_comes(&world).await;
        business_goes_on(&world).await;
        the_future_comes(&world).await;
    };
    let ((), mut made) = world.under_load(BUYERS, steps).await;
    assert!(made.paid >= 120 && made.returned >= 30, "hardly any load: {made:?}");
    made.bought += early.len() as i64;
    made.paid += early.len() as i64;
    the_future_comes(&world).await;
    world.all_completed(made).await;

    hours_for_single_workers(&world, made).await;
}

/// By the clock of the check workers the time of these orders is up; that of the refund workers is beyond what Alipay takes.
async fn hours_for_single_workers(world: &World, mut made: Made) {
    let orders = join_all((0..8).map(|_| world.buy(Gateway::Alipay, "qr", "4.00"))).await;
    let (paid, unpaid) = orders.split_at(4);
    for order in paid {
        world.gateways.pay_silently(order).await;
    }
    set(&world.check_workers, &[50]);
    eventually("what is paid counts as paid, and what is not is closed", LONG, async || {
        let sql = "update jobs set due_at = least(due_at, now()) where kind = 'check'";
        sqlx::query(sql).execute(&world.db).await.expect("the database answers");
        let statuses = join_all(orders.iter().map(|order| world.status(order))).await;
        let told = statuses.iter().enumerate();
        told.into_iter().all(|(n, status)| status == if n < paid.len() { "paid" } else { "closed" }).then_some(())
    })
    .await;
    set(&world.check_workers, &[0]);

    set(&world.refund_workers, &[70, -70]);
    join_all(paid.iter().map(async |order| world.shop.refund(order, &Wish::of_the_rest()).await)).await;
    eventually("Alipay refuses a wrong clock", LONG, async || {
        // A worker that is ahead and has to wait for its turn puts the refund off by its own clock.
        the_future_comes(world).await;
        let known =
            world.number("select count(*) from refund_records where last_error like '%isv.invalid-timestamp%'").await?;
        (known == paid.len() as i64).then_some(())
    })
    .await;
    set(&world.refund_workers, &[0]);
    eventually("the refunds are asked for again", LONG, async || {
        the_future_comes(world).await;
        (world.number("select count(*) from refund_records where status <> 'succeeded'").await? == 0).then_some(())
    })
    .await;
    assert_eq!(unpaid.len(), 4);
    made.bought += orders.len() as i64;
    made.paid += paid.len() as i64;
    made.returned += paid.len() as i64;
    world.all_completed(made).await;
}
