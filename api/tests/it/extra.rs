//! What a buyer reads whose money arrived although it was not owed: never "not paid, order again" while we have it.

use axum::body::Body;
use axum::http::{Method, Request};
use domain::OrderId;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::extra;

use crate::support::{Who, returned};
use crate::world::{Answer, World, minted_for, wechat_order};

const ALICE: Who = Who::Admin("alice");
const BOB: Who = Who::Admin("bob");

/// As settling does after what it has written.
async fn follow(world: &World, id: &str) {
    let mut tx = world.db.begin().await.unwrap();
    extra::follow(&mut tx, &[OrderId::parse(id).unwrap()], Clock::system().now()).await.unwrap();
    tx.commit().await.unwrap();
}

/// The order by its own address and in the list, which agree; asked of a process that remembers nothing.
async fn seen(world: &World, id: &str) -> Value {
    let fresh = World::new(world.db.clone()).await;
    let order = fresh.get(&format!("/v1/orders/{id}"), "u1").await.json();
    let listed = fresh.get("/v1/orders?limit=100", "u1").await.json();
    let listed = listed["orders"].as_array().unwrap().iter().find(|order| order["id"] == id).unwrap().clone();
    assert_eq!(order, listed);
    order
}

async fn page(world: &World, placed: &Value, language: &str) -> String {
    let (id, token) = (placed["order"]["id"].as_str().unwrap(), placed["view_token"].as_str().unwrap());
    let request = Request::get(format!("/pay/success?order={id}&view_token={token}"));
    let answer = world.send(request.header("accept-language", language).body(Body::empty()).unwrap()).await;
    // The language that is shown stands last.
    answer.body.rsplit("<section id=").next().unwrap().to_owned()
}

/// The first event of the stream.
async fn streamed(world: &World, id: &str) -> Value {
    let request = Request::get(format!("/v1/orders/{id}/stream"))
        .header("authorization", format!("Bearer {}", minted_for("u1", "")))
        .body(Body::empty())
        .unwrap();
    let mut body = world.open(request).await.into_body().into_data_stream();
    let first = futures_util::StreamExt::next(&mut body).await.unwrap().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    serde_json::from_str(text.lines().find_map(|line| line.strip_prefix("data:")).unwrap()).unwrap()
}

async fn decided(world: &World, case: &str, action: Value) -> Answer {
    let path = format!("/v1/admin/cases/{case}");
    let proposed = world.post(ALICE, &format!("{path}/propose"), &action).await;
    assert_eq!(proposed.status.as_u16(), 200, "{}", proposed.body);
    let version = proposed.json()["version"].clone();
    let confirmed = world.post(BOB, &format!("{path}/confirm"), &json!({ "version": version })).await;
    assert_eq!(confirmed.status.as_u16(), 200, "{}", confirmed.body);
    confirmed
}

