//! Clocks that are set forward and back while everything runs, each process's by itself and all of them apart from
//! those of the database and the gateways.

use std::time::Duration;

use domain::message::job::JobKind;
use e2e::process::Process;
use e2e::shop::RefundRequest;
use e2e::{Gateway, Made, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::json;
use testkit::jobs::come_due;

const BUYERS: usize = 4;
/// An ingress whose clock is off signs for another time: the gateway refuses its calls, and the case calls people.
const CALLED: [&str; 1] = ["misconfigured"];
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

async fn business_goes_on(world: &World) {
    let paid = async || world.number("select count(*) from payment_orders where status <> 'pending'").await;
    let before = paid().await.expect("the database answers");
    eventually("business goes on", LONG, async || (paid().await? >= before + ENOUGH).then_some(())).await;
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
        business_goes_on(&world).await;
        // Back and forth in one step, and the ingress as well.
        set(workers(), &[-10, 10]);
        set([&world.api], &[10]);
        pay_while_stale(&world, one).await;
        set([&world.api], &[-10]);
        pay_while_stale(&world, other).await;
        let called = "select count(*) from cases where kind = 'misconfigured'";
        eventually("a call is refused for its time", LONG, async || (world.number(called).await? > 0).then_some(()))
            .await;
        set([&world.api], &[0]);
        business_goes_on(&world).await;
        set(workers(), &[0]);
        business_goes_on(&world).await;
    };
    let ((), mut made) = world.under_load(BUYERS, steps).await;
    assert!(made.paid >= 120 && made.returned >= 30, "hardly any load: {made:?}");
    made.bought += early.len() as i64;
    made.paid += early.len() as i64;
    world.all_completed_but(made, &CALLED).await;

    hours_for_single_workers(&world, made).await;
    let unknown = count(&world.refund_workers, "gateway_calls_total", &[("outcome", "unknown")]).await;
    assert_eq!(unknown, 0.0, "no gateway refused a call for its time");
}

/// Check and refund workers use the database's time: they close no order early, and Alipay accepts their calls.
async fn hours_for_single_workers(world: &World, mut made: Made) {
    let orders = join_all((0..8).map(|_| world.buy(Gateway::Alipay, "qr", "4.00"))).await;
    let (paid, unpaid) = orders.split_at(4);
    for order in paid {
        world.gateways.pay_silently(order).await;
    }
    set(&world.check_workers, &[50]);
    let known = "select count(*) from payment_orders where checked_at is not null and status = 'pending'";
    eventually("what is paid counts as paid, and what is not was asked about", LONG, async || {
        come_due(&world.db, Some(JobKind::Check)).await;
        let statuses = join_all(paid.iter().map(|order| world.status(order))).await;
        let queried = world.number(known).await? >= unpaid.len() as i64;
        (queried && statuses.iter().all(|status| status == "paid")).then_some(())
    })
    .await;
    for order in unpaid {
        assert_eq!(world.status(order).await, "pending", "its time is not up");
    }
    set(&world.check_workers, &[0]);

    set(&world.refund_workers, &[70, -70]);
    join_all(paid.iter().map(async |order| world.shop.refund(order, &RefundRequest::of_the_rest()).await)).await;
    eventually("the refunds have arrived", LONG, async || {
        (world.number("select count(*) from refund_records where status <> 'succeeded'").await? == 0).then_some(())
    })
    .await;
    set(&world.refund_workers, &[0]);
    made.bought += orders.len() as i64;
    made.paid += paid.len() as i64;
    made.returned += paid.len() as i64;
    world.all_completed_but(made, &CALLED).await;
}

/// Unpaid orders at each gateway, and refunds that are processed, for each step of the clocks.
const QUERIED: usize = 3;
/// More rounds than one question too many would take.
const ROUNDS: usize = 4;

/// How far the clocks of the relay and of the workers are off, in seconds: two ways in each test run, all of them in
/// `cargo xtask drill`.
fn apart() -> Vec<(i32, i32)> {
    if std::env::var_os("PAYMENT_DRILL").is_none() {
        return vec![(60, 0), (0, 60)];
    }
    [1, 10, 60, 600].into_iter().flat_map(|step| [(step, 0), (0, step), (0, -step)]).collect()
}

/// The most calls that any single order has cost: queries while it was unpaid, and questions about its refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    queries: u64,
    questions: u64,
}

