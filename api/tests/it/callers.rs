//! Who calls: buyers, backends with a key or a token, and people. Each is what it proves, and nothing more.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use domain::{ApiKeyId, ApiKeyName, ApiKeySecret, KeyEnvironment, Scopes};
use payment_api::access::auth::Authenticator;
use payment_api::access::key::{Claimed, Issuer};
use runtime::clock::Clock;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::api_keys::{self, NewApiKey, Rotation};

use crate::support::Who::Admin;
use crate::world::{Answer, SECRET, STAFF_SECRET, Setup, World, alipay_order, claimed, minted, minted_for, token};

const SERVICE_SECRET: &str = "a-secret-of-the-issuer-of-services-0123456789";

/// A request with this bearer token, with a fresh key if it creates something.
pub async fn send(world: &World, token: &str, method: Method, path: &str, body: Option<&Value>) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    if body.is_some() {
        request = request.header("content-type", "application/json").header("idempotency-key", "the-same-for-all");
    }
    world.send(request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string()))).unwrap()).await
}

/// Waits until it is so; the keys are read twice a second.
pub async fn until(is_so: impl AsyncFn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(std::time::Instant::now() < end, "it is not so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn read_cases(world: &World, token: &str) -> Answer {
    send(world, token, Method::GET, "/v1/admin/cases", None).await
}

pub fn now() -> i64 {
    Clock::system().now().unix_timestamp()
}

fn claims(iss: &str, change: Value) -> Value {
    let mut claims = json!({ "sub": "a1", "iss": iss, "aud": "payment-api", "iat": now(), "exp": now() + 300 });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub fn of_service(scope: &str) -> String {
    minted(&claims("service", json!({ "scope": scope })), SERVICE_SECRET)
}

pub fn of_staff(sub: &str, scope: &str, signed_in: i64) -> String {
    minted(&claims("staff", json!({ "sub": sub, "scope": scope, "auth_time": signed_in })), STAFF_SECRET)
}

pub async fn with_services(db: PgPool) -> World {
    let services = Claimed { of: Issuer::Services, issuer: "service".to_owned(), audience: "payment-api".to_owned() };
    let authenticator = Setup::default().authenticator.with_secret(&SERVICE_SECRET.into(), &services);
    World::with(db, Setup { authenticator, ..Setup::default() }).await
}

/// A key in the database: its id and its text.
pub async fn key(db: &PgPool, change: impl FnOnce(&mut NewApiKey)) -> (ApiKeyId, SecretString) {
    let bits = Clock::system().fresh_bits().to_be_bytes();
    let id = ApiKeyId::from_bytes(bits[8..].try_into().unwrap());
    let secret = ApiKeySecret::from_bytes([7; 32]);
    let mut new = NewApiKey {
        id,
        name: ApiKeyName::parse(format!("shop {id}")).unwrap(),
        environment: KeyEnvironment::Test,
        scopes: Scopes::parse("payments:orders payments:read"),
        networks: Vec::new(),
        digest: secret.digest(),
        expires_at: None,
    };
    change(&mut new);
    let mut tx = db.begin().await.unwrap();
    api_keys::create(&mut tx, &new, "a1").await.unwrap();
    tx.commit().await.unwrap();
    (id, secret.text(new.environment, id))
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_scope_in_a_buyers_token_gives_no_right(db: PgPool) {
    let world = World::new(db).await;
    for scope in ["payments:admin", "payments:read payments:cases.confirm", "payments:orders"] {
        read_cases(&world, &minted_for("u1", scope)).await.is(403, "scope_missing");
    }
    let order = world.placed("u2").await;
    let answer =
        send(&world, &minted_for("u1", "payments:read"), Method::GET, &format!("/v1/orders/{order}"), None).await;
    answer.is(404, "order_not_found");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_switch_for_people_with_users_tokens_has_an_end(db: PgPool) {
    let people = |until: i64| {
        let authenticator = Authenticator::new().with_secret(&SECRET.into(), &claimed());
        Setup { authenticator: authenticator.with_user_admins_until(until as u64), ..Setup::default() }
    };
    let admin = minted_for("a1", "payments:admin");
    let open = World::with(db.clone(), people(now() + 60)).await;
    assert_eq!(read_cases(&open, &admin).await.status.as_u16(), 200);
    read_cases(&open, &minted_for("a1", "payments:read")).await.is(403, "scope_missing");
    let over = World::with(db, people(now() - 1)).await;
    read_cases(&over, &admin).await.is(403, "scope_missing");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_issuer_signs_for_its_own_callers(db: PgPool) {
    let world = with_services(db).await;
    assert_eq!(read_cases(&world, &of_service("payments:read")).await.status.as_u16(), 200);
    read_cases(&world, &of_service("payments:orders")).await.is(403, "scope_missing");
    for (why, claims, secret) in [
        ("staff by the users' key", claims("staff", json!({ "auth_time": now(), "scope": "payments:admin" })), SECRET),
        ("staff by the services' key", claims("staff", json!({ "auth_time": now() })), SERVICE_SECRET),
        ("a service by the staff's key", claims("service", json!({ "scope": "payments:read" })), STAFF_SECRET),
        ("a user by the staff's key", claims("payment", json!({})), STAFF_SECRET),
        ("staff without auth_time", claims("staff", json!({ "scope": "payments:read" })), STAFF_SECRET),
        ("staff who signs in tomorrow", claims("staff", json!({ "auth_time": now() + 86_400 })), STAFF_SECRET),
        ("staff for two hours", claims("staff", json!({ "auth_time": now(), "exp": now() + 7_200 })), STAFF_SECRET),
        ("a service for two hours", claims("service", json!({ "exp": now() + 7_200 })), SERVICE_SECRET),
    ] {
        let answer = read_cases(&world, &minted(&claims, secret)).await;
        assert_eq!((why, answer.status.as_u16()), (why, 401));
        answer.is(401, "token_invalid");
    }
}

/// Neither a service nor a key is a person, whatever it claims.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn only_people_decide_cases(db: PgPool) {
    let world = with_services(db.clone()).await;
    world.watch_keys().await;
    let case = world.case("dead_letter", None, "1").await;
    let path = format!("/v1/admin/cases/{case}/resolve");
    let note = json!({ "note": "n" });
    let everything = "payments:admin payments:cases.propose payments:cases.confirm payments:read";
    send(&world, &of_service(everything), Method::POST, &path, Some(&note)).await.is(403, "scope_missing");
    send(&world, &of_staff("a1", "payments:read", now()), Method::POST, &path, Some(&note))
        .await
        .is(403, "scope_missing");
    let confirm_alone = of_staff("a1", "payments:cases.confirm", now());
    send(&world, &confirm_alone, Method::POST, &path, Some(&note)).await.is(403, "scope_missing");
    let person = of_staff("a1", "payments:cases.propose", now());
    assert_eq!(send(&world, &person, Method::POST, &path, Some(&note)).await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn two_people_are_two_whatever_the_letters(db: PgPool) {
    let world = World::new(db).await;
    let order = world.placed("u1").await;
    world.close_locally(&order).await;
    let case = world.late_payment(&order, "4200000042").await;
    let path = format!("/v1/admin/cases/{case}");
    let propose = of_staff("Alice", "payments:cases.propose", now());
    let action = json!({ "action": "refund" });
    let answer = send(&world, &propose, Method::POST, &format!("{path}/propose"), Some(&action)).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
    assert_eq!(answer.json()["proposed_by"], "alice");
    let version = json!({ "version": answer.json()["version"] });
    let confirm =
        async |token: &str| send(&world, token, Method::POST, &format!("{path}/confirm"), Some(&version)).await;
    for same in ["alice", "ALICE", "aLice"] {
        confirm(&of_staff(same, "payments:cases.confirm", now())).await.is(403, "same_person");
    }
    let long_ago = confirm(&of_staff("bob", "payments:cases.confirm", now() - 600)).await;
    long_ago.is(401, "sign_in_again");
    assert!(long_ago.header("www-authenticate").contains("insufficient_user_authentication"));
    assert_eq!(confirm(&of_staff("bob", "payments:cases.confirm", now() - 200)).await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_counts_as_long_as_it_should(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (id, good) = key(&db, |_| {}).await;
    let (_, elsewhere) = key(&db, |new| new.networks = vec!["203.0.113.0/24".parse().unwrap()]).await;
    let (_, here) = key(&db, |new| new.networks = vec!["198.51.100.0/24".parse().unwrap()]).await;
    let (_, live) = key(&db, |new| new.environment = KeyEnvironment::Live).await;
    let (_, brief) = key(&db, |new| new.expires_at = Some(Clock::system().now() + Duration::from_secs(2))).await;
    let (_, proposed) = key(&db, |new| new.scopes = Scopes::parse("payments:read payments:refund")).await;
    world.watch_keys().await;
    let status = async |text: &SecretString| read_cases(&world, text.expose_secret()).await.status.as_u16();
    assert_eq!([status(&good).await, status(&here).await], [200, 200]);
    for refused in [&elsewhere, &live, &proposed] {
        read_cases(&world, refused.expose_secret()).await.is(401, "token_invalid");
    }
    for wrong in ["sk_", "sk_test_0123456789abcdef_00", &good.expose_secret().replace("07", "08")] {
        read_cases(&world, wrong).await.is(401, "token_invalid");
    }
    until(async || status(&brief).await == 401).await;

    let other = ApiKeySecret::from_bytes([9; 32]);
    let mut tx = db.begin().await.unwrap();
    let rotation = Rotation { digest: other.digest(), overlap: Duration::from_secs(3600).try_into().unwrap() };
    api_keys::rotate(&mut tx, id, &rotation, "a1").await.unwrap();
    tx.commit().await.unwrap();
    let other = other.text(KeyEnvironment::Test, id);
    until(async || status(&other).await == 200).await;
    assert_eq!(status(&good).await, 200, "both count for the overlap");

    let mut tx = db.begin().await.unwrap();
    api_keys::revoke(&mut tx, id, "a1").await.unwrap();
    tx.commit().await.unwrap();
    let revoked_at = std::time::Instant::now();
    until(async || status(&good).await == 401 && status(&other).await == 401).await;
    assert!(revoked_at.elapsed() < Duration::from_secs(10), "within a second, and the time that a busy machine takes");
    assert_eq!(status(&here).await, 200, "the others go on");
}

/// A copy that is old says neither yes nor no.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_current_copy_no_key_is_judged(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (_, good) = key(&db, |_| {}).await;
    let unread = read_cases(&world, good.expose_secret()).await;
    unread.is(503, "keys_unavailable");
    assert!(!unread.header("retry-after").is_empty());
    assert_eq!(world.get("/v1/orders", "u1").await.status.as_u16(), 200, "buyers are not affected");
    world.app.tokens.keys.refresh(&db).await.unwrap();
    assert_eq!(read_cases(&world, good.expose_secret()).await.status.as_u16(), 200);
    // Nothing reads the version again.
    until(async || read_cases(&world, good.expose_secret()).await.status.as_u16() == 503).await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_backend_places_orders_for_its_users(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (id, good) = key(&db, |_| {}).await;
    world.watch_keys().await;
    let order = |change: Value| {
        let mut order = alipay_order();
        for (name, value) in change.as_object().unwrap() {
            order[name] = value.clone();
        }
        order
    };
    let create = async |token: &str, body: &Value| send(&world, token, Method::POST, "/v1/orders", Some(body)).await;
    create(good.expose_secret(), &order(json!({}))).await.is(400, "invalid_fields");
    let h5 = json!({ "user_id": "u7", "payment_method": "wechat", "scene": "h5" });
    let h5 = create(good.expose_secret(), &order(h5)).await;
    h5.is(400, "invalid_fields");
    assert!(h5.body.contains("client_ip"), "{}", h5.body);
    for of_backends in [json!({ "user_id": "u1" }), json!({ "client_ip": "203.0.113.9" })] {
        create(&token("u1"), &order(of_backends)).await.is(400, "invalid_fields");
    }

    create(good.expose_secret(), &order(json!({ "user_id": "-" }))).await.is(400, "invalid_fields");

    let body = order(json!({ "user_id": "u7", "client_ip": "203.0.113.9" }));
    let made = create(good.expose_secret(), &body).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    let made = made.json()["order"]["id"].as_str().unwrap().to_owned();
    let again = create(good.expose_secret(), &body).await;
    assert_eq!((again.header("idempotency-replayed"), again.json()["order"]["id"].as_str()), ("true", Some(&*made)));
    // The same key of another caller is another key: the user is not who sends the request.
    let own = create(&token("u7"), &order(json!({}))).await;
    assert_eq!(own.status.as_u16(), 201, "{}", own.body);
    let held: Vec<String> =
        sqlx::query_scalar("select user_id from idempotency_keys order by 1").fetch_all(&db).await.unwrap();
    assert_eq!(held, [format!("key {id}"), "u7".to_owned()]);

    let path = format!("/v1/orders/{made}");
    assert_eq!(world.get(&path, "u7").await.status.as_u16(), 200, "it is the user's order");
    assert_eq!(send(&world, good.expose_secret(), Method::GET, &path, None).await.status.as_u16(), 200);
    world.get(&path, "u1").await.is(404, "order_not_found");
    let refund = send(&world, good.expose_secret(), Method::POST, &format!("{path}/refunds"), Some(&json!({}))).await;
    refund.is(403, "scope_missing");
    assert!(refund.header("www-authenticate").contains("payments:refund"));
    let stream = send(&world, good.expose_secret(), Method::GET, &format!("{path}/stream"), None).await;
    stream.is(403, "buyers_only");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_backend_refunds_any_order(db: PgPool) {
    let world = with_services(db.clone()).await;
    let paid = world.paid("u1").await;
    let path = format!("/v1/orders/{paid}/refunds");
    let body = json!({ "amount": "0.01", "reason": "damaged" });
    let refund = send(&world, &of_service("payments:refund"), Method::POST, &path, Some(&body)).await;
    assert_eq!(refund.status.as_u16(), 202, "{}", refund.body);
    let by: Vec<String> = sqlx::query_scalar("select requested_by from refund_records").fetch_all(&db).await.unwrap();
    assert_eq!(by, ["service a1"]);
    let id = refund.json()["id"].as_str().unwrap().to_owned();
    let seen = send(&world, &of_service("payments:read"), Method::GET, &format!("/v1/refunds/{id}"), None).await;
    assert_eq!(seen.status.as_u16(), 200);
    send(&world, &of_service("payments:read"), Method::POST, &path, Some(&body)).await.is(403, "scope_missing");
    send(&world, &of_service("payments:refund"), Method::GET, "/v1/orders", None).await.is(403, "buyers_only");
    let staff = world.request(Admin("a1"), Method::GET, &format!("/v1/refunds/{id}"), None).await;
    assert_eq!(staff.status.as_u16(), 200);
}

/// A refund by the merchant leaves who requested it, and a person signs in for it.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_by_the_merchant_is_on_record(db: PgPool) {
    let world = with_services(db.clone()).await;
    let paid = world.paid("u1").await;
    let path = format!("/v1/orders/{paid}/refunds");
    let body = json!({ "amount": "0.01" });
    let long_ago = of_staff("alice", "payments:refund", now() - 600);
    send(&world, &long_ago, Method::POST, &path, Some(&body)).await.is(401, "sign_in_again");
    let refund = send(&world, &of_staff("alice", "payments:refund", now()), Method::POST, &path, Some(&body)).await;
    assert_eq!(refund.status.as_u16(), 202, "{}", refund.body);
    let id = refund.json()["id"].as_str().unwrap().to_owned();
    let acts = "select subject || ' ' || act || ' ' || object || ' ' || (detail ->> 'amount') from audit_log";
    let acts: Vec<String> = sqlx::query_scalar(acts).fetch_all(&db).await.unwrap();
    assert_eq!(acts, [format!("alice refund.requested refund:{id} 0.01")]);
    world.tell(&id, &crate::support::returned()).await;
    let own = world.refund("u1", &paid, "k", &json!({ "amount": "0.01" })).await;
    assert_eq!(own.status.as_u16(), 202, "{}", own.body);
    let count: i64 = sqlx::query_scalar("select count(*) from audit_log").fetch_one(&db).await.unwrap();
    assert_eq!(count, 1, "a buyer's own refund is no act of the merchant");
}

/// One identity provider signs for buyers, services and staff with one key, and the audience tells them apart.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn one_key_may_sign_for_each_issuer(db: PgPool) {
    let of = |of, audience: &str| Claimed { of, issuer: "idp".to_owned(), audience: audience.to_owned() };
    let authenticator = Authenticator::new()
        .with_secret(&SECRET.into(), &of(Issuer::Buyers, "buyers"))
        .with_secret(&SECRET.into(), &of(Issuer::Services, "services"))
        .with_secret(&SECRET.into(), &of(Issuer::Staff, "staff"));
    let world = World::with(db, Setup { authenticator, ..Setup::default() }).await;
    let token = |audience: &str| {
        let change = json!({ "aud": audience, "scope": "payments:read", "auth_time": now() });
        minted(&claims("idp", change), SECRET)
    };
    assert_eq!(read_cases(&world, &token("services")).await.status.as_u16(), 200);
    assert_eq!(read_cases(&world, &token("staff")).await.status.as_u16(), 200);
    read_cases(&world, &token("buyers")).await.is(403, "scope_missing");
    read_cases(&world, &token("others")).await.is(401, "token_invalid");
}

/// A body that arrives slowly does not outlive the key.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_that_is_revoked_while_the_body_arrives_is_refused(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (id, good) = key(&db, |_| {}).await;
    world.app.tokens.keys.refresh(&db).await.unwrap();
    let body = alipay_order().to_string();
    let (first, last) = body.split_at(body.len() / 2);
    let (first, last) = (first.to_owned(), last.to_owned());
    let (revoking, app) = (db.clone(), world.app.clone());
    let slow = futures_util::stream::unfold(0, move |step| {
        let (first, last, db, app) = (first.clone(), last.clone(), revoking.clone(), app.clone());
        async move {
            match step {
                0 => Some((Ok::<_, std::io::Error>(first), 1)),
                1 => {
                    let mut tx = db.begin().await.unwrap();
                    api_keys::revoke(&mut tx, id, "a1").await.unwrap();
                    tx.commit().await.unwrap();
                    app.tokens.keys.refresh(&db).await.unwrap();
                    Some((Ok(last), 2))
                }
                _ => None,
            }
        }
    });
    let request = Request::post("/v1/orders")
        .header("authorization", format!("Bearer {}", good.expose_secret()))
        .header("content-type", "application/json")
        .header("idempotency-key", "k");
    let answer = world.send(request.body(Body::from_stream(slow)).unwrap()).await;
    answer.is(401, "token_invalid");
    assert_eq!(world.count("payment_orders").await, 0);
}
