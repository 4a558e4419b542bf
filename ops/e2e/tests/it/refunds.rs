//! Refunds: through a gateway that fails again and again, and requested for all orders at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use e2e::shop::{Purchase, RefundRequest, yuan};
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Orders by gateway and by the number of refunds of each: 1 000 refunds.
const ORDERS: [(Gateway, usize, usize); 5] = [
    (Gateway::Alipay, 1, 300),
    (Gateway::Alipay, 2, 40),
    (Gateway::Alipay, 3, 40),
    (Gateway::Wechat, 1, 496),
    // Each of these waits a minute between its two.
    (Gateway::Wechat, 2, 2),
];
const REFUNDS: usize = 1000;
/// Requests at a time.
const AT_ONCE: usize = 16;
/// How many failing refund calls WeChat Pay allows in a second. Source: WeChat Pay APIv3, "申请退款".
const FAILING_PER_SECOND: usize = 6;
const LONG: Duration = Duration::from_secs(300);

/// An order and what is to go back of it, part after part.
struct Plan {
    order: Order,
    parts: Vec<i64>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refunds_through_a_gateway_that_fails_before_and_after_the_effect_return_each_fen_once() {
    // At its own speed the simulator asks for the real gateways' pauses, a minute and three seconds; and it repeats a
    // callback so late that a check finds the payment before.
    let env = vec![("REFUND_CALLS", "2".to_owned())];
    let world = World::with(Setup { refund_workers: 3, check_workers: 1, speed: 1.0, env, ..Setup::default() }).await;
    let began = Instant::now();
    let plans = buy_and_pay(&world).await;
    println!("{} orders paid after {:?}", plans.len(), began.elapsed());
    world.gateways.faults(&json!({ "refund": { "effect_then_timeout": 0.33, "rate_limited": 0.1 } })).await;
    request_part_after_part(&world, &plans).await;
    println!("{REFUNDS} refunds asked for after {:?}", began.elapsed());
    let sql = "select count(*) from refund_records where status in ('succeeded', 'failed')";
    eventually("every refund is final", LONG, async || (world.number(sql).await? == REFUNDS as i64).then_some(()))
        .await;
    println!("all of them final after {:?}", began.elapsed());
    world.wait_quiet(SOON).await;
    world.books_agree().await;

    let failed =
        world.texts("select refund_no || ': ' || last_error from refund_records where status = 'failed'").await;
    assert!(failed.is_empty(), "too often is no refusal: {failed:?}");
    let mut whole = 0;
    for Plan { order, .. } in &plans {
        whole += usize::from(world.status(order).await == "refunded");
    }
    let injected = world.gateways.injected().await;
    let sent = world.number("select sum(attempts)::bigint from refund_records").await.expect("a sum");
    println!("{REFUNDS} refunds, {sent} requests sent, {whole} orders of {} returned whole, {injected:?}", plans.len());
    assert!(injected["refund_effect_then_timeout"] >= 250 && injected["refund_rate_limited"] >= 50, "{injected:?}");
    assert!(sent > REFUNDS as i64, "what was refused by rate was sent again");
    assert!(world.texts(TOO_SOON).await.is_empty(), "sent too soon after another of its order");
    few_calls_failed_at_once(&world);
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    assert_eq!(
        world.number("select count(*) from jobs where kind <> 'look_back'").await,
        Some(0),
        "what is final needs no more work"
    );
    world.logs_are_clean();
}

/// Refunds that left less than a minute, or three seconds, after the one before them.
const TOO_SOON: &str = "
    select refund_no || ': ' || (sent_at - before) from (
      select r.refund_no, r.sent_at, o.payment_method,
             lag(r.sent_at) over (partition by r.order_id order by r.id) as before
      from refund_records r join payment_orders o on o.id = r.order_id
    ) pairs
    where sent_at - before < case payment_method when 'wechat' then interval '1 minute' else interval '3 seconds' end";

/// Orders over various amounts, paid; every third is not to be returned whole.
async fn buy_and_pay(world: &World) -> Vec<Plan> {
    let wanted = ORDERS.iter().flat_map(|(gateway, parts, orders)| std::iter::repeat_n((*gateway, *parts), *orders));
    let wanted: Vec<_> = wanted.enumerate().collect();
    let mut plans = Vec::new();
    for few in wanted.chunks(AT_ONCE) {
        let made = few.iter().map(async |(n, (gateway, parts))| {
            let fen = 100 + (*n as i64 * 37) % 9_900;
            let scene = if *gateway == Gateway::Alipay { "page" } else { "native" };
            let order = world.shop.buy(&Purchase::new(*gateway, scene, &yuan(fen))).await;
            world.pay(&order).await;
            Plan { order, parts: split(if n % 3 == 0 { fen - 1 } else { fen }, *parts) }
        });
        plans.extend(join_all(made).await);
    }
    world.wait_all_paid(LONG).await;
    assert_eq!(plans.iter().map(|plan| plan.parts.len()).sum::<usize>(), REFUNDS);
    plans
}

/// An amount in so many parts, the last the largest.
fn split(fen: i64, parts: usize) -> Vec<i64> {
    let part = fen / parts as i64;
    let mut all = vec![part; parts];
    all[parts - 1] = fen - part * (parts as i64 - 1);
    all
}

/// Asks for the parts of each order, the next one when the one before has gone back.
async fn request_part_after_part(world: &World, plans: &[Plan]) {
    let mut requested = vec![0; plans.len()];
    eventually("every refund is asked for", LONG, async || {
        let busy = world.texts("select id::text from payment_orders where status = 'refunding'").await;
        let busy: BTreeSet<String> = busy.into_iter().collect();
        let free = |n: &usize| requested[*n] < plans[*n].parts.len() && !busy.contains(&plans[*n].order.id);
        let now: Vec<usize> = (0..plans.len()).filter(free).collect();
        for few in now.chunks(AT_ONCE) {
            let requests = few.iter().map(|n| (&plans[*n].order, RefundRequest::of(plans[*n].parts[requested[*n]])));
            join_all(requests.map(async |(order, request)| world.shop.refund(order, &request).await)).await;
        }
        now.iter().for_each(|n| requested[*n] += 1);
        (requested.iter().sum::<usize>() == REFUNDS).then_some(())
    })
    .await;
}

/// In no second did WeChat Pay see more failing refund calls than it allows, from all processes together.
fn few_calls_failed_at_once(world: &World) {
    let mut failed = BTreeMap::<String, Vec<OffsetDateTime>>::new();
    for line in
        world.refund_workers.iter().flat_map(|worker| worker.log().lines().map(str::to_owned).collect::<Vec<_>>())
    {
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        if text("call") == "refund" && text("level") == "WARN" {
            let at = OffsetDateTime::parse(&text("timestamp"), &Rfc3339).expect("a time");
            failed.entry(text("gateway")).or_default().push(at);
        }
    }
    for (gateway, times) in &mut failed {
        times.sort();
        let most = (0..times.len()).map(|n| times[n..].partition_point(|at| *at - times[n] < time::Duration::SECOND));
        let most = most.max().unwrap_or_default();
        println!("{} failing refund calls at {gateway}, {most} within a second at most", times.len());
        assert!(gateway != "wechat" || most <= FAILING_PER_SECOND, "{most} calls failed within a second at {gateway}");
    }
}
