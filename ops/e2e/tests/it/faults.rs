//! What networks and gateways do to a merchant, on schedules sped up: counted right, settled in the end, books equal.

use std::time::Duration;

use e2e::shop::{Purchase, order};
use e2e::{Gateway, Order, SOON, Setup, World, eventually, slug};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Orders of each kind at each gateway.
const EACH: usize = 3;

/// The faults of callbacks, one trade with one of them.
fn callback_faults() -> [Value; 8] {
    [
        json!({ "lose": 1.0 }),
        json!({ "repeat": 5 }),
        json!({ "delay_ms": 900 }),
        json!({ "tamper": 1.0 }),
        json!({ "wrong_serial": 1.0 }),
        json!({ "forged": 1.0 }),
        json!({ "probe": 1.0 }),
        json!({ "parallel": 10 }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trades_with_every_fault_of_callbacks_are_settled_once_and_the_wrong_ones_are_counted() {
    let world = World::with(Setup::default().trusting_this_machine()).await;
    let mut orders = Vec::new();
    for faults in callback_faults() {
        for (gateway, scene) in [(Gateway::Alipay, "wap"), (Gateway::Wechat, "native")] {
            for _ in 0..EACH {
                let order = world.buy(gateway, scene, "7.77").await;
                world.gateways.faults(&json!({ "scope": order.order_no, "callbacks": faults })).await;
                orders.push(order);
            }
        }
    }
    join_all(orders.iter().map(|order| world.pay(order))).await;
    let lost = &orders[..2 * EACH];
    eventually("each of these was lost once", SOON, async || {
        (world.gateways.injected().await.get("lose") >= Some(&(lost.len() as u64))).then_some(())
    })
    .await;
    for order in lost {
        world.gateways.faults(&json!({ "scope": order.order_no })).await;
    }
    // The pause before a lost one comes again grows up to 54 s.
    world.wait_all_paid(Duration::from_secs(90)).await;
    world.wait_quiet(SOON).await;
    // The last deliveries of a trade may follow the one that settled it.
    eventually("every trade is delivered", SOON, async || {
        let trades = world.gateways.ledger().await;
        trades.iter().all(|trade| trade["delivered"] == true).then_some(())
    })
    .await;
    world.books_agree().await;
    check_counts(&world).await;
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    let verdicts = world.texts("select distinct verdict from callbacks").await;
    assert_eq!(verdicts, ["settled"], "nothing wrong reached the worker");
    world.logs_are_clean();
}

/// The ingress has counted each wrong callback as what it was.
async fn check_counts(world: &World) {
    let injected = world.gateways.injected().await;
    let count = |name: &str| *injected.get(name).unwrap_or(&0) as f64;
    for fault in ["lose", "repeat", "delay", "tamper", "wrong_serial", "forged", "probe", "parallel"] {
        assert!(count(fault) >= EACH as f64, "{fault} was not injected: {injected:?}");
    }
    let counted = world.api.metrics().await.by("callbacks_received_total", "outcome");
    let counted = |name: &str| *counted.get(name).unwrap_or(&0.0);
    assert_eq!(counted("bad_signature"), count("tamper") + count("forged"), "{injected:?}");
    assert_eq!(counted("unknown_serial"), count("wrong_serial"), "{injected:?}");
    assert_eq!(counted("probe"), count("probe"), "{injected:?}");
    assert_eq!(counted("stale") + counted("malformed") + counted("unavailable"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_fails_at_prepay_leaves_an_order_that_the_same_key_finds_again() {
    let world = World::start().await;
    world.gateways.faults(&json!({ "api": { "error_5xx": 1.0 } })).await;
    let mut purchases = Vec::new();
    for (gateway, scene) in [(Gateway::Alipay, "qr"), (Gateway::Wechat, "native"), (Gateway::Wechat, "jsapi")] {
        let purchase = Purchase::new(gateway, scene, "3.21");
        let answer = world.shop.request_order(&purchase).await.expect("payment-api answers");
        assert_eq!((answer.status, answer.code().as_str()), (503, "gateway_unavailable"), "{answer:?}");
        purchases.push(purchase);
    }
    let pending = world.texts("select order_no from payment_orders where status = 'pending' order by id").await;
    assert_eq!(pending.len(), 3, "the orders exist");
    world.gateways.faults(&json!({})).await;

    let mut orders: Vec<Order> = Vec::new();
    for (purchase, order_no) in purchases.iter().zip(&pending) {
        let first = world.shop.request_order(purchase).await.expect("payment-api answers");
        assert_eq!(first.status, 201, "{first:?}");
        let again = world.shop.request_order(purchase).await.expect("payment-api answers");
        assert_eq!(again.status, 201, "{again:?}");
        assert_eq!(first.json()["order"]["id"], again.json()["order"]["id"], "the same key, the same order");
        assert_eq!(&order(purchase, &first).order_no, order_no, "no second order");
        orders.push(order(purchase, &again));
    }
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(3));
    for order in &orders {
        world.pay(order).await;
        world.wait_paid(order).await;
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    let calls = world.api.metrics().await;
    let failed = |gateway| calls.sum("gateway_calls_total", &[("gateway", slug(gateway))]);
    assert!(failed(Gateway::Alipay) >= 2.0 && failed(Gateway::Wechat) >= 4.0, "{}", calls.text);
    world.logs_are_clean();
}
