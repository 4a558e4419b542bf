//! Reading orders: a user reads their own orders, and no others.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::support::Who;
use crate::world::{Answer, World, signed, token};

async fn with_view_token(world: &World, path: &str, token: &str) -> Answer {
    world.send(Request::get(format!("{path}?view_token={token}")).body(Body::empty()).unwrap()).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_of_somebody_else_looks_like_none(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let id = placed["order"]["id"].as_str().unwrap();
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json(), placed["order"]);

    let theirs = world.get(&format!("/v1/orders/{id}"), "u2").await;
    let none = world.get(&format!("/v1/orders/{}", "0".repeat(32)), "u2").await;
    theirs.is(404, "order_not_found");
    assert_eq!(theirs.body, none.body);
    insta::assert_json_snapshot!(theirs.json());
    for id in ["1", "%2e%2e", "0193A1B2C3D47E5F8899AABBCCDDEEFF", "%ff", &"0".repeat(33)] {
        world.get(&format!("/v1/orders/{id}"), "u1").await.is(404, "order_not_found");
        let payment = signed(Method::POST, &format!("/v1/orders/{id}/payment"), "u1");
        world.send(payment.body(Body::empty()).unwrap()).await.is(404, "order_not_found");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_shows_neither_payer_nor_parameters(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let names: Vec<&String> = placed["order"].as_object().unwrap().keys().collect();
    insta::assert_json_snapshot!(names);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_view_token_opens_one_order_and_nothing_else(db: PgPool) {
    let world = World::new(db).await;
    let (mine, other) = (world.order("u1").await, world.order("u1").await);
    let id = |placed: &Value| placed["order"]["id"].as_str().unwrap().to_owned();
    let view_token = mine["view_token"].as_str().unwrap();
    let path = format!("/v1/orders/{}", id(&mine));

    assert_eq!(with_view_token(&world, &path, view_token).await.json(), mine["order"]);
    with_view_token(&world, &format!("/v1/orders/{}", id(&other)), view_token).await.is(404, "order_not_found");
    with_view_token(&world, "/v1/orders", view_token).await.is(401, "token_missing");
    with_view_token(&world, &path, &token("u1")).await.is(401, "token_invalid");
    with_view_token(&world, &path, "").await.is(401, "token_invalid");
    let post = Request::post(format!("{path}/payment?view_token={view_token}")).body(Body::empty()).unwrap();
    world.send(post).await.is(401, "token_missing");

    let order = domain::OrderId::parse(&id(&mine)).unwrap();
    let stale = world.app.clock.now() - Duration::days(1) - Duration::seconds(5);
    let stale = world.app.tokens.view.mint(order, stale).unwrap();
    with_view_token(&world, &path, &stale).await.is(401, "token_expired");
    let last_day = world.app.clock.now() - Duration::hours(23);
    let last_day = world.app.tokens.view.mint(order, last_day).unwrap();
    assert_eq!(with_view_token(&world, &path, &last_day).await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_list_pages_through_ones_own_orders(db: PgPool) {
    let world = World::new(db).await;
    let mut placed = Vec::new();
    for _ in 0..5 {
        placed.push(world.order("u1").await["order"].clone());
    }
    world.order("u2").await;
    placed.sort_by_key(|order| std::cmp::Reverse(order["id"].as_str().unwrap().to_owned()));

    let mut seen = Vec::new();
    let mut path = "/v1/orders?limit=2".to_owned();
    loop {
        let page = world.get(&path, "u1").await.json();
        seen.extend(page["orders"].as_array().unwrap().clone());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/orders?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, placed);
    let all = world.get("/v1/orders", "u1").await.json();
    assert_eq!((all["orders"].as_array().unwrap().len(), &all["next_cursor"]), (5, &Value::Null));
    let exactly = world.get("/v1/orders?limit=5", "u1").await.json();
    assert_eq!(exactly["next_cursor"], Value::Null);
    let empty = world.get("/v1/orders", "u3").await;
    assert_eq!(empty.body, r#"{"orders":[],"next_cursor":null}"#);

    let wrong = world.get("/v1/orders?limit=101&cursor=zzz", "u1").await;
    wrong.is(400, "invalid_fields");
    insta::assert_json_snapshot!(wrong.json());
    for limit in ["0", "-1", "x", "", "9999999999999999999"] {
        world.get(&format!("/v1/orders?limit={limit}"), "u1").await.is(400, "invalid_fields");
    }
}

/// Who may read this list.
fn reader(path: &str) -> Who {
    if path.starts_with("/v1/admin/") { Who::Admin("a1") } else { Who::User("u1") }
}

/// A typing error must not mean "everything".
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_filter_that_does_not_exist_is_named(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let order_no = placed["order"]["order_no"].as_str().unwrap();
    for path in [
        "/v1/orders",
        "/v1/refunds",
        "/v1/admin/stats",
        "/v1/admin/cases",
        "/v1/admin/config/changes",
        "/v1/admin/orders",
        "/v1/admin/orders/summary",
        "/v1/admin/refunds",
        "/v1/admin/search",
    ] {
        let fault_of = async |query: &str| {
            let answer = world.request(reader(path), Method::GET, &format!("{path}?{query}"), None).await;
            answer.is(400, "invalid_fields");
            let errors = answer.json()["errors"].as_array().unwrap().clone();
            let named = errors.iter().map(|error| error["field"].as_str().unwrap().to_owned());
            (named.collect::<Vec<_>>(), errors[0]["message"].as_str().unwrap().to_owned())
        };
        let (named, message) = fault_of(&format!("order_no={order_no}&from=2026-01-01")).await;
        // Not every list has `from`.
        let known = if ["/v1/orders", "/v1/refunds", "/v1/admin/stats"].contains(&path) { 1 } else { 2 };
        assert_eq!(named.len(), known, "{path}: {named:?}");
        assert!(named[0] == "order_no" && message.contains("is not a parameter of this list"), "{message}");
        assert_eq!(fault_of("stauts=paid").await.0, ["stauts"]);
        assert_eq!(fault_of("STATUS=paid&&x").await.0, ["STATUS", "x"]);
        assert_eq!(fault_of(&format!("{}=1", "y".repeat(100))).await.0, ["y".repeat(64)]);
    }
    for path in [
        "/v1/orders",
        "/v1/refunds",
        "/v1/admin/cases",
        "/v1/admin/config/changes",
        "/v1/admin/orders",
        "/v1/admin/refunds",
    ] {
        let twice = world.request(reader(path), Method::GET, &format!("{path}?limit=1&limit=2"), None).await;
        twice.is(400, "invalid_fields");
        assert_eq!(twice.json()["errors"][0]["field"], "limit");
    }
    let all = "limit=1&status=pending&method=alipay&from=2026-01-01&to=2999-01-01";
    assert_eq!(world.get(&format!("/v1/orders?{all}"), "u1").await.json()["orders"].as_array().unwrap().len(), 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_row_with_a_time_that_cannot_be_is_shown_without_it_and_fails_no_list(db: PgPool) {
    let world = World::new(db).await;
    let (id, other) = (world.paid("u1").await, world.paid("u1").await);
    let refund =
        world.refund("u1", &id, "k1", &json!({ "amount": "1" })).await.json()["id"].as_str().unwrap().to_owned();
    world.tell(&refund, &crate::support::returned()).await;
    for time in ["0001-12-31 16:00Z BC", "infinity", "-infinity"] {
        for table in [
            "update payment_orders set paid_at = $1::text::timestamptz where id = $2",
            "update refund_records set succeeded_at = $1::text::timestamptz where order_id = $2",
        ] {
            sqlx::query(table).bind(time).bind(&id).execute(&world.db).await.unwrap();
        }
        let list = world.get("/v1/orders", "u1").await;
        assert_eq!(list.status.as_u16(), 200, "{time}: {}", list.body);
        let shown = list.json()["orders"].as_array().unwrap().clone();
        let of = |id: &str| shown.iter().find(|order| order["id"] == id).unwrap();
        assert_eq!((&of(&id)["paid_at"], &of(&id)["status"]), (&Value::Null, &json!("partially_refunded")), "{time}");
        assert!(of(&other)["paid_at"].is_string());
        let refunds = world.get("/v1/refunds", "u1").await;
        assert_eq!(refunds.status.as_u16(), 200, "{time}: {}", refunds.body);
        assert_eq!(refunds.json()["refunds"][0]["succeeded_at"], Value::Null);
        assert_eq!(world.get(&format!("/v1/refunds/{refund}"), "u1").await.status.as_u16(), 200);
    }
    assert_eq!(world.get(&format!("/v1/orders/{other}"), "u1").await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn payment_methods_are_what_the_accounts_offer(db: PgPool) {
    let world = World::new(db).await;
    let answer = world.send(Request::get("/v1/payment-methods").body(Body::empty()).unwrap()).await;
    insta::assert_json_snapshot!(answer.json());
}
