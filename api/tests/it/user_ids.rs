//! User ids as identity providers send them: up to 64 characters, once the release before is gone.

use axum::http::Method;
use domain::{OrderId, TradeNo};
use runtime::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::settle::events;
use store::tables::{events as outbox, orders};

use crate::callers::{key, send};
use crate::support::Log;
use crate::world::{Setup, World, alipay_order};

const UUID: &str = "7f1c2f0e-5a2b-4c1d-9e3f-0a1b2c3d4e5f";
const PROVIDER: &str = "login-oauth2|104215367890123456789";
const SHORT: &str = "7f1c2f0e5a2b4c1d9e3f0a1b2c3d4e5f";
const LONGEST: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

async fn world_with(db: PgPool, long_user_ids: bool) -> World {
    let authenticator = Setup::default().authenticator.with_long_user_ids(long_user_ids);
    World::with(db, Setup { authenticator, ..Setup::default() }).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn subjects_are_taken_up_to_their_length_and_the_log_says_why_others_are_not(db: PgPool) {
    const SWITCH: &str = "set LONG_USER_IDS once every process of the release before is gone";
    let too_long = "x".repeat(65);
    let (on, off) = (world_with(db.clone(), true).await, world_with(db, false).await);
    let (log, _here) = Log::kept();
    for user in [UUID, PROVIDER, LONGEST, SHORT] {
        assert_eq!(on.get("/v1/orders", user).await.status.as_u16(), 200, "{user}");
    }
    assert_eq!(log.lines("was refused"), [""; 0]);
    for user in [UUID, PROVIDER, LONGEST] {
        off.get("/v1/orders", user).await.is(401, "token_invalid");
    }
    assert_eq!(off.get("/v1/orders", SHORT).await.status.as_u16(), 200);
    let lines = log.lines("its sub has more than 32 characters");
    assert!(lines.len() == 3 && lines.iter().all(|line| line.contains(SWITCH)), "{lines:?}");
    for world in [&on, &off] {
        world.get("/v1/orders", &too_long).await.is(401, "token_invalid");
    }
    assert_eq!(log.lines("its sub does not fit: it must be a user id of 1 to 64 printable ASCII characters").len(), 2);
    let refusals = log.lines("was refused");
    assert!(refusals.iter().all(|line| !line.contains(UUID) && !line.contains(&too_long)), "a value is not repeated");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_backend_names_users_of_the_same_length(db: PgPool) {
    let (on, off) = (world_with(db.clone(), true).await, world_with(db.clone(), false).await);
    let (_, backend) = key(&db, |_| {}).await;
    for world in [&on, &off] {
        world.watch_keys().await;
    }
    let create = async |world: &World, user: &str| {
        let mut order = alipay_order();
        order["user_id"] = json!(user);
        let request = axum::http::Request::post("/v1/orders")
            .header("authorization", format!("Bearer {}", backend.expose_secret()))
            .header("content-type", "application/json")
            .header("idempotency-key", uuid::Uuid::now_v7().to_string());
        world.send(request.body(order.to_string().into()).unwrap()).await
    };
    for user in [UUID, PROVIDER, LONGEST, SHORT] {
        assert_eq!(create(&on, user).await.status.as_u16(), 201, "{user}");
    }
    let owners = "select count(*) from payment_orders where length(user_id) > 32";
    assert_eq!(sqlx::query_scalar::<_, i64>(owners).fetch_one(&db).await.unwrap(), 3);
    assert_eq!(create(&off, SHORT).await.status.as_u16(), 201);
    let refused = create(&off, UUID).await;
    refused.is(400, "invalid_fields");
    assert!(refused.body.contains("LONG_USER_IDS"), "{}", refused.body);
    for user in ["x".repeat(65), String::new(), "two words".to_owned()] {
        let refused = create(&on, &user).await;
        refused.is(400, "invalid_fields");
        assert!(refused.body.contains("1 to 64 printable ASCII characters"), "{}", refused.body);
    }
}

/// From the creation of an order to its event, nothing on the way is shorter than the user's id.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_of_a_long_user_goes_all_the_way(db: PgPool) {
    let world = world_with(db.clone(), true).await;
    let schema = include_str!("../../../shared/domain/schemas/order.paid.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let longest = schema["properties"]["user_id"]["maxLength"].as_u64().unwrap();
    for user in [UUID, PROVIDER, LONGEST] {
        let id = world.paid(user).await;
        let path = format!("/v1/orders/{id}");
        assert_eq!(world.get(&path, user).await.status.as_u16(), 200, "{user}");
        assert_eq!(world.get("/v1/orders", user).await.json()["orders"][0]["id"], json!(id));
        // The same beginning is another user.
        world.get(&path, &user[..32]).await.is(404, "order_not_found");
        world.get(&path, &user[..user.len() - 1]).await.is(404, "order_not_found");

        let order = orders::get(&db, OrderId::parse(&id).unwrap()).await.unwrap().unwrap();
        let trade_no: &TradeNo = order.trade_no.as_ref().unwrap();
        let event = events::order_paid(&order, trade_no, order.paid_at.unwrap());
        let mut tx = db.begin().await.unwrap();
        outbox::append(&mut tx, &[event], Clock::system().now()).await.unwrap();
        tx.commit().await.unwrap();
        let told: String = sqlx::query_scalar("select data->>'user_id' from events where order_id = $1")
            .bind(&id)
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(told, user);
        assert!(told.len() as u64 <= longest, "its schema");

        let refund = world.refund(user, &id, "k1", &json!({})).await;
        assert_eq!(refund.status.as_u16(), 202, "{}", refund.body);
        let again = world.refund(user, &id, "k1", &json!({})).await;
        assert_eq!((again.body, again.headers["idempotency-replayed"].as_bytes()), (refund.body, &b"true"[..]));
        let by: String = sqlx::query_scalar("select requested_by from refund_records where order_id = $1")
            .bind(&id)
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(by, user);
    }
}

/// A service with the longest subject leaves its name where people leave theirs.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_name_of_the_longest_caller_fits_everywhere(db: PgPool) {
    use payment_api::access::key::{Claimed, Issuer};

    let services = Claimed { of: Issuer::Services, issuer: "service".to_owned(), audience: "payment-api".to_owned() };
    let secret = "a-secret-of-the-issuer-of-services-0123456789";
    let authenticator = Setup::default().authenticator.with_secret(&secret.into(), &services).with_long_user_ids(true);
    let world = World::with(db.clone(), Setup { authenticator, ..Setup::default() }).await;
    let now = Clock::system().now().unix_timestamp();
    let claims = json!({
        "sub": LONGEST, "iss": "service", "aud": "payment-api", "iat": now, "exp": now + 300,
        "scope": "payments:refund payments:orders payments:config",
    });
    let token = crate::world::minted(&claims, secret);
    let paid = world.paid("u1").await;
    let refund = send(&world, &token, Method::POST, &format!("/v1/orders/{paid}/refunds"), Some(&json!({}))).await;
    assert_eq!(refund.status.as_u16(), 202, "{}", refund.body);
    let by: String = sqlx::query_scalar("select requested_by from refund_records").fetch_one(&db).await.unwrap();
    assert_eq!(by, format!("service {LONGEST}"));
    for (table, column) in [
        ("refund_records", "requested_by"),
        ("cases", "proposed_by"),
        ("cases", "resolved_by"),
        ("payment_config", "updated_by"),
        ("payment_config_changes", "changed_by"),
        ("audit_log", "subject"),
        ("idempotency_keys", "user_id"),
    ] {
        let most =
            "select character_maximum_length from information_schema.columns where table_name = $1 and column_name = $2
                    and table_schema = current_schema()";
        let most: i32 = sqlx::query_scalar(most).bind(table).bind(column).fetch_one(&db).await.unwrap();
        assert!(most as usize >= by.len(), "{table}.{column}: {most}");
    }
}
