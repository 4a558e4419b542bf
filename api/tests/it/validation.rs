//! The answer to an invalid body: every fault at once, in texts that do not change.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::world::{World, alipay_order, signed, wechat_order};

/// A change of a good body, and the faults that it meets.
async fn faults_of(world: &World, mut body: Value, changes: Value) -> String {
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    let answer = world.create("u1", "k", &body).await;
    answer.is(400, "invalid_fields");
    let changes = changes.to_string();
    let mut faults = format!("{}\n", domain::shorten_chars(&changes, 100));
    for fault in answer.json()["errors"].as_array().unwrap() {
        faults += &format!("    {}: {}\n", fault["field"].as_str().unwrap(), fault["message"].as_str().unwrap());
    }
    faults
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_bad_field_is_named_at_once(db: PgPool) {
    let world = World::new(db).await;
    let nothing = world.create("u1", "k", &json!({})).await;
    insta::assert_json_snapshot!("nothing", nothing.json());
    let everything_wrong = json!({
        "product_type": "two words",
        "subject": "\u{200b}",
        "amount": 12.34,
        "payment_method": "paypal",
        "scene": "moon",
        "openid": "",
        "expires_in": 299,
        "account": "Main",
        "return_url": "https://evil.example.com/",
        "metadata": [],
        "amuont": "1.00",
        "notify_url": "https://evil.example.com/",
    });
    let everything_wrong = world.create("u1", "k", &everything_wrong).await;
    insta::assert_json_snapshot!("everything_wrong", everything_wrong.json());
    assert_eq!(world.count("payment_orders").await + world.count("idempotency_keys").await, 0);
}

/// Two values would be a choice, and other parsers choose the other one.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_member_that_comes_twice_is_named_wherever_it_stands(db: PgPool) {
    let world = World::new(db).await;
    let admin = crate::support::Who::Admin("alice");
    let id = world.order("u1").await["order"]["id"].as_str().unwrap().to_owned();
    let case = world.case("dead_letter", None, "x").await;
    let order = alipay_order().to_string();
    let order = order.trim_end_matches('}');
    for (path, body, twice) in [
        ("/v1/orders".to_owned(), format!("{order},\"amount\":\"2.00\"}}"), "amount"),
        (
            "/v1/orders".to_owned(),
            format!("{order},\"metadata\":{{\"cart\":[{{\"n\":1,\"n\":1}}]}}}}"),
            "metadata.cart.n",
        ),
        (format!("/v1/orders/{id}/refunds"), r#"{"amount":"1.00","amount":"1.00"}"#.to_owned(), "amount"),
        (format!("/v1/admin/cases/{case}/resolve"), r#"{"note":"a","note":"b"}"#.to_owned(), "note"),
        (format!("/v1/admin/cases/{case}/confirm"), r#"{"version":1,"version":2}"#.to_owned(), "version"),
    ] {
        let user = if path.contains("/admin/") { admin } else { crate::support::Who::User("u1") };
        let answer = world.raw(user, &path, body).await;
        answer.is(400, "invalid_fields");
        let errors = json!([{ "field": twice, "message": "comes more than once in its object" }]);
        assert_eq!(answer.json()["errors"], errors, "{path}");
    }
    assert_eq!((world.count("payment_orders").await, world.count("refund_records").await), (1, 0));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_rule_has_its_words(db: PgPool) {
    let world = World::new(db).await;
    let long = "x".repeat(5000);
    let alipay = [
        json!({ "amount": "0" }),
        json!({ "amount": "0.001" }),
        json!({ "amount": "100000000.00" }),
        json!({ "amount": "-1" }),
        json!({ "amount": "" }),
        json!({ "subject": "x".repeat(257) }),
        json!({ "subject": "a\u{0}b" }),
        json!({ "subject": "\u{200b}" }),
        json!({ "subject": " \u{3000}\u{feff}" }),
        json!({ "subject": "R&B 专辑" }),
        json!({ "subject": "1/2 披萨" }),
        json!({ "subject": "A=B" }),
        json!({ "product_type": "" }),
        json!({ "product_type": 7 }),
        json!({ "scene": "native" }),
        json!({ "scene": "qr" }),
        json!({ "openid": "o1" }),
        json!({ "expires_in": 604_801 }),
        json!({ "expires_in": "300" }),
        json!({ "expires_in": 300.5 }),
        json!({ "account": "nobody" }),
        json!({ "account": "retired" }),
        json!({ "return_url": "shop.example.com" }),
        json!({ "return_url": "javascript:alert(1)" }),
        json!({ "return_url": "http://shop.example.com/" }),
        json!({ "return_url": "https://shop.example.com:8443/" }),
        json!({ "return_url": "https://user@shop.example.com/" }),
        json!({ "return_url": "https://shop.example.com.evil.example/" }),
        json!({ "return_url": format!("https://shop.example.com/{long}") }),
        json!({ "metadata": { "long": long } }),
        json!({ "metadata": { "nul": ["a\u{0}"] } }),
        json!({ "metadata": "text" }),
        json!({ "status": "paid" }),
        json!({ "amount": "", "account": "nobody", "return_url": 1 }),
    ];
    let mut all = String::new();
    for changes in alipay {
        all += &faults_of(&world, alipay_order(), changes).await;
    }
    for changes in [
        json!({ "subject": "\u{200b}" }),
        json!({ "scene": "page" }),
        json!({ "scene": "jsapi" }),
        json!({ "scene": "mini", "openid": "o 1" }),
    ] {
        all += &faults_of(&world, wechat_order(), changes).await;
    }
    insta::assert_snapshot!(all);
    assert_eq!(world.count("payment_orders").await, 0);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn bounds_are_inside(db: PgPool) {
    let world = World::new(db).await;
    for (n, changes) in [
        json!({ "amount": "0.01", "expires_in": 300, "subject": "大".repeat(256) }),
        json!({ "amount": "99999999.99", "expires_in": 604_800, "product_type": "x".repeat(32) }),
        json!({ "account": "main", "metadata": { "x": "y".repeat(4096 - 8) }, "openid": null }),
        json!({ "return_url": "https://shop.example.com" }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = alipay_order();
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let answer = world.create("u1", &format!("k{n}"), &body).await;
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.body);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_title_that_alipay_refuses_is_taken_at_wechat_pay(db: PgPool) {
    let world = World::new(db).await;
    for (n, title) in ["R&B 专辑", "1/2 披萨", "A=B"].into_iter().enumerate() {
        let mut body = wechat_order();
        body["subject"] = title.into();
        let answer = world.create("u1", &format!("k{n}"), &body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["order"]["subject"]), (201, &json!(title)));
    }
    assert_eq!(world.get("/v1/orders", "u1").await.json()["orders"].as_array().unwrap().len(), 3);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_is_no_json_object_is_malformed(db: PgPool) {
    let world = World::new(db).await;
    let send = |media: &'static str, body: Vec<u8>| {
        let request =
            signed(Method::POST, "/v1/orders", "u1").header("idempotency-key", "k").header("content-type", media);
        world.send(request.body(Body::from(body)).unwrap())
    };
    for body in ["", "{", "[]", "null", "{\"a\":1}x", "{'a':1}", "{\"a\":1e999}", "\"\\ud800\""] {
        send("application/json", body.into()).await.is(400, "malformed_json");
    }
    send("application/json", vec![0xff, 0xfe]).await.is(400, "malformed_json");
    send("application/json", "[".repeat(60_000).into()).await.is(400, "malformed_json");
    for media in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        send(media, alipay_order().to_string().into()).await.is(415, "unsupported_media_type");
    }
    let answer = send("Application/JSON; charset=utf-8", alipay_order().to_string().into()).await;
    assert_eq!(answer.status.as_u16(), 201, "{}", answer.body);
}
