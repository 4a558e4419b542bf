//! Refunds that people make in the gateways' consoles: found, booked, and counted when the rest is refunded.

use std::time::Duration;

use e2e::http::{answer, http_client};
use e2e::shop::RefundRequest;
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const WAYS: [(Gateway, &str); 2] = [(Gateway::Alipay, "qr"), (Gateway::Wechat, "native")];
const LONG: Duration = Duration::from_secs(60);

async fn world() -> World {
    World::with(Setup { check_workers: 1, refund_workers: 1, speed: 20_000.0, ..Setup::default() }).await
}

async fn bought_and_paid(world: &World, (gateway, scene): (Gateway, &str)) -> Order {
    let order = world.buy(gateway, scene, "4.00").await;
    world.pay(&order).await;
    world.wait_paid(&order).await;
    order
}

/// Time passes until the look back at every paid order.
async fn a_day_passes(world: &World) {
    let sql = "update jobs set due_at = now() where kind = 'look_back'";
    sqlx::query(sql).execute(&world.db).await.expect("the database answers");
}

/// Waits until the order shows that this much was refunded.
async fn shows(world: &World, order: &Order, (status, refunded): (&str, &str)) {
    let what = format!("order {} is {status} with {refunded} returned", order.order_no);
    eventually(&what, LONG, async || {
        let shown = world.shop.order(order).await;
        (shown["status"] == status && shown["refunded_amount"] == refunded).then_some(())
    })
    .await;
}

/// Refunds the rest of 4.00 after 1.50 was refunded in the console: 2.50 are requested, and the order is fully
/// refunded.
async fn the_rest_goes_back(world: &World, order: &Order) {
    let id = world.shop.refund(order, &RefundRequest::of_the_rest()).await;
    eventually("the rest has gone back", LONG, async || {
        (world.shop.refund_view(&id).await["status"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(world.shop.refund_view(&id).await["amount"], "2.50");
    shows(world, order, ("refunded", "4.00")).await;
}

/// The order's refund events: type, amount, who made it.
async fn refund_events(world: &World, order: &Order) -> Vec<(String, String, String)> {
    let events = world.events_of(order).await;
    let refunds = events.iter().filter(|event| event.kind.contains("refund"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    refunds.map(|event| (event.kind.clone(), text(&event.data["refund_amount"]), text(&event.data["origin"]))).collect()
}

fn of(kind: &str, yuan: &str, origin: &str) -> (String, String, String) {
    (kind.to_owned(), yuan.to_owned(), origin.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_refund_with_a_notice_is_booked_at_once_and_the_rest_is_what_is_left() {
    let world = world().await;
    for way in WAYS {
        let order = bought_and_paid(&world, way).await;
        world.gateways.return_in_console(&order, &json!({ "amount_fen": 150 })).await;
        shows(&world, &order, ("partially_refunded", "1.50")).await;
        the_rest_goes_back(&world, &order).await;
        world.wait_quiet(SOON).await;
        assert_eq!(
            refund_events(&world, &order).await,
            [
                of("refund.succeeded", "1.50", "outside"),
                of("refund.succeeded", "2.50", "service"),
                of("order.refunded", "2.50", "service"),
            ]
        );
    }
    assert_eq!(world.number("select count(*) from cases").await, Some(0), "no case is open");
    world.books_agree().await;
    world.logs_are_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_refund_without_a_notice_is_found_a_day_later_and_booked_by_two_people() {
    let world = world().await;
    let order = bought_and_paid(&world, (Gateway::Wechat, "native")).await;
    let silent = json!({ "amount_fen": 150, "out_refund_no": "DESK1", "notify": false });
    world.gateways.return_in_console(&order, &silent).await;
    a_day_passes(&world).await;
    let case = eventually("the look back finds it", LONG, async || {
        world.texts("select id::text from cases where kind = 'unknown_refund' and status = 'open'").await.pop()
    })
    .await;
    assert_eq!(world.shop.order(&order).await["refunded_amount"], "0.00", "the amount is unknown");

    let action = json!({ "action": "book_refund", "refund_no": "DESK1", "amount": "1.50" });
    act(&world, "alice", (&case, "propose"), action).await;
    let version = seen(&world, "bob", &case).await["version"].clone();
    act(&world, "bob", (&case, "confirm"), json!({ "version": version })).await;
    shows(&world, &order, ("partially_refunded", "1.50")).await;
    the_rest_goes_back(&world, &order).await;

    // At both gateways the whole of a payment that goes back in silence is found as well.
    let whole = bought_and_paid(&world, (Gateway::Alipay, "page")).await;
    world.gateways.return_in_console(&whole, &json!({ "notify": false })).await;
    a_day_passes(&world).await;
    shows(&world, &whole, ("refunded", "4.00")).await;
    world.wait_quiet(SOON).await;
    assert_eq!(
        refund_events(&world, &whole).await,
        [of("refund.succeeded", "4.00", "outside"), of("order.refunded", "4.00", "outside")]
    );
    world.books_agree().await;
    world.logs_are_clean();
}

/// The case as one of the merchant's people sees it.
async fn seen(world: &World, who: &str, case: &str) -> Value {
    let url = format!("{}/v1/admin/cases/{case}", world.public_url);
    let request = http_client().get(url).bearer_auth(world.shop.staff_token(who));
    answer(request).await.expect("payment-api answers").json()
}

/// A step of a person with a case.
async fn act(world: &World, who: &str, (case, step): (&str, &str), body: Value) {
    let url = format!("{}/v1/admin/cases/{case}/{step}", world.public_url);
    let request = http_client().request(Method::POST, url).bearer_auth(world.shop.staff_token(who)).json(&body);
    let answer = answer(request).await.expect("payment-api answers");
    assert!([200, 202].contains(&answer.status), "{step} by {who}: {}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_that_came_and_went_before_it_was_recorded_is_never_delivered_for() {
    let world = world().await;
    for way in WAYS {
        let (gateway, scene) = way;
        let order = world.buy(gateway, scene, "4.00").await;
        world.gateways.pay_silently(&order).await;
        world.gateways.return_in_console(&order, &json!({})).await;
        eventually("the notice of the return is processed", SOON, async || {
            let sql = "select 1 from callbacks where order_no = $1";
            sqlx::query(sql).bind(&order.order_no).fetch_optional(&world.db).await.ok()?.map(drop)
        })
        .await;
        // The payment's own notice comes last. While both are in hand, either may be settled first.
        world.gateways.notify(&order, "?event=paid").await;
        eventually("a case is open", SOON, async || {
            let sql = "select count(*) from cases where kind = 'refunded_elsewhere' and order_id = $1";
            let cases: i64 = sqlx::query_scalar(sql).bind(&order.id).fetch_one(&world.db).await.ok()?;
            (cases == 1).then_some(())
        })
        .await;
        assert_eq!(world.status(&order).await, "pending");
    }
    world.wait_quiet(SOON).await;
    let fulfilled = world.downstream.times().keys().filter(|id| id.starts_with("order.paid:")).count();
    assert_eq!(fulfilled, 0, "nothing is delivered for money that is not there");
    world.books_agree().await;
    world.logs_are_clean();
}
