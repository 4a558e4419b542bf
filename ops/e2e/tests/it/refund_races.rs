//! Many clients request the same money at once.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::http::Answer;
use e2e::process::Process;
use e2e::shop::RefundRequest;
use e2e::{Gateway, Order, Setup, World};
use futures_util::future::join_all;

/// Requests at once.
const CROWD: usize = 64;
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_refunds_requested_at_once_one_is_in_flight_and_they_end_at_what_was_paid() {
    let world = World::with(Setup { refund_workers: 2, ..Setup::default() }).await;
    let order = paid(&world, Gateway::Alipay, "page", "10.00").await;

    // No worker continues refunds: the first one stays in flight.
    world.refund_workers.iter().for_each(Process::kill);
    let answers = crowd(&world, &order, || RefundRequest::of(300)).await;
    assert_eq!(codes(&answers), [("202".to_owned(), 1), ("refund_in_progress".to_owned(), CROWD - 1)].into());
    in_flight_is(&world, 1).await;
    world.refund_workers.iter().for_each(Process::spawn);
    world.wait_quiet(LONG).await;

    // From now on some are asked for after the one before has ended. Three times 3.00 fit.
    let mut taken = 1;
    for _ in 0..CROWD {
        let answers = crowd(&world, &order, || RefundRequest::of(300)).await;
        let codes = codes(&answers);
        taken += codes.get("202").copied().unwrap_or_default();
        let known = ["202", "refund_in_progress", "refund_too_much"];
        assert!(codes.keys().all(|code| known.contains(&code.as_str())), "{codes:?}");
        never_over_paid(&world, &order).await;
        world.wait_quiet(LONG).await;
        if codes == [("refund_too_much".to_owned(), CROWD)].into() {
            assert!(answers.iter().all(|answer| answer.json()["refundable_amount"] == "1.00"), "{answers:?}");
            break;
        }
    }
    assert_eq!(taken, 3, "refunds of 3.00 out of 10.00");

    let rest = codes(&crowd(&world, &order, RefundRequest::of_the_rest).await);
    assert_eq!(rest.get("202"), Some(&1), "{rest:?}");
    assert!(
        rest.keys().all(|code| ["202", "refund_in_progress", "already_refunded"].contains(&code.as_str())),
        "{rest:?}"
    );
    world.wait_quiet(LONG).await;
    let after = codes(&crowd(&world, &order, RefundRequest::of_the_rest).await);
    assert_eq!(after, [("already_refunded".to_owned(), CROWD)].into());
    let shown = world.shop.order(&order).await;
    assert_eq!((&shown["status"], &shown["refunded_amount"]), (&"refunded".into(), &"10.00".into()), "{shown}");
    assert_eq!(world.number("select count(*) from refund_records").await, Some(4));
    world.books_agree().await;
    world.logs_are_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_64_times_at_once_makes_one_refund_and_is_answered_the_same() {
    let world = World::with(Setup { refund_workers: 1, ..Setup::default() }).await;
    for (gateway, scene) in [(Gateway::Alipay, "page"), (Gateway::Wechat, "native")] {
        let order = paid(&world, gateway, scene, "10.00").await;
        let request = RefundRequest::of(400);
        let requests = (0..CROWD).map(|_| world.shop.request_refund(&order, &request));
        let mut answers: Vec<Answer> = Vec::new();
        for answer in join_all(requests).await {
            let answer = answer.expect("payment-api answers");
            // A request that could not wait longer for the first one gets the time to repeat, and then the same answer.
            assert!(answer.status == 202 || answer.retry_after.is_some(), "{answer:?}");
            answers.push(if answer.status == 202 { answer } else { world.shop.refund_answer(&order, &request).await });
        }
        let first = &answers[0];
        assert_eq!(first.json()["status"], "pending", "{first:?}");
        assert!(answers.iter().all(|answer| (answer.status, &answer.text) == (202, &first.text)), "{answers:?}");
        world.wait_quiet(LONG).await;
        let id = first.json()["id"].as_str().expect("an id").to_owned();
        assert_eq!(world.shop.refund_view(&id).await["status"], "succeeded");
        let later = world.shop.refund_answer(&order, &request).await;
        assert_eq!(
            (later.status, &later.text),
            (202, &first.text),
            "the answer of the first time, also when it is over"
        );
        let other = RefundRequest { yuan: Some("4.01".to_owned()), ..request };
        let reused = world.shop.refund_answer(&order, &other).await;
        assert_eq!((reused.status, reused.code().as_str()), (422, "idempotency_key_reused"));
        assert_eq!(world.shop.order(&order).await["status"], "partially_refunded");
    }
    assert_eq!(world.number("select count(*) from refund_records").await, Some(2), "one at each gateway");
    world.books_agree().await;
    world.logs_are_clean();
}

async fn paid(world: &World, gateway: Gateway, scene: &str, yuan: &str) -> Order {
    let order = world.buy(gateway, scene, yuan).await;
    world.pay(&order).await;
    world.wait_paid(&order).await;
    order
}

/// All clients send the request at once, each with its own key.
async fn crowd(world: &World, order: &Order, request: impl Fn() -> RefundRequest) -> Vec<Answer> {
    let requests: Vec<RefundRequest> = (0..CROWD).map(|_| request()).collect();
    join_all(requests.iter().map(|request| world.shop.refund_answer(order, request))).await
}

/// How often each answer was given: `202`, or the code of the problem.
fn codes(answers: &[Answer]) -> BTreeMap<String, usize> {
    let mut codes = BTreeMap::new();
    for answer in answers {
        let code = if answer.status == 202 { "202".to_owned() } else { answer.code() };
        *codes.entry(code).or_default() += 1;
    }
    codes
}

async fn in_flight_is(world: &World, number: i64) {
    let sql = "select count(*) from refund_records where status in ('pending', 'processing')";
    assert_eq!(world.number(sql).await, Some(number));
}

/// What went back and what may still go back is never more than what was paid.
async fn never_over_paid(world: &World, order: &Order) {
    let sql = "select coalesce(sum(refund_amount * 100), 0)::bigint from refund_records where status <> 'failed'";
    let reserved = world.number(sql).await.expect("a sum");
    assert!(reserved <= order.amount_fen, "{reserved} of {}", order.amount_fen);
    let there = world.gateways.trade(order).await;
    assert!(there["refunded_fen"].as_i64().is_some_and(|fen| fen <= order.amount_fen), "{there}");
}
