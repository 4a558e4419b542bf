//! The gateways are unreachable in every possible way, while orders, refunds and checks need them.

use std::time::Duration;

use domain::PaymentMethod;
use domain::message::job::JobKind;
use e2e::process::Process;
use e2e::shop::RefundRequest;
use e2e::{Gateway, Made, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::json;
use testkit::jobs::come_due;

const BUYERS: usize = 6;
/// Orders that no callback reports.
const SILENT: usize = 12;
/// Orders that are paid before each partition and refunded during it, because no new order can be created meanwhile.
const RETURNED_IN_EACH: usize = 4;
/// Payments after which business counts as going on.
const ENOUGH: i64 = 15;
const LONG: Duration = Duration::from_secs(90);

/// Orders at both gateways that are paid without any page of theirs.
async fn buy(world: &World, count: usize) -> Vec<Order> {
    let scenes = [(Gateway::Alipay, "qr"), (Gateway::Wechat, "native")];
    join_all((0..count).map(|n| world.buy(scenes[n % 2].0, scenes[n % 2].1, "3.00"))).await
}

/// Calls at both gateways that did not come to an answer, by all programs of a kind.
async fn failed(processes: &[&Process]) -> f64 {
    let mut sum = 0.0;
    for process in processes {
        let metrics = process.metrics().await;
        for outcome in ["unavailable", "unknown"] {
            sum += metrics.sum("gateway_calls_total", &[("outcome", outcome)]);
        }
    }
    sum
}

/// Waits until ingresses, refund workers and check workers have each met the fault.
async fn everybody_has_met_it(world: &World, what: &str) {
    let kinds: [Vec<&Process>; 3] =
        [world.apis().collect(), world.refund_workers.iter().collect(), world.check_workers.iter().collect()];
    let before = join_all(kinds.iter().map(|kind| failed(kind))).await;
    eventually(what, LONG, async || {
        time_passes_for_checks(world).await;
        let now = join_all(kinds.iter().map(|kind| failed(kind))).await;
        now.iter().zip(&before).all(|(now, before)| *now >= before + 2.0).then_some(())
    })
    .await;
    println!("met by all: {what}");
}

/// Waits until orders are bought, paid and settled again.
async fn business_goes_on(world: &World) {
    let paid = async || world.number("select count(*) from payment_orders where status <> 'pending'").await;
    let before = paid().await.expect("the database answers");
    eventually("business goes on", LONG, async || (paid().await? >= before + ENOUGH).then_some(())).await;
}

/// Makes the next poll of each unpaid order due, unless a worker is working on it.
async fn time_passes_for_checks(world: &World) {
    come_due(&world.db, Some(JobKind::Check)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_hang_refuse_or_lose_their_answers_delay_everything_and_double_nothing() {
    let setup = Setup {
        check_workers: 2,
        refund_workers: 2,
        workers: 2,
        gateways_apart: true,
        speed: 300.0,
        ..Setup::default()
    };
    let world = World::with(setup.trusting_this_machine()).await;
    let silent = buy(&world, SILENT).await;
    let stock = buy(&world, 4 * RETURNED_IN_EACH).await;
    world.pay_slowly(&stock).await;
    for order in &stock {
        world.wait_paid(order).await;
    }
    let mut stock = stock.chunks(RETURNED_IN_EACH);
    let way = world.gateways.way();
    let mut request_back = async || {
        let few = stock.next().expect("enough orders");
        join_all(few.iter().map(async |order| world.shop.refund(order, &RefundRequest::of_the_rest()).await)).await;
    };
    let partitions = async {
        way.hold(true);
        request_back().await;
        // Paid while no worker can query the gateway; the buyers can still reach it.
        for order in &silent {
            world.gateways.pay_silently(order).await;
        }
        everybody_has_met_it(&world, "a gateway that says nothing").await;
        way.hold(false);
        business_goes_on(&world).await;
        way.refuse(true);
        request_back().await;
        everybody_has_met_it(&world, "a gateway that nobody can connect to").await;
        way.refuse(false);
        business_goes_on(&world).await;
        way.lose_answers(true);
        request_back().await;
        everybody_has_met_it(&world, "a gateway that acts and whose answer is lost").await;
        way.lose_answers(false);
        business_goes_on(&world).await;
        world.gateways.faults(&json!({ "api": { "error_5xx": 0.5, "slow_ms": 300 } })).await;
        request_back().await;
        everybody_has_met_it(&world, "a gateway that is slow and answers every other call with 5xx").await;
        world.gateways.faults(&json!({})).await;
        business_goes_on(&world).await;
    };
    let ((), made) = world.under_load(BUYERS, partitions).await;
    time_passes_for_checks(&world).await;
    eventually("the silent payments are found", SOON, async || {
        time_passes_for_checks(&world).await;
        let mut paid = 0;
        for order in &silent {
            paid += usize::from(world.status(order).await == "paid");
        }
        (paid == SILENT).then_some(())
    })
    .await;
    let (few, back) = ((SILENT + 4 * RETURNED_IN_EACH) as i64, (4 * RETURNED_IN_EACH) as i64);
    let all = Made { bought: made.bought + few, paid: made.paid + few, returned: made.returned + back };
    world.all_completed(all).await;
    for gateway in [PaymentMethod::Alipay, PaymentMethod::Wechat] {
        let calls = world.api.metrics().await.sum("gateway_calls_total", &[("gateway", gateway.as_str())]);
        assert!(calls > 0.0, "{gateway}");
    }
    assert!(made.paid >= 3 * ENOUGH && made.returned >= ENOUGH, "hardly any load: {made:?}");
}
