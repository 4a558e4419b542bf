//! The rules of refunds: what each kind of caller may return, up to the last fen, and who changes the rules.

use axum::http::Method;
use domain::{OrderId, Scopes, TradeNo};
use runtime::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Date, Duration};

use crate::callers::{key, now, of_service, of_staff, with_services};
use crate::support::returned;
use crate::world::{Answer, World, token};

/// The token of a person who signed in just now.
pub fn person(subject: &str) -> String {
    of_staff(subject, "payments:refund payments:config payments:read", now())
}

/// The text of an API key that returns money, which two people have made.
pub async fn key_of_refunds(db: &PgPool) -> String {
    let (id, secret) = key(db, |new| new.scopes = Scopes::parse("payments:refund")).await;
    let mut tx = db.begin().await.unwrap();
    store::tables::api_keys::confirm(&mut tx, id, "a2").await.unwrap();
    tx.commit().await.unwrap();
    secret.expose_secret().to_owned()
}

impl World {
    /// Sends a request with this token and a fresh key.
    pub async fn as_caller(&self, token: &str, (method, path): (Method, &str), body: Option<&Value>) -> Answer {
        let request = axum::http::Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.header("idempotency-key", uuid::Uuid::now_v7().to_string());
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string().into()),
            None => request.body(axum::body::Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    /// Requests a refund of this order.
    pub async fn refund_as(&self, token: &str, order: &str, amount: &str) -> Answer {
        let path = format!("/v1/orders/{order}/refunds");
        self.as_caller(token, (Method::POST, &path), Some(&json!({ "amount": amount }))).await
    }

    /// Changes the rules of WeChat Pay as their version stands.
    pub async fn rule(&self, change: Value) {
        let version: i64 = self.one("select version from payment_config where payment_method = 'wechat'").await;
        let mut change = change;
        change["version"] = json!(version);
        let path = "/v1/admin/config/wechat/refunds";
        let changed = self.as_caller(&person("boss"), (Method::PATCH, path), Some(&change)).await;
        assert_eq!(changed.status.as_u16(), 200, "{}", changed.body);
    }

    /// The money of a refund has arrived.
    async fn arrived(&self, refund: &Answer) {
        self.tell(refund.json()["id"].as_str().unwrap(), &returned()).await;
    }
}

#[track_caller]
pub fn begins(answer: &Answer, status: &str) -> String {
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (202, &json!(status)), "{}", answer.body);
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_gets_what_the_rules_of_the_gateway_say(db: PgPool) {
    let world = with_services(db).await;
    let (order, buyer) = (world.paid("u1").await, token("u1"));
    world.rule(json!({ "buyer_refunds": "off" })).await;
    world.refund_as(&buyer, &order, "1").await.is(403, "refunds_off");
    world.rule(json!({ "buyer_refunds": "request" })).await;
    let request = world.refund_as(&buyer, &order, "1").await;
    begins(&request, "requested");
    assert_eq!(request.header("location"), format!("/v1/refunds/{}", request.json()["id"].as_str().unwrap()));
    // It reserves nothing and leaves the order alone.
    assert_eq!(world.get(&format!("/v1/orders/{order}"), "u1").await.json()["status"], "paid");
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 0);
    assert_eq!(world.one::<i64>("select count(*) from payment_transactions where action_type = 'refund'").await, 0);
    assert_eq!(world.one::<String>("select type from events where type like 'refund.%'").await, "refund.requested");
    world.refund_as(&buyer, &order, "1").await.is(409, "refund_request_open");
    world.rule(json!({ "buyer_refunds": "auto" })).await;
    begins(&world.refund_as(&buyer, &order, "1").await, "pending");
    let list = world.get("/v1/refunds?status=requested", "u1").await.json();
    assert_eq!(list["refunds"].as_array().unwrap().len(), 1, "the request waits beside it");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_who_is_late_gets_nothing_whatever_the_mode(db: PgPool) {
    let world = with_services(db).await;
    let (order, buyer) = (world.placed("u1").await, token("u1"));
    world.pay_at(&order, Clock::system().now() - Duration::days(8)).await;
    for mode in ["auto", "request"] {
        world.rule(json!({ "buyer_refunds": mode, "window_days": 7 })).await;
        world.refund_as(&buyer, &order, "1").await.is(409, "refund_window_over");
    }
    // Only buyers have a window.
    let by_staff = world.refund_as(&person("alice"), &order, "1").await;
    begins(&by_staff, "pending");
    world.arrived(&by_staff).await;
    world.rule(json!({ "window_days": 9 })).await;
    begins(&world.refund_as(&buyer, &order, "1").await, "requested");
}

/// Trap: each part is within the limit, and all together are not.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn splitting_does_not_pass_what_a_buyer_returns_alone(db: PgPool) {
    let world = with_services(db).await;
    let (order, buyer) = (world.paid("u1").await, token("u1"));
    world.rule(json!({ "buyer_refunds": "auto", "auto_max_amount": "3.00" })).await;
    for amount in ["1.00", "1.99"] {
        let part = world.refund_as(&buyer, &order, amount).await;
        begins(&part, "pending");
        world.arrived(&part).await;
    }
    begins(&world.refund_as(&buyer, &order, "0.02").await, "requested");
    let last = world.refund_as(&buyer, &order, "0.01").await;
    begins(&last, "pending");
    world.arrived(&last).await;
    world.refund_as(&buyer, &order, "0.01").await.is(409, "refund_request_open");
    // A failed refund does not count, and one of another caller does.
    let other = world.paid("u1").await;
    let failed = world.refund_as(&buyer, &other, "3.00").await;
    let absent = domain::RefundReport::of(domain::RefundState::Absent);
    world.tell(failed.json()["id"].as_str().unwrap(), &absent).await;
    let by_service = world.refund_as(&of_service("payments:refund"), &other, "1.00").await;
    begins(&by_service, "pending");
    world.arrived(&by_service).await;
    begins(&world.refund_as(&buyer, &other, "2.01").await, "requested");
    begins(&world.refund_as(&buyer, &other, "2.00").await, "pending");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn splitting_does_not_pass_what_a_person_returns_alone(db: PgPool) {
    let world = with_services(db).await;
    let order = world.paid("u1").await;
    world.rule(json!({ "staff_limit": "3.00" })).await;
    for amount in ["1.00", "2.00"] {
        let part = world.refund_as(&person("alice"), &order, amount).await;
        begins(&part, "pending");
        world.arrived(&part).await;
    }
    begins(&world.refund_as(&person("alice"), &order, "0.01").await, "requested");
    world.refund_as(&person("bob"), &order, "0.01").await.is(409, "refund_request_open");
    // The limit is of people, not of the backend.
    begins(&world.refund_as(&of_service("payments:refund"), &order, "0.01").await, "pending");
    let acts = "select string_agg(distinct act, ' ') from audit_log where act like 'refund.%'";
    assert_eq!(world.one::<String>(acts).await, "refund.requested");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn of_many_refunds_at_once_a_key_gets_exactly_its_limit_of_the_day(db: PgPool) {
    let world = with_services(db.clone()).await;
    let key = key_of_refunds(&db).await;
    world.watch_keys().await;
    world.rule(json!({ "service_daily_limit": "7.00" })).await;
    let mut orders = Vec::new();
    for _ in 0..12 {
        orders.push(world.paid("u1").await);
    }
    let all = orders.iter().map(|order| world.refund_as(&key, order, "1.00"));
    let answers = futures_util::future::join_all(all).await;
    let granted = answers.iter().filter(|answer| answer.status.as_u16() == 202).count();
    assert_eq!(granted, 7);
    answers
        .iter()
        .filter(|answer| answer.status.as_u16() != 202)
        .for_each(|answer| answer.is(409, "service_daily_limit"));
    assert_eq!(world.one::<String>("select amount::text from refunds_of_a_day").await, "7.00");
    assert_eq!(world.count("refund_records").await, 7);
    // Another caller has a limit of its own, and people have none.
    let refused = answers.iter().position(|answer| answer.status.as_u16() != 202).unwrap();
    begins(&world.refund_as(&of_service("payments:refund"), &orders[refused], "7.00").await, "pending");
    let other = world.paid("u1").await;
    begins(&world.refund_as(&person("alice"), &other, "12.34").await, "pending");
    // Yesterday does not count.
    let day: Date = world.one("select day from refunds_of_a_day where caller like 'key %'").await;
    assert_eq!(day, runtime::beijing::day(Clock::system().now()));
    sqlx::query("update refunds_of_a_day set day = day - 1").execute(&db).await.unwrap();
    let next = world.paid("u1").await;
    world.refund_as(&key, &next, "7.01").await.is(409, "service_daily_limit");
    begins(&world.refund_as(&key, &next, "7.00").await, "pending");
    world.rule(json!({ "service_daily_limit": null })).await;
    let last = world.paid("u1").await;
    begins(&world.refund_as(&key, &last, "12.34").await, "pending");
    let today = "select amount::text from refunds_of_a_day where caller like 'key %' order by day desc limit 1";
    assert_eq!(world.one::<String>(today).await, "19.34", "a limit that comes later knows the day");
}

/// Trap: a repeat with the same key counts twice.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn neither_a_repeat_nor_a_refusal_counts_for_the_day(db: PgPool) {
    let world = with_services(db).await;
    world.rule(json!({ "service_daily_limit": "2.00" })).await;
    let (order, service) = (world.paid("u1").await, of_service("payments:refund"));
    let path = format!("/v1/orders/{order}/refunds");
    world.refund_as(&service, &order, "12.35").await.is(409, "refund_too_much");
    world.refund_as(&service, &order, "2.01").await.is(409, "service_daily_limit");
    for _ in 0..3 {
        let body = json!({ "amount": "1.00" });
        let again = crate::callers::send(&world, &service, Method::POST, &path, Some(&body)).await;
        assert_eq!(again.status.as_u16(), 202);
    }
    assert_eq!(world.one::<String>("select amount::text from refunds_of_a_day").await, "1.00");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn only_a_person_who_has_just_signed_in_changes_the_rules(db: PgPool) {
    let world = with_services(db).await;
    let path = "/v1/admin/config/wechat/refunds";
    let patch = async |token: &str, body: Value| world.as_caller(token, (Method::PATCH, path), Some(&body)).await;
    let change = json!({ "version": 1, "buyer_refunds": "auto" });
    patch(&of_service("payments:config"), change.clone()).await.is(403, "person_required");
    patch(&token("u1"), change.clone()).await.is(403, "scope_missing");
    patch(&of_staff("a1", "payments:read", now()), change.clone()).await.is(403, "scope_missing");
    patch(&of_staff("a1", "payments:config", now() - 301), change.clone()).await.is(401, "sign_in_again");
    let wrong =
        json!({ "version": 1, "buyer_refunds": "maybe", "window_days": 0, "staff_limit": "-1", "note": "", "x": 1 });
    let wrong = patch(&person("a1"), wrong).await;
    wrong.is(400, "invalid_fields");
    assert_eq!(wrong.json()["errors"].as_array().unwrap().len(), 5, "{}", wrong.body);
    patch(&person("a1"), json!({ "version": 2 })).await.is(409, "config_changed");
    let other = world.as_caller(&person("a1"), (Method::PATCH, "/v1/admin/config/cash/refunds"), Some(&change)).await;
    other.is(404, "method_not_found");

    let limits = json!({
        "version": 1, "buyer_refunds": "request", "window_days": 30, "auto_max_amount": "100", "staff_limit": "0",
        "service_daily_limit": "5000.00", "note": "the first rules",
    });
    let changed = patch(&person("a1"), limits).await.json();
    let [auto, staff] = [&changed["auto_max_amount"], &changed["staff_limit"]];
    assert_eq!((auto, staff, &changed["version"]), (&json!("100.00"), &json!("0.00"), &json!(2)));
    // What is absent stays, and null removes.
    let changed = patch(&person("a1"), json!({ "version": 2, "window_days": null })).await.json();
    let [days, daily] = [&changed["window_days"], &changed["service_daily_limit"]];
    assert_eq!((days, daily), (&Value::Null, &json!("5000.00")));
    let read = world.as_caller(&of_service("payments:read"), (Method::GET, "/v1/admin/config/refunds"), None).await;
    assert_eq!(read.json()["methods"][1], changed);
    assert_eq!(read.json()["methods"][0]["buyer_refunds"], "auto", "the other gateway has rules of its own");
    // Both histories have it, and the rules of orders are as they were.
    let acts = "select string_agg(subject || ' ' || act || ' ' || object, ', ') from audit_log";
    let act = "a1 refund_rules.changed payment_config:wechat";
    assert_eq!(world.one::<String>(acts).await, format!("{act}, {act}"));
    let history = world.as_caller(&person("a1"), (Method::GET, "/v1/admin/config/changes"), None).await.json();
    let latest = &history["changes"][0];
    assert_eq!((&latest["version"], &latest["after"]["refunds"]["window_days"]), (&json!(3), &Value::Null));
    assert_eq!(latest["before"]["refunds"]["window_days"], 30);
    let orders = world.as_caller(&person("a1"), (Method::GET, "/v1/admin/config"), None).await.json();
    assert_eq!((&orders["methods"][1]["version"], &orders["methods"][1]["enabled"]), (&json!(3), &json!(true)));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_names_its_order_by_any_number(db: PgPool) {
    let world = with_services(db).await;
    let (order, service) = (world.paid("u1").await, of_service("payments:refund"));
    let order_no: String = world.one("select order_no from payment_orders").await;
    let trade_no: String = world.one("select trade_no from payment_orders").await;
    let mut refund_no = String::new();
    for name in [format!("order_no:{order_no}"), format!("trade_no:{trade_no}")] {
        let refund = world.refund_as(&service, &name, "1.00").await;
        begins(&refund, "pending");
        assert_eq!(refund.json()["order_id"], json!(order));
        refund_no = refund.json()["refund_no"].as_str().unwrap().to_owned();
        world.arrived(&refund).await;
    }
    begins(&world.refund_as(&service, &format!("refund_no:{refund_no}"), "1.00").await, "pending");
    for name in ["order_no:ORD_0000001", "trade_no:1", "refund_no:R1", "merchant_order_no:1", "order_no:", "x"] {
        world.refund_as(&service, name, "1.00").await.is(404, "order_not_found");
    }
    // Two gateways give two trades one number. A buyer sees only the own order, so it is not ambiguous for that buyer.
    let theirs = world.order("u2").await["order"]["id"].as_str().unwrap().to_owned();
    let (id, now) = (OrderId::parse(&theirs).unwrap(), Clock::system().now());
    let mut tx = world.db.begin().await.unwrap();
    let paid = store::tables::orders::Paid { id, trade_no: TradeNo::parse(trade_no.clone()).unwrap(), paid_at: now };
    store::tables::orders::mark_paid(&mut tx, &[paid], now).await.unwrap();
    tx.commit().await.unwrap();
    let name = format!("trade_no:{trade_no}");
    world.refund_as(&service, &name, "1.00").await.is(409, "ambiguous_number");
    let own = world.refund_as(&token("u2"), &name, "1.00").await;
    begins(&own, "pending");
    assert_eq!(own.json()["order_id"], json!(theirs));
    world.refund_as(&token("u3"), &name, "1.00").await.is(404, "order_not_found");
}

/// A purchase can have several orders, of which all but one are closed.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_merchants_number_means_the_order_that_is_not_closed(db: PgPool) {
    let world = with_services(db).await;
    testkit::make_up_facts(&world.db).await;
    let paid = world.paid("u1").await;
    let mut closed = Vec::new();
    for _ in 0..3 {
        closed.push(world.placed("u1").await);
    }
    let numbered = "update payment_orders set merchant_order_no = 'A1', is_closed = status = 'closed'";
    sqlx::query("update payment_orders set status = 'closed', closed_at = now() where id = any($1::bpchar[])")
        .bind(&closed)
        .execute(&world.db)
        .await
        .unwrap();
    sqlx::query(numbered).execute(&world.db).await.unwrap();
    let service = of_service("payments:refund");
    let refund = world.refund_as(&service, "merchant_order_no:A1", "1.00").await;
    begins(&refund, "pending");
    assert_eq!(refund.json()["order_id"], json!(paid));
    // Another buyer does not learn that it exists.
    world.refund_as(&token("u2"), "merchant_order_no:A1", "1.00").await.is(404, "order_not_found");
    // Without the paid one, none of the closed ones is meant more than another.
    sqlx::query("update payment_orders set merchant_order_no = null where status <> 'closed'")
        .execute(&world.db)
        .await
        .unwrap();
    world.refund_as(&service, "merchant_order_no:A1", "1.00").await.is(409, "ambiguous_number");
}