/// The costs of orders that are unpaid at their 30th second, and of refunds in their first quarter of a minute.
async fn cost(world: &World, relay: i32, workers: i32) -> Cost {
    world.relays.iter().for_each(|process| process.step_clock(relay));
    world.check_workers.iter().chain(&world.refund_workers).for_each(|process| process.step_clock(workers));
    let mut unpaid = Vec::new();
    let mut returned = Vec::new();
    for (gateway, scene) in [(Gateway::Alipay, "qr"), (Gateway::Wechat, "native")] {
        for _ in 0..QUERIED {
            unpaid.push(world.buy(gateway, scene, "4.00").await);
            returned.push(world.buy(gateway, scene, "4.00").await);
        }
    }
    let last_unpaid = world.buy(Gateway::Wechat, "native", "4.00").await;
    let last_returned = world.buy(Gateway::Wechat, "native", "4.00").await;
    for order in returned.iter().chain([&last_returned]) {
        world.pay(order).await;
        world.wait_paid(order).await;
    }
    join_all(
        returned
            .iter()
            .chain([&last_returned])
            .map(async |order| world.shop.refund(order, &RefundRequest::of_the_rest()).await),
    )
    .await;
    // The check at once, at the 26th second, is followed by the one at the 30th.
    let sql = "update payment_orders set created_at = now() - interval '26 s' where order_no = any($1)";
    let numbers: Vec<&str> = unpaid.iter().map(|order| order.order_no.as_str()).collect();
    sqlx::query(sql).bind(&numbers).execute(&world.db).await.expect("the database answers");
    come_due(&world.db, Some(JobKind::Check)).await;
    let most = async || Cost {
        queries: most(world, &unpaid, "query").await,
        questions: most(world, &returned, "refund_query").await,
    };
    eventually("each order was asked about twice, and each refund once", LONG, async || {
        let queries = fewest(world, &unpaid, "query").await;
        (queries >= 2 && fewest(world, &returned, "refund_query").await >= 1).then_some(())
    })
    .await;
    rounds_pass(world, &last_unpaid, &last_returned).await;
    let most = most().await;
    println!("relay {relay:+} s, workers {workers:+} s: {most:?}");
    most
}

/// A check and a refund become due again and again, each time behind all that is due, and the workers put them off. A
/// question beside the schedule would be due at once, so it would be asked in each of these rounds.
async fn rounds_pass(world: &World, unpaid: &Order, returned: &Order) {
    let come_due = "update jobs set due_at = now()
        where lease_until is null and (ref_id = $1 or ref_id in (select id from refund_records where order_id = $2))";
    let put_off = "select count(*) from jobs where lease_until is null and due_at > now()
        and (ref_id = $1 or ref_id in (select id from refund_records where order_id = $2))";
    for round in 0..ROUNDS {
        // One that is in hand would put itself off without a round.
        eventually("neither is in hand, so both come due", LONG, async || {
            let mut tx = world.db.begin().await.ok()?;
            let jobs = sqlx::query(come_due).bind(&unpaid.id).bind(&returned.id).execute(&mut *tx).await.ok()?;
            if jobs.rows_affected() < 2 {
                return None;
            }
            tx.commit().await.ok()
        })
        .await;
        eventually(&format!("round {round} is over"), LONG, async || {
            let jobs = sqlx::query_scalar::<_, i64>(put_off).bind(&unpaid.id).bind(&returned.id);
            (jobs.fetch_one(&world.db).await.ok()? == 2).then_some(())
        })
        .await;
    }
}

async fn calls(world: &World, orders: &[Order], call: &str) -> Vec<u64> {
    join_all(orders.iter().map(async |order| world.gateways.calls(order, call).await)).await
}

async fn most(world: &World, orders: &[Order], call: &str) -> u64 {
    calls(world, orders, call).await.into_iter().max().unwrap_or(0)
}

async fn fewest(world: &World, orders: &[Order], call: &str) -> u64 {
    calls(world, orders, call).await.into_iter().min().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_apart_cost_an_order_at_most_one_question_more() {
    let setup = Setup { check_workers: 2, refund_workers: 1, relays: 2, ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;
    world.gateways.faults(&json!({ "refund": { "processing_ms": 86_400_000 } })).await;
    let without = cost(&world, 0, 0).await;
    for (relay, workers) in apart() {
        let with = cost(&world, relay, workers).await;
        assert!(with.queries <= without.queries + 1, "{with:?} and not {without:?}: {relay} {workers}");
        assert!(with.questions <= without.questions + 1, "{with:?} and not {without:?}: {relay} {workers}");
    }
    world.logs_are_clean();
}
