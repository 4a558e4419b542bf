//! The payment methods that buyers may choose: an admin changes them, new orders obey them, and the audit log records
//! each change.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Who::Admin;
use crate::world::{Answer, Mood, World, alipay_order, wechat_order};

impl World {
    async fn change(&self, who: &'static str, method: &str, body: &Value) -> Answer {
        self.request(Admin(who), Method::PATCH, &format!("/v1/admin/config/{method}"), Some(body)).await
    }

    async fn offers(&self) -> Value {
        let answer = self.send(Request::get("/v1/payment-methods").body(Body::empty()).unwrap()).await;
        answer.json()["payment_methods"].clone()
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn new_orders_obey_what_is_set(db: PgPool) {
    let world = World::new(db).await;
    let changed = world
        .change("a1", "alipay", &json!({ "version": 1, "disabled_scenes": ["wap", "app"], "max_amount": "12.34" }))
        .await;
    assert_eq!(changed.status.as_u16(), 200, "{}", changed.body);
    let changed = changed.json();
    assert_eq!(
        (&changed["version"], &changed["enabled"], &changed["updated_by"]),
        (&json!(2), &json!(true), &json!("a1"))
    );
    let alipay = &world.offers().await[0];
    assert_eq!((&alipay["scenes"], &alipay["max_amount"]), (&json!(["page"]), &json!("12.34")));

    let with = |name: &str, value: &str| {
        let mut order = alipay_order();
        order[name] = json!(value);
        order
    };
    assert_eq!(world.create("u1", "k1", &alipay_order()).await.status.as_u16(), 201);
    world.create("u1", "k2", &with("scene", "wap")).await.is(409, "scene_disabled");
    let too_much = world.create("u1", "k3", &with("amount", "12.35")).await;
    too_much.is(409, "amount_out_of_range");
    let limits = too_much.json();
    assert_eq!((&limits["min_amount"], &limits["max_amount"]), (&json!("0.01"), &json!("12.34")));
    world.change("a1", "alipay", &json!({ "version": 2, "min_amount": "12.34" })).await;
    world.create("u1", "k4", &with("amount", "12.33")).await.is(409, "amount_out_of_range");

    world.change("a1", "alipay", &json!({ "version": 3, "enabled": false })).await;
    let refused = world.create("u1", "k5", &alipay_order()).await;
    refused.is(409, "method_disabled");
    assert_eq!(refused.json()["title"], "alipay takes no new orders at the moment");
    assert_eq!(world.create("u1", "k6", &wechat_order()).await.status.as_u16(), 201, "the other gateway is on");
    let left: Vec<Value> =
        world.offers().await.as_array().unwrap().iter().map(|o| o["payment_method"].clone()).collect();
    assert_eq!(left, [json!("wechat")]);
    assert_eq!(world.count("payment_orders").await, 2);

    // A key that was refused has made nothing, and works once the rules let it.
    world.change("a1", "alipay", &json!({ "version": 4, "enabled": true })).await;
    assert_eq!(world.create("u1", "k5", &alipay_order()).await.status.as_u16(), 201);
}

/// As an admin page does: it shows the rules, then what buyers see of them.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn rules_that_were_shown_are_in_force_for_the_next_request(db: PgPool) {
    let (world, other) = (World::new(db.clone()).await, World::new(db).await);
    for version in 1..20 {
        let offered = world.offers().await;
        let most = format!("{version}00.00");
        let changed = other.change("a1", "alipay", &json!({ "version": version, "max_amount": most })).await;
        assert_eq!(changed.status.as_u16(), 200, "{}", changed.body);
        assert_ne!(offered[0]["max_amount"], most.as_str());
        let shown = world.request(Admin("a1"), Method::GET, "/v1/admin/config", None).await.json();
        assert_eq!(shown["methods"][0]["max_amount"], most.as_str());
        assert_eq!(world.offers().await[0]["max_amount"], most.as_str());
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_was_placed_is_not_judged_again(db: PgPool) {
    let world = World::new(db).await;
    let first = world.create("u1", "k1", &wechat_order()).await;
    world.gateway.is(Mood::IsAway);
    world.create("u1", "k2", &wechat_order()).await.is(503, "gateway_unavailable");
    world.gateway.is(Mood::Works);
    let off = json!({ "version": 1, "enabled": false, "min_amount": "100.00", "note": "不再收款" });
    assert_eq!(world.change("a1", "wechat", &off).await.status.as_u16(), 200);

    let repeated = world.create("u1", "k1", &wechat_order()).await;
    assert_eq!((repeated.status.as_u16(), &repeated.body), (201, &first.body));
    let resumed = world.create("u1", "k2", &wechat_order()).await;
    assert_eq!(resumed.status.as_u16(), 201, "{}", resumed.body);
    let id = resumed.json()["order"]["id"].as_str().unwrap().to_owned();
    let fresh =
        world.request(crate::support::Who::User("u1"), Method::POST, &format!("/v1/orders/{id}/payment"), None).await;
    assert_eq!(fresh.status.as_u16(), 200, "{}", fresh.body);
    world.create("u1", "k3", &wechat_order()).await.is(409, "method_disabled");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_stale_version_overwrites_nothing_and_each_change_names_its_author(db: PgPool) {
    let world = World::new(db).await;
    let ten = json!({ "version": 1, "max_amount": "10.00", "note": "one" });
    let twenty = json!({ "version": 1, "max_amount": "20.00", "note": "two" });
    let (one, two) = tokio::join!(world.change("a1", "alipay", &ten), world.change("a2", "alipay", &twenty));
    let (won, lost) = if one.status.as_u16() == 200 { (one, two) } else { (two, one) };
    assert_eq!(won.status.as_u16(), 200, "{}", won.body);
    lost.is(409, "config_changed");
    world.change("a3", "wechat", &json!({ "version": 1, "disabled_scenes": ["h5", "native", "h5"] })).await;

    let seen = world.request(Admin("a1"), Method::GET, "/v1/admin/config", None).await.json();
    assert_eq!(seen["methods"][0], won.json());
    assert_eq!(seen["methods"][1]["disabled_scenes"], json!(["native", "h5"]));
    let page = world.request(Admin("a1"), Method::GET, "/v1/admin/config/changes?limit=1", None).await.json();
    assert_eq!((&page["changes"][0]["changed_by"], &page["changes"][0]["note"]), (&json!("a3"), &Value::Null));
    let cursor = page["next_cursor"].as_str().unwrap();
    let path = format!("/v1/admin/config/changes?cursor={cursor}");
    let rest = world.request(Admin("a1"), Method::GET, &path, None).await.json();
    assert_eq!((rest["changes"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    let change = &rest["changes"][0];
    assert_eq!(change["changed_by"], won.json()["updated_by"]);
    assert_eq!((&change["version"], &change["before"]["max_amount"]), (&json!(2), &json!("99999999.99")));
    assert_eq!(change["after"]["max_amount"], won.json()["max_amount"]);
    let of_wechat = "/v1/admin/config/changes?method=wechat";
    let of_wechat = world.request(Admin("a1"), Method::GET, of_wechat, None).await.json();
    assert_eq!(of_wechat["changes"].as_array().unwrap().len(), 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_change_is_judged_whole_before_anything_changes(db: PgPool) {
    let world = World::new(db).await;
    let mut text = String::new();
    for body in [
        json!({}),
        json!({ "version": "1", "enabled": "no", "disabled_scenes": ["native"], "min_amount": 1, "max_amount": "0.00",
                "note": "", "enabeld": true }),
        json!({ "version": 1, "disabled_scenes": "page" }),
        json!({ "version": 1, "min_amount": "2.00", "max_amount": "1.00" }),
        json!({ "version": 1, "note": "x".repeat(2001) }),
    ] {
        let answer = world.change("a1", "alipay", &body).await;
        answer.is(400, "invalid_fields");
        text += &format!("{}\n", domain::shorten_chars(&body.to_string(), 100));
        for fault in answer.json()["errors"].as_array().unwrap() {
            text += &format!("    {}: {}\n", fault["field"].as_str().unwrap(), fault["message"].as_str().unwrap());
        }
    }
    insta::assert_snapshot!(text);
    world.change("a1", "paypal", &json!({ "version": 1 })).await.is(404, "method_not_found");
    assert_eq!(world.count("payment_config_changes").await, 0);
}
