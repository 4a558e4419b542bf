//! Refunds that buyers request and people decide, from the request to the events that the merchant's consumer sees.

use std::time::Duration;

use e2e::http::{answer, http_client};
use e2e::shop::RefundRequest;
use e2e::{Gateway, Order, SOON, Setup, World, eventually, slug};
use reqwest::Method;
use serde_json::{Value, json};

const WAYS: [(Gateway, &str); 2] = [(Gateway::Alipay, "qr"), (Gateway::Wechat, "native")];
const LONG: Duration = Duration::from_secs(60);

/// A service where buyers request, and where one person approves up to 3.00 yuan.
async fn world() -> World {
    let world = World::with(Setup { refund_workers: 1, speed: 20_000.0, ..Setup::default() }).await;
    for (gateway, _) in WAYS {
        let path = format!("/v1/admin/config/{}/refunds", slug(gateway));
        let rules = call(&world, "alice", (Method::GET, "/v1/admin/config/refunds"), &Value::Null).await;
        let of_gateway = |rules: &&Value| rules["payment_method"] == slug(gateway);
        let known = rules["methods"].as_array().expect("a list").iter().find(of_gateway).expect("rules");
        let version = &known["version"];
        let rules = json!({ "buyer_refunds": "request", "staff_limit": "3.00", "version": version, "note": "a drill" });
        call(&world, "alice", (Method::PATCH, &path), &rules).await;
    }
    world
}

/// What the service answers to one of the merchant's people.
async fn call(world: &World, who: &str, (method, path): (Method, &str), body: &Value) -> Value {
    let request = http_client().request(method, format!("{}{path}", world.public_url));
    let request = request.bearer_auth(world.shop.staff_token(who));
    let request = if body.is_null() { request } else { request.json(body) };
    let answer = answer(request).await.expect("payment-api answers");
    assert!([200, 202].contains(&answer.status), "{path} by {who}: {} {}", answer.status, answer.text);
    answer.json()
}

/// A step of a person with a refund; its state afterwards.
async fn step(world: &World, who: &str, refund: &str, step: &str) -> String {
    let body = if step == "decline" { json!({ "reason": "the goods were used" }) } else { Value::Null };
    let shown = call(world, who, (Method::POST, &format!("/v1/refunds/{refund}/{step}")), &body).await;
    shown["status"].as_str().expect("a state").to_owned()
}

/// A paid order of 4.00 yuan, and the request of its buyer to have all of it back.
async fn requested(world: &World, (gateway, scene): (Gateway, &str)) -> (Order, String) {
    let order = world.buy(gateway, scene, "4.00").await;
    world.pay(&order).await;
    world.wait_paid(&order).await;
    let refund = world.shop.refund(&order, &RefundRequest::of_the_rest()).await;
    assert_eq!(world.shop.refund_view(&refund).await["status"], "requested");
    assert_eq!(world.shop.order(&order).await["status"], "paid", "a request leaves the order as it is");
    (order, refund)
}

async fn until(world: &World, refund: &str, status: &str) {
    let what = format!("refund {refund} is {status}");
    eventually(&what, LONG, async || (world.shop.refund_view(refund).await["status"] == status).then_some(())).await;
}

/// The types of the order's events, in the order of their arrival, and the order's state in each. That of a case has none.
async fn seen(world: &World, order: &Order) -> Vec<(String, String)> {
    world.wait_quiet(SOON).await;
    let events = world.events_of(order).await;
    let state = |data: &Value| data["order_status"].as_str().unwrap_or_default().to_owned();
    events.iter().map(|event| (event.kind.clone(), state(&event.data))).collect()
}

fn are(events: &[(&str, &str)]) -> Vec<(String, String)> {
    events.iter().map(|(kind, state)| ((*kind).to_owned(), (*state).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_two_people_approve_survives_a_lost_answer_and_ends_once() {
    let world = world().await;
    for way in WAYS {
        let (order, refund) = requested(&world, way).await;
        world.gateways.faults(&json!({ "refund": { "effect_then_timeout": 1.0 } })).await;
        assert_eq!(
            step(&world, "alice", &refund, "approve").await,
            "requested",
            "4.00 are above the limit of one person"
        );
        assert_eq!(world.gateways.calls(&order, "refund").await, 0);
        assert_eq!(step(&world, "bob", &refund, "approve").await, "pending");
        until(&world, &refund, "succeeded").await;
        world.gateways.faults(&json!({})).await;
        let injected = world.gateways.injected().await["refund_effect_then_timeout"];
        assert!(injected > 0, "the answer was lost");
        let paid_back = [
            ("order.paid", "paid"),
            ("refund.requested", "paid"),
            ("refund.succeeded", "refunded"),
            ("order.refunded", "refunded"),
        ];
        assert_eq!(seen(&world, &order).await, are(&paid_back));
        assert_eq!(world.shop.order(&order).await["refunded_amount"], "4.00");
    }
    world.books_agree().await;
    world.logs_are_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_declined_and_one_that_is_withdrawn_while_it_waits_for_the_balance_return_nothing() {
    let world = world().await;
    for way in WAYS {
        let (order, refund) = requested(&world, way).await;
        assert_eq!(step(&world, "alice", &refund, "decline").await, "declined");
        assert_eq!(world.shop.refund_view(&refund).await["decline_reason"], "the goods were used");
        let declined = [("order.paid", "paid"), ("refund.requested", "paid"), ("refund.declined", "paid")];
        assert_eq!(seen(&world, &order).await, are(&declined));

        let (order, refund) = requested(&world, way).await;
        world.gateways.balance(way.0, Some(0)).await;
        for who in ["alice", "bob"] {
            step(&world, who, &refund, "approve").await;
        }
        eventually("the refund waits for the balance", LONG, async || {
            let failure = world.shop.refund_view(&refund).await["failure"]["code"].clone();
            (failure == "waiting_for_balance").then_some(())
        })
        .await;
        assert_eq!(step(&world, "alice", &refund, "withdraw").await, "processing", "a worker withdraws it");
        until(&world, &refund, "withdrawn").await;
        world.gateways.balance(way.0, None).await;
        let withdrawn =
            [("order.paid", "paid"), ("refund.requested", "paid"), ("case.opened", ""), ("refund.withdrawn", "paid")];
        assert_eq!(seen(&world, &order).await, are(&withdrawn));
        let shown = world.shop.order(&order).await;
        assert_eq!((&shown["status"], &shown["refunded_amount"]), (&json!("paid"), &json!("0.00")));
    }
    world.books_agree().await;
    world.logs_are_clean();
}
