//! Fresh credentials that the gateway does not give, and refusals that are about us rather than about an order.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::world::{Answer, Mood, PATIENCE, SEAL_KEY, Setup, World, answered, seal_keys, signed, wechat_order};

const OTHER_KEY: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

async fn refresh(world: &World, id: &str) -> Answer {
    world.send(signed(Method::POST, &format!("/v1/orders/{id}/payment"), "u1").body(Body::empty()).unwrap()).await
}

/// A new order: its id and the credential that was answered.
async fn placed(world: &World) -> (String, Value) {
    let placed = world.create("u1", &uuid::Uuid::now_v7().to_string(), &wechat_order()).await.json();
    (placed["order"]["id"].as_str().unwrap().to_owned(), placed["payment"].clone())
}

/// No request to end the order exists, and its check was not brought forward.
async fn is_untouched(world: &World, id: &str) {
    let sql = "select o.status || ' ' || o.version || ' ' || j.payload || ' ' || (j.due_at > now()) \
               from payment_orders o join jobs j on j.ref_id = o.id where o.id = $1";
    let is: String = sqlx::query_scalar(sql).bind(id).fetch_one(&world.db).await.unwrap();
    assert_eq!(is, "pending 1 {} true");
}

const ERRORS: [(Mood, u16, &str); 5] = [
    (Mood::Refuses, 409, "credential_refused"),
    (Mood::RefusesUs, 503, "gateway_misconfigured"),
    (Mood::IsAway, 503, "gateway_unavailable"),
    (Mood::LosesTheAnswer, 503, "gateway_unavailable"),
    (Mood::Babbles, 502, "gateway_protocol"),
];

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refused_refresh_closes_nothing_and_the_last_credential_goes_on(db: PgPool) {
    let world = World::new(db).await;
    let (id, first) = placed(&world).await;
    for (mood, status, code) in ERRORS {
        world.gateway.is(mood);
        let again = refresh(&world, &id).await;
        // The lost answer may have held a credential that ended the last one.
        if matches!(mood, Mood::LosesTheAnswer | Mood::Babbles) {
            again.is(status, code);
            is_untouched(&world, &id).await;
            continue;
        }
        assert_eq!(again.status, StatusCode::OK, "{mood:?}: {}", again.body);
        assert_eq!(again.json()["payment"], first, "{mood:?}");
        is_untouched(&world, &id).await;
    }
    // A fresh one takes the place of the last.
    world.gateway.is(Mood::Works);
    let second = refresh(&world, &id).await.json()["payment"].clone();
    assert_ne!(second, first);
    world.gateway.is(Mood::Refuses);
    assert_eq!(refresh(&world, &id).await.json()["payment"], second);
    assert_eq!(world.count("order_credentials").await, 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_good_credential_the_refusal_has_its_code_and_the_order_stays(db: PgPool) {
    let world = World::new(db).await;
    let (id, _) = placed(&world).await;
    sqlx::query("update order_credentials set valid_until = now()").execute(&world.db).await.unwrap();
    for (mood, status, code) in ERRORS {
        world.gateway.is(mood);
        let refused = refresh(&world, &id).await;
        refused.is(status, code);
        assert!(!refused.body.contains("secret"), "{}", refused.body);
        let code = if mood == Mood::Refuses { json!("RULE_LIMIT") } else { Value::Null };
        assert_eq!(refused.json()["gateway_code"], code, "{mood:?}");
        is_untouched(&world, &id).await;
    }
    world.gateway.is(Mood::Works);
    assert_eq!(refresh(&world, &id).await.status, StatusCode::OK);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_the_gateway_calls_paid_or_closed_is_queried_and_not_closed(db: PgPool) {
    let world = World::new(db).await;
    let due = "select count(*) from jobs where kind = 'check' and due_at <= now() and not payload ? 'close'";
    for (mood, requested) in [(Mood::SaysPaid, 1), (Mood::SaysClosed, 2)] {
        let (id, _) = placed(&world).await;
        world.gateway.is(mood);
        refresh(&world, &id).await.is(409, "order_not_payable");
        world.gateway.is(Mood::Works);
        assert_eq!(world.one::<i64>(due).await, requested, "no credential of it works any more");
        assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["close_requested"], json!(false));
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_stored_credential_is_sealed_for_its_order_and_its_key(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (id, first) = placed(&world).await;
    let (other, _) = placed(&world).await;
    let sealed: Vec<u8> = sqlx::query_scalar("select sealed from order_credentials where order_id = $1")
        .bind(&id)
        .fetch_one(&world.db)
        .await
        .unwrap();
    assert!(!sealed.windows(8).any(|part| part == b"bizpayur"), "the database alone lets no one pay");
    // A row that is copied over another one opens nothing.
    sqlx::query("update order_credentials set sealed = $1 where order_id = $2")
        .bind(&sealed)
        .bind(&other)
        .execute(&world.db)
        .await
        .unwrap();
    world.gateway.is(Mood::Refuses);
    refresh(&world, &other).await.is(409, "credential_refused");

    // Under keys that changed: the previous one opens, and no other.
    for (seal, opens) in [
        (seal_keys([("SEAL_KEY", OTHER_KEY)]), false),
        (seal_keys([("SEAL_KEY", OTHER_KEY), ("PREVIOUS_SEAL_KEY", SEAL_KEY)]), true),
        (None, false),
    ] {
        let world = World::with(db.clone(), Setup { seal, ..Setup::default() }).await;
        world.gateway.is(Mood::Refuses);
        let answer = refresh(&world, &id).await;
        match opens {
            true => assert_eq!(answer.json()["payment"], first),
            false => answer.is(409, "credential_refused"),
        }
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_key_nothing_is_stored_and_what_we_sign_ourselves_never_is(db: PgPool) {
    let world = World::with(db.clone(), Setup { seal: None, ..Setup::default() }).await;
    placed(&world).await;
    let sealing = World::new(db).await;
    sealing.order("u1").await;
    assert_eq!(sealing.count("order_credentials").await, 0);
    // An answer that is repeated under its key is another thing, and needs no seal.
    let first = sealing.create("u1", "k", &wechat_order()).await;
    assert_eq!(sealing.create("u1", "k", &wechat_order()).await.body, first.body);
    assert_eq!(sealing.count("order_credentials").await, 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn our_own_error_ends_no_order_and_calls_people_once(db: PgPool) {
    let world = World::new(db).await;
    world.gateway.is(Mood::RefusesUs);
    for key in ["k1", "k2", "k3"] {
        let refused = world.create("u1", key, &wechat_order()).await;
        refused.is(503, "gateway_misconfigured");
        assert_eq!(refused.header("retry-after"), "60");
        assert!(!refused.body.contains("secret") && !refused.body.contains("NO_AUTH"), "{}", refused.body);
    }
    let until = Instant::now() + PATIENCE;
    while world.count("cases").await == 0 {
        assert!(Instant::now() < until, "no call reached the gateway");
        sleep(std::time::Duration::from_millis(10)).await;
    }
    // Another process, and the same error.
    let other = World::new(world.db.clone()).await;
    other.gateway.is(Mood::RefusesUs);
    other.create("u1", "k4", &wechat_order()).await.is(503, "gateway_misconfigured");
    let of_one = "select string_agg(kind || ' ' || subject_ref, ',') from cases";
    assert_eq!(world.one::<String>(of_one).await, "misconfigured wechat/main:NO_AUTH");
    assert_eq!(world.one::<i64>("select count(*) from events where type = 'case.opened'").await, 1);
    let close_requested = "select count(*) from jobs where payload ? 'close'";
    assert_eq!(world.one::<i64>(close_requested).await, 0);
    // Nothing was kept under the keys: once it is mended the same requests go on with the same orders.
    world.gateway.is(Mood::Works);
    let body = wechat_order();
    for key in ["k1", "k2", "k3", "k4"] {
        let answer = answered(|| world.create("u1", key, &body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    }
    assert_eq!(world.count("payment_orders").await, 4);
}
