//! One order by any of its numbers, with its story.

use axum::http::Method;
use domain::Scopes;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::callers::{key, send};
use crate::support::{Who, returned};
use crate::world::{Answer, World, token};

const A: Who = Who::Admin("a1");

async fn story(world: &World, number: &str) -> Answer {
    world.request(A, Method::GET, &format!("/v1/admin/orders/{number}"), None).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_names_no_order_is_refused(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let order_no: String = world.one("select order_no from payment_orders").await;
    for wrong in
        ["1", "order_no:", "order_no:%20", "ORDER_NO:ORDER_0001", &format!("id:{order}"), "x:1", ":", "trade_no:a%0Ab"]
    {
        let answer = story(&world, wrong).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], "number", "{wrong}");
    }
    for unknown in [
        "0".repeat(32),
        "order_no:NO_SUCH_ORDER".to_owned(),
        format!("order_no:{}", &order_no[..31]),
        format!("trade_no:{order_no}"),
        "trade_no:'or'1'='1".to_owned(),
        format!("refund_no:{order_no}"),
    ] {
        story(&world, &unknown).await.is(404, "order_not_found");
    }
    story(&world, "%ff").await.is(404, "order_not_found");
}

/// Two gateways may give two trades one number.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_number_of_two_orders_is_ambiguous(db: PgPool) {
    let world = World::new(db).await;
    let (one, two) = (world.placed("u1").await, world.placed("u2").await);
    for (order, method) in [(&one, "wechat"), (&two, "alipay")] {
        let paid = "insert into payment_transactions (id, order_id, transaction_no, payment_method, action_type, amount, status,
                gateway_no, created_at, updated_at)
            values (reverse($1), $1, 'P' || reverse($1), $2, 'payment', 1, 'succeeded', '4200000077', now(), now())";
        sqlx::query(paid).bind(order).bind(method).execute(&world.db).await.unwrap();
    }
    story(&world, "trade_no:4200000077").await.is(409, "ambiguous_number");
    // Two payments of one order are no two orders.
    sqlx::query("update payment_transactions set order_id = $1 where order_id = $2")
        .bind(&one)
        .bind(&two)
        .execute(&world.db)
        .await
        .unwrap();
    assert_eq!(story(&world, "trade_no:4200000077").await.json()["order"]["id"], json!(one));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_story_is_for_those_who_may_read_every_order(db: PgPool) {
    let world = World::new(db.clone()).await;
    let order = world.paid("u1").await;
    let (_, blind) = key(&db, |new| new.scopes = Scopes::parse("payments:orders")).await;
    let (_, reads) = key(&db, |new| new.scopes = Scopes::parse("payments:read")).await;
    world.watch_keys().await;
    let paths = [
        format!("/v1/admin/orders/{order}"),
        "/v1/admin/search?number=u1".to_owned(),
        "/v1/admin/orders?user_id=u1".to_owned(),
        "/v1/admin/orders/summary?created_from=2026-01-01&created_to=2026-01-02".to_owned(),
        "/v1/admin/refunds".to_owned(),
    ];
    for path in &paths {
        // Not even the owner.
        send(&world, &token("u1"), Method::GET, path, None).await.is(403, "scope_missing");
        send(&world, blind.expose_secret(), Method::GET, path, None).await.is(403, "scope_missing");
        world.request(Who::Nobody, Method::GET, path, None).await.is(401, "token_missing");
        let seen = send(&world, reads.expose_secret(), Method::GET, path, None).await;
        assert_eq!(seen.status.as_u16(), 200, "{path}: {}", seen.body);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_is_told_whole_by_each_of_its_numbers(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let order_no: String = world.one("select order_no from payment_orders").await;
    let refund = world.refund("u1", &order, "k1", &json!({ "amount": "1" })).await.json();
    let (refund, refund_no) = (refund["id"].as_str().unwrap(), refund["refund_no"].as_str().unwrap());
    world.tell(refund, &returned()).await;
    let case = world.late_payment(&order, "4200000042").await;
    let callback = "insert into callbacks (payment_method, account, notice_id, order_no, verdict, headers, body, note, received_at, last_seen_at)
        select payment_method, account, 'n1', order_no, 'settled', '{\"x\": \"secret-header\"}', 'secret-body', 'an impossible time', now(), now()
        from payment_orders";
    sqlx::query(callback).execute(&world.db).await.unwrap();
    sqlx::query("alter table payment_orders disable trigger payment_orders_terms_stay")
        .execute(&world.db)
        .await
        .unwrap();
    sqlx::query("update payment_orders set metadata = '{\"a\": \"secret-of-the-shop\"}', prepay = '{\"openid\": \"secret-payer\"}'")
        .execute(&world.db)
        .await
        .unwrap();
    let told = story(&world, &order).await;
    assert!(!told.body.contains("secret-"), "{}", told.body);
    let told = told.json();
    let names =
        [format!("order_no:{order_no}"), format!("trade_no:42{}", &order[2..]), format!("refund_no:{refund_no}")];
    for name in names.iter().map(String::as_str).chain(["trade_no:4200000042"]) {
        assert_eq!(story(&world, name).await.json()["order"], told["order"], "{name}");
    }
    assert_eq!((&told["order"]["id"], &told["order"]["status"]), (&json!(order), &json!("partially_refunded")));
    assert_eq!(told["payments"].as_array().unwrap().len(), 3, "its own, the late one and the refund");
    assert_eq!((&told["refunds"][0]["id"], &told["refunds"][0]["status"]), (&json!(refund), &json!("succeeded")));
    assert_eq!((&told["cases"][0]["id"], &told["cases"][0]["status"]), (&json!(case), &json!("open")));
    let seen = &told["callbacks"][0];
    assert_eq!((&seen["verdict"], &seen["note"]), (&json!("settled"), &json!("an impossible time")));
    let event = &told["events"][0];
    assert_eq!((&event["type"], &event["published_at"]), (&json!("refund.succeeded"), &Value::Null));
    let jobs = told["jobs"].as_array().unwrap();
    let check = jobs.iter().find(|job| job["kind"] == "check").unwrap();
    assert_eq!((&check["attempts"], &check["last_error"]), (&json!(0), &Value::Null));
    assert!(check["due_at"].as_str().unwrap().ends_with('Z'));
    let requests: Vec<(&str, &str)> = told["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|request| (request["route"].as_str().unwrap(), request["caller"].as_str().unwrap()))
        .collect();
    assert_eq!(requests, [("POST /v1/orders", "buyer"), ("POST /v1/orders/{id}/refunds", "buyer")]);

    let line = |what: &str| {
        let moments = told["story"].as_array().unwrap();
        let found = moments.iter().position(|moment| moment["what"].as_str().unwrap().contains(what));
        found.unwrap_or_else(|| panic!("{what}: {}", told["story"]))
    };
    let places =
        [line("created for user u1"), line("POST /v1/orders under"), line("requested by u1"), line("late_payment")];
    assert!(places.is_sorted(), "{}", told["story"]);
    assert!(line("n1 at account main: settled (an impossible time)") > 0);
    let next = told["next"].as_array().unwrap();
    assert!(next.iter().any(|line| line.as_str().unwrap().contains(&case)), "{next:?}");
}
