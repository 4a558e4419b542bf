//! `POST /v1/orders` and `POST /v1/orders/{id}/payment`: one order for each key, whatever happens in between.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;
use sqlx::PgPool;

use crate::world::{Answer, Mood, World, alipay_order, answered, creation, signed, wechat_order};

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_is_placed_with_everything_that_follows_from_it(db: PgPool) {
    let world = World::new(db).await;
    let mut body = alipay_order();
    body["return_url"] = json!("https://shop.example.com/thanks?a=1");
    body["metadata"] = json!({ "cart": [1, 2.5, null, { "deep": "é" }] });
    body["expires_in"] = json!(300);
    let answer = world.create("u1", "k1", &body).await;

    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    let placed = answer.json();
    let order = &placed["order"];
    assert_eq!(answer.header("location"), format!("/v1/orders/{}", order["id"].as_str().unwrap()));
    assert_eq!(
        (&order["status"], &order["amount"], &order["version"]),
        (&json!("pending"), &json!("12.34"), &json!(1))
    );
    assert_eq!((&order["metadata"], &order["refunded_amount"]), (&body["metadata"], &json!("0.00")));
    assert_eq!(placed["payment"]["kind"], "redirect");
    let url = url::Url::parse(placed["payment"]["url"].as_str().unwrap()).unwrap();
    assert!(
        url.query_pairs().any(|(name, value)| {
            name == "notify_url" && value == "https://pay.example.com/v1/callbacks/alipay/main"
        })
    );
    for table in ["payment_orders", "payment_transactions", "jobs", "idempotency_keys"] {
        assert_eq!(world.count(table).await, 1, "{table}");
    }
    let read = world.get(answer.header("location"), "u1").await;
    assert_eq!(&read.json(), order, "the answer is what the database holds");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_repeat_answers_the_same_bytes(db: PgPool) {
    let world = World::new(db).await;
    for body in [alipay_order(), wechat_order()] {
        let key = body["payment_method"].as_str().unwrap();
        let first = world.create("u1", key, &body).await;
        let again = world.create("u1", key, &body).await;
        assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED));
        assert_eq!(first.body, again.body);
        assert_eq!(first.header("location"), again.header("location"));
    }
    assert_eq!((world.count("payment_orders").await, world.gateway.calls()), (2, 1));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn sixty_four_at_once_make_one_order_and_agree(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::Slow(Duration::from_millis(50)));
    let body = wechat_order();
    let sent = (0..64).map(|_| answered(|| world.create("u1", "k1", &body)));
    let answers = futures_util::future::join_all(sent).await;
    let bodies: HashSet<&str> = answers.iter().map(|answer| answer.body.as_str()).collect();
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED), "{bodies:?}");
    assert_eq!(bodies.len(), 1);
    assert_eq!((world.count("payment_orders").await, world.count("payment_transactions").await), (1, 1));
    assert_eq!(world.gateway.calls(), 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn two_processes_agree_as_well_and_call_the_gateway_once(db: PgPool) {
    let (one, other) = (World::new(db.clone()).await, World::new(db).await);
    let body = wechat_order();
    for world in [&one, &other] {
        world.gateway.is(Mood::Slow(Duration::from_millis(300)));
    }
    let (first, second) = tokio::join!(one.create("u1", "k1", &body), other.create("u1", "k1", &body));
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(one.count("payment_orders").await, 1);
    // A second credential would have put the first one out of use.
    assert_eq!(one.gateway.calls() + other.gateway.calls(), 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_a_crash_left_unanswered_is_waited_for_and_then_taken_over(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::IsAway);
    world.create("u1", "k1", &wechat_order()).await.is(503, "gateway_unavailable");
    world.gateway.is(Mood::Works);
    // As a process leaves it that died before it answered.
    let hold = |seconds: i32| {
        let sql = "update idempotency_keys set held_until = now() + $1 * interval '1 second'";
        sqlx::query(sql).bind(seconds).execute(&world.db)
    };
    hold(60).await.unwrap();
    let early = world.create("u1", "k1", &wechat_order()).await;
    early.is(409, "request_in_flight");
    assert_eq!((early.header("retry-after"), world.gateway.calls()), ("1", 1));
    hold(-1).await.unwrap();
    let answer = world.create("u1", "k1", &wechat_order()).await;
    assert_eq!((answer.status, world.gateway.calls()), (StatusCode::CREATED, 2));
    assert_eq!(world.count("payment_orders").await, 1);
    assert_eq!(world.create("u1", "k1", &wechat_order()).await.body, answer.body);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn another_request_hears_that_the_key_is_taken_even_while_its_owner_is_under_way(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::Waits);
    let (body, mut other) = (wechat_order(), wechat_order());
    other["amount"] = json!("1.00");
    let slow = world.create("u1", "k1", &body);
    let others = async {
        world.gateway.is_called().await;
        let (same, another) = tokio::join!(world.create("u1", "k1", &body), world.create("u1", "k1", &other));
        world.gateway.let_go();
        (same, another)
    };
    let (slow, (same, another)) = tokio::join!(slow, others);
    same.is(409, "request_in_flight");
    another.is(422, "idempotency_key_reused");
    assert_eq!((slow.status, world.count("payment_orders").await), (StatusCode::CREATED, 1));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn who_has_lost_his_hold_saves_nothing(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::Waits);
    let body = wechat_order();
    let slow = world.create("u1", "k1", &body);
    let taken_over = async {
        world.gateway.is_called().await;
        sqlx::query("update idempotency_keys set held_until = now() + interval '1 h'")
            .execute(&world.db)
            .await
            .unwrap();
        world.gateway.let_go();
    };
    let (slow, ()) = tokio::join!(slow, taken_over);
    slow.is(409, "request_in_flight");
    assert_eq!(world.one::<i64>("select count(*) from idempotency_keys where answer is null").await, 1);
    // An expired key does not change its owner either while a request works under it.
    sqlx::query("update idempotency_keys set expires_at = now()").execute(&world.db).await.unwrap();
    world.create("u1", "k1", &wechat_order()).await.is(409, "request_in_flight");
    assert_eq!(world.count("payment_orders").await, 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_says_when_it_is_forgotten_and_then_is_a_new_one(db: PgPool) {
    let world = World::new(db).await;
    let first = world.create("u1", "k1", &wechat_order()).await;
    let again = world.create("u1", "k1", &wechat_order()).await;
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), ("", "true"));
    let expires = first.header("idempotency-expires");
    assert_eq!(expires, again.header("idempotency-expires"));
    let stated = time::OffsetDateTime::parse(expires, &time::format_description::well_known::Rfc3339).unwrap();
    let stored = world.one::<time::OffsetDateTime>("select expires_at from idempotency_keys").await;
    assert_eq!(stated, stored);
    assert!(stored > world.one::<time::OffsetDateTime>("select now() + interval '23 h'").await);

    let mut other = wechat_order();
    other["amount"] = json!("1.00");
    world.create("u1", "k1", &other).await.is(422, "idempotency_key_reused");
    sqlx::query("update idempotency_keys set expires_at = now()").execute(&world.db).await.unwrap();
    let fresh = world.create("u1", "k1", &other).await;
    assert_eq!(fresh.status, StatusCode::CREATED, "{}", fresh.body);
    assert_ne!(fresh.header("location"), first.header("location"));
    assert_eq!((world.count("payment_orders").await, world.count("idempotency_keys").await), (2, 1));
    world.create("u1", "k1", &wechat_order()).await.is(422, "idempotency_key_reused");
}

/// While an order can be paid, a repeat must not make a second one.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_outlives_its_order_by_a_day(db: PgPool) {
    let world = World::new(db).await;
    for (body, key) in [(alipay_order(), "k1"), (wechat_order(), "k2")] {
        let body = |expires_in| {
            let mut body = body.clone();
            body["expires_in"] = json!(expires_in);
            body
        };
        let long = world.create("u1", key, &body(604_800)).await;
        assert_eq!(long.status, StatusCode::CREATED, "{}", long.body);
        let read =
            |text: &str| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap();
        let end = read(long.json()["order"]["expires_at"].as_str().unwrap());
        assert_eq!(read(long.header("idempotency-expires")), end + time::Duration::days(1), "{key}");
        let short = world.create("u1", &format!("{key}-short"), &body(300)).await;
        let made = read(short.json()["order"]["created_at"].as_str().unwrap());
        let stored = read(short.header("idempotency-expires"));
        assert!(stored >= made + time::Duration::days(1), "{stored}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_is_required_well_formed_and_bound_to_one_request_of_one_user(db: PgPool) {
    let world = World::new(db).await;
    let without = signed(Method::POST, "/v1/orders", "u1").header("content-type", "application/json");
    world.send(without.body(Body::from(alipay_order().to_string())).unwrap()).await.is(400, "idempotency_key_required");
    world.create("u1", "", &alipay_order()).await.is(400, "idempotency_key_required");
    for key in ["two words", &"k".repeat(256)] {
        world.create("u1", key, &alipay_order()).await.is(400, "idempotency_key_invalid");
    }
    assert_eq!(world.create("u1", &"k".repeat(255), &alipay_order()).await.status, StatusCode::CREATED);

    assert_eq!(world.create("u1", "k1", &alipay_order()).await.status, StatusCode::CREATED);
    let mut other = alipay_order();
    other["amount"] = json!("12.35");
    world.create("u1", "k1", &other).await.is(422, "idempotency_key_reused");
    world.create("u1", "k1", &json!({})).await.is(422, "idempotency_key_reused");
    let theirs = world.create("u2", "k1", &other).await;
    assert_eq!(theirs.status, StatusCode::CREATED, "another user's key is another key");
    assert_eq!(world.count("payment_orders").await, 3);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_that_another_transaction_holds_is_in_flight(db: PgPool) {
    let world = World::new(db.clone()).await;
    let mut other = db.begin().await.unwrap();
    sqlx::query(
        "insert into idempotency_keys (user_id, key, route, request_hash, ref_id, created_at, expires_at) \
         values ('u1', 'k1', 'POST /v1/orders', sha256(''), repeat('0', 32), now(), now())",
    )
    .execute(&mut *other)
    .await
    .unwrap();
    let impatient = sqlx::postgres::PgPoolOptions::new()
        .connect_with(db.connect_options().as_ref().clone().options([("lock_timeout", "200ms")]))
        .await
        .unwrap();
    let impatient = World::new(impatient).await;
    let answer = impatient.create("u1", "k1", &alipay_order()).await;
    answer.is(409, "request_in_flight");
    assert_eq!(answer.header("retry-after"), "1");
    drop(other);
    assert_eq!(world.create("u1", "k1", &alipay_order()).await.status, StatusCode::CREATED);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_failed_prepay_leaves_the_order_to_be_tried_again_under_its_key(db: PgPool) {
    let world = World::new(db).await;
    for (mood, status, code) in [
        (Mood::IsAway, 503, "gateway_unavailable"),
        (Mood::LosesTheAnswer, 503, "gateway_unavailable"),
        (Mood::Babbles, 502, "gateway_protocol"),
        (Mood::Panics, 500, "internal"),
    ] {
        world.gateway.is(mood);
        let answer = world.create("u1", "k1", &wechat_order()).await;
        answer.is(status, code);
        assert_eq!(answer.header("retry-after").is_empty(), status != 503, "{mood:?}");
        assert!(!answer.body.contains("secret"), "{}", answer.body);
    }
    world.gateway.is(Mood::Works);
    let answer = world.create("u1", "k1", &wechat_order()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(world.count("payment_orders").await, 1);
    let prepaid = world.gateway.prepaid.lock().unwrap();
    assert!(prepaid.len() == 5 && prepaid.iter().all(|params| *params == prepaid[0]), "the same parameters each time");
}

/// The only order of this world. Its close is requested, but until the worker closes it, it does not change.
async fn given_up(world: &World) -> String {
    let id = world.one::<String>("select id::text from payment_orders").await;
    let close_requested = "select count(*) from jobs where kind = 'check' and due_at <= now() and payload = '{\"close\": true}' \
                and ref_id = (select id from payment_orders)";
    assert_eq!(world.one::<i64>(close_requested).await, 1);
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["status"], "pending");
    id
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_the_gateway_refuses_for_good_is_given_up(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::Refuses);
    let refused = world.create("u1", "k1", &wechat_order()).await;
    refused.is(409, "order_unusable");
    assert_eq!(refused.json()["gateway_code"], "RULE_LIMIT");
    assert!(!refused.body.contains("secret"), "{}", refused.body);
    let id = given_up(&world).await;
    // The worker queries the gateway, which answers that the order is not paid.
    world.close_locally(&id).await;

    world.gateway.is(Mood::Works);
    let again = world.create("u1", "k1", &wechat_order()).await;
    again.is(409, "order_unusable");
    assert_eq!((again.body.as_str(), again.header("idempotency-replayed")), (refused.body.as_str(), "true"));
    assert_eq!(world.gateway.calls(), 1, "the key asks for nothing more");
    assert_eq!(world.create("u1", "k2", &wechat_order()).await.status, StatusCode::CREATED);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_the_gateway_calls_paid_is_not_to_be_replaced(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::SaysPaid);
    let refused = world.create("u1", "k1", &wechat_order()).await;
    refused.is(409, "order_not_payable");
    assert!(!refused.body.contains("secret"), "{}", refused.body);
    let id = given_up(&world).await;
    // The worker asks the gateway, and hears of the payment.
    world.pay(&id).await;
    world.create("u1", "k1", &wechat_order()).await.is(409, "order_not_payable");
    assert_eq!(world.gateway.calls(), 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_client_that_hangs_up_changes_nothing(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::Waits);
    tokio::select! {
        _ = world.open(creation("u1", "k1", &wechat_order())) => panic!("the gateway has not answered"),
        () = world.gateway.is_called() => {}
    }
    world.gateway.let_go();
    let answer = world.create("u1", "k1", &wechat_order()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!((world.count("payment_orders").await, world.gateway.calls()), (1, 1));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_repeat_is_not_judged_by_rules_that_came_later(db: PgPool) {
    let world = World::new(db.clone()).await;
    let mut body = alipay_order();
    body["return_url"] = json!("https://shop.example.com/thanks");
    let first = world.create("u1", "k1", &body).await;
    let mut stricter = crate::world::Setup::default();
    stricter.settings.return_url_origins.clear();
    let later = World::with(db, stricter).await;
    assert_eq!(later.create("u1", "k1", &body).await.body, first.body);
    later.create("u1", "k2", &body).await.is(400, "invalid_fields");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_fresh_credential_comes_from_the_same_parameters(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.create("u1", "k1", &wechat_order()).await.json();
    let path = format!("/v1/orders/{}/payment", placed["order"]["id"].as_str().unwrap());
    let again = |user: &str| world.send(signed(Method::POST, &path, user).body(Body::empty()).unwrap());

    let fresh = again("u1").await;
    assert_eq!(fresh.status, StatusCode::OK, "{}", fresh.body);
    assert_eq!(fresh.json()["order"], placed["order"]);
    assert_ne!(fresh.json()["payment"], placed["payment"]);
    again("u2").await.is(404, "order_not_found");
    {
        let prepaid = world.gateway.prepaid.lock().unwrap();
        assert_eq!(prepaid[0], prepaid[1]);
    }
    sqlx::query("update payment_orders set expires_at = now() - interval '1 s'").execute(&world.db).await.unwrap();
    again("u1").await.is(409, "order_not_payable");
    sqlx::query("update payment_orders set status = 'closed', closed_at = now(), expires_at = now() + interval '1 h'")
        .execute(&world.db)
        .await
        .unwrap();
    again("u1").await.is(409, "order_not_payable");
    assert_eq!(world.gateway.calls(), 2);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_scene_gets_its_kind_of_credential(db: PgPool) {
    let world = World::new(db).await;
    for (scene, kind) in [("page", "redirect"), ("wap", "redirect"), ("app", "invoke")] {
        let mut body = alipay_order();
        body["scene"] = json!(scene);
        let answer: Answer = world.create("u1", scene, &body).await;
        assert_eq!(answer.json()["payment"]["kind"], kind, "{}", answer.body);
    }
    for scene in ["jsapi", "mini"] {
        let mut body = wechat_order();
        body["scene"] = json!(scene);
        body["openid"] = json!("oUpF8uMuAJO_M2pxb1Q9zNjWeS6o");
        let answer = world.create("u1", scene, &body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        assert!(!answer.body.contains("oUpF8u"), "the payer's id is not shown");
    }
    let prepaid = world.gateway.prepaid.lock().unwrap();
    assert!(prepaid[0].to_string().contains("oUpF8u"), "and reaches the gateway");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_database_nothing_is_placed(db: PgPool) {
    let world = World::new(db.clone()).await;
    db.close().await;
    let answer = world.create("u1", "k1", &alipay_order()).await;
    answer.is(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "2");
}