async fn placed(world: &World) -> (Value, String) {
    let placed = world.create("u1", &uuid::Uuid::now_v7().to_string(), &wechat_order()).await.json();
    let id = placed["order"]["id"].as_str().unwrap().to_owned();
    (placed, id)
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_late_payment_is_read_as_what_became_of_it(db: PgPool) {
    let world = World::new(db).await;
    let (placed, id) = placed(&world).await;
    world.close_locally(&id).await;
    assert_eq!(seen(&world, &id).await["extra_payment"], Value::Null);
    let unpaid = page(&world, &placed, "zh").await;
    assert!(unpaid.contains("如果您已付款"), "we may not know of it yet: {unpaid}");

    let case = world.late_payment(&id, "4200000001").await;
    follow(&world, &id).await;
    let is = async |state: &str, chinese: &str, english: &str, waits: bool| {
        let order = seen(&world, &id).await;
        assert_eq!((&order["status"], &order["refunded_amount"]), (&json!("closed"), &json!("0.00")), "{state}");
        assert_eq!(order["extra_payment"], json!({ "state": state, "amount": "12.34" }));
        assert_eq!(streamed(&world, &id).await["extra_payment"], order["extra_payment"]);
        for (language, words) in [("zh", chinese), ("en", english)] {
            let page = page(&world, &placed, language).await;
            assert!(page.contains(&format!("<h1 role=\"status\">{words}</h1>")), "{page}");
            assert!(page.contains("¥12.34 · "), "{page}");
            let tells_to_pay = page.contains("重新下单") || page.contains("Place a new order");
            assert!(!tells_to_pay, "{state}: {page}");
            // A page of money under way renews itself, and its stream stays open for that.
            assert_eq!(page.contains("data-stream"), waits, "{state}");
        }
    };
    is("held", "已收到付款，商家处理中", "Your payment has arrived and is being dealt with", true).await;
    decided(&world, &case, json!({ "action": "refund" })).await;
    is("returning", "付款正在退回", "Your payment is on its way back", true).await;
    let refund = world.one::<String>("select id::text from refund_records").await;
    world.tell(&refund, &returned()).await;
    let order = seen(&world, &id).await;
    assert_eq!(order["extra_payment"], json!({ "state": "returned", "amount": "12.34" }));
    assert!(page(&world, &placed, "en").await.contains("Your payment has been returned"));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_second_payment_stands_beside_the_first(db: PgPool) {
    let world = World::new(db).await;
    let (placed, id) = placed(&world).await;
    world.pay(&id).await;
    let case = world.late_payment(&id, "4200000002").await;
    sqlx::query("update cases set kind = 'double_payment'").execute(&world.db).await.unwrap();
    follow(&world, &id).await;
    let shown = page(&world, &placed, "zh").await;
    assert!(
        shown.contains(">付款成功<") && shown.contains("另一笔付款") && shown.contains("已收到，商家处理中"),
        "{shown}"
    );
    // A part of it went back, the rest is still here.
    decided(&world, &case, json!({ "action": "refund", "amount": "2.34" })).await;
    let state = async || seen(&world, &id).await["extra_payment"].clone();
    assert_eq!(state().await, json!({ "state": "returning", "amount": "12.34" }));
    let refund = world.one::<String>("select id::text from refund_records").await;
    world.tell(&refund, &returned()).await;
    assert_eq!(state().await, json!({ "state": "held", "amount": "10.00" }));
    let order = seen(&world, &id).await;
    assert_eq!((&order["status"], &order["refunded_amount"]), (&json!("paid"), &json!("0.00")));
    // Of several, what still has to happen is shown.
    world.late_payment(&id, "4200000003").await;
    follow(&world, &id).await;
    assert_eq!(state().await, json!({ "state": "held", "amount": "22.34" }));
    // The order's own refund is another matter.
    let own = world.refund("u1", &id, "k", &json!({ "amount": "1.00" })).await;
    assert_eq!(own.status.as_u16(), 202, "{}", own.body);
    assert_eq!(state().await, json!({ "state": "held", "amount": "22.34" }));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_of_another_amount_is_held_until_its_case_ends(db: PgPool) {
    let world = World::new(db).await;
    let (placed, id) = placed(&world).await;
    let case = world.case("amount_mismatch", Some(&id), "4200000004").await;
    let set = async |evidence: Value| {
        sqlx::query("update cases set evidence = $1").bind(evidence).execute(&world.db).await.unwrap();
        follow(&world, &id).await;
        seen(&world, &id).await["extra_payment"].clone()
    };
    // Of a refund of ours, or without a readable amount.
    assert_eq!(set(json!({ "refund_no": "R1", "trade_no": "4200000004", "amount": "0.01" })).await, Value::Null);
    assert_eq!(set(json!({ "trade_no": "4200000004" })).await, json!({ "state": "held", "amount": null }));
    for odd in ["1e9", "-1.00", "123456789.00", "1,00", ""] {
        let shown = set(json!({ "trade_no": "4200000004", "amount": odd })).await;
        assert_eq!(shown, json!({ "state": "held", "amount": null }), "{odd}");
    }
    assert_eq!(
        set(json!({ "trade_no": "4200000004", "amount": "0.01" })).await,
        json!({ "state": "held", "amount": "0.01" })
    );
    let shown = page(&world, &placed, "en").await;
    assert!(shown.contains("Your payment has arrived") && shown.contains("¥0.01 · "), "{shown}");
    let note = json!({ "note": "given back at the counter" });
    let resolved = world.request(ALICE, Method::POST, &format!("/v1/admin/cases/{case}/resolve"), Some(&note)).await;
    assert_eq!(resolved.status.as_u16(), 200, "{}", resolved.body);
    assert_eq!(seen(&world, &id).await["extra_payment"], Value::Null);
}
