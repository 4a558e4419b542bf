//! How often a frontend may send requests, and which headers browsers get with each answer.

use payment_api::access::limits::PerMinute;
use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use sqlx::PgPool;
use store::cache::redis::Script;
use store::cache::{Redis, RedisConfig};

use crate::world::{Answer, Setup, World, signed, wechat_order};

/// A request for a list of orders, from this address.
fn from(peer: &str, user: &str) -> Request<Body> {
    let mut request = signed(Method::GET, "/v1/orders", user).body(Body::empty()).unwrap();
    let peer: SocketAddr = format!("{peer}:4000").parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

fn values<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

async fn world(db: PgPool, per_address: u32, per_user: u32) -> World {
    let mut setup = Setup::default();
    setup.settings.per_minute = PerMinute { per_address, per_user, per_key: 0 };
    World::with(db, setup).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_address_has_a_budget_whatever_it_claims(db: PgPool) {
    let world = world(db, 3, 0).await;
    for left in (0..3).rev() {
        let answer = world.send(from("192.0.2.1", "u1")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(values(&answer, "ratelimit-policy"), ["\"address\";q=3;w=60"]);
        assert!(values(&answer, "ratelimit")[0].starts_with(&format!("\"address\";r={left};t=")));
    }
    // Neither another user, nor a bad token, nor an invented origin is another address.
    let mut spoofed = from("192.0.2.1", "u3");
    spoofed.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    let mut forged = from("192.0.2.1", "u1");
    forged.headers_mut().insert("authorization", "Bearer a.b.c".parse().unwrap());
    for request in [from("192.0.2.1", "u2"), spoofed, forged] {
        let answer = world.send(request).await;
        answer.is(429, "too_many_requests");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
        assert!(values(&answer, "ratelimit")[0].starts_with("\"address\";r=0;t="));
    }
    assert_eq!(world.send(from("192.0.2.2", "u1")).await.status, StatusCode::OK);
    let callback = Request::post("/v1/callbacks/alipay/main").body(Body::from("a=1")).unwrap();
    assert_eq!(world.send(callback).await.status, StatusCode::BAD_REQUEST, "no budget of a frontend's");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_has_six_fresh_credentials_a_minute(db: PgPool) {
    let with_seal = World::new(db.clone()).await;
    let without = World::with(db, Setup { seal: None, ..Setup::default() }).await;
    for (world, has_last) in [(with_seal, true), (without, false)] {
        let placed = async |key: &str| {
            let order = world.create("u1", &format!("{has_last}-{key}"), &wechat_order()).await.json();
            format!("/v1/orders/{}/payment", order["order"]["id"].as_str().unwrap())
        };
        let path = placed("k1").await;
        let again = async || world.send(signed(Method::POST, &path, "u1").body(Body::empty()).unwrap()).await;
        let before = world.gateway.calls();
        for _ in 0..6 {
            assert_eq!(again().await.status, StatusCode::OK);
        }
        assert_eq!(world.gateway.calls(), before + 6);
        let seventh = again().await;
        if has_last {
            assert_eq!(seventh.status, StatusCode::OK, "the last one is valid");
            assert_eq!(seventh.json()["payment"]["kind"], "qr");
        } else {
            seventh.is(429, "too_many_requests");
            let wait: u64 = seventh.header("retry-after").parse().unwrap();
            assert!((1..=10).contains(&wait), "{wait}");
        }
        assert_eq!(world.gateway.calls(), before + 6, "the gateway is not asked");
        // Another order has its own.
        let other = placed("k2").await;
        let other = signed(Method::POST, &other, "u1").body(Body::empty()).unwrap();
        assert_eq!(world.send(other).await.status, StatusCode::OK);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_user_has_one_budget_for_all_addresses(db: PgPool) {
    let world = world(db, 100, 2).await;
    for n in 0..2 {
        let answer = world.send(from(&format!("192.0.2.{n}"), "u1")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(values(&answer, "ratelimit-policy"), ["\"address\";q=100;w=60", "\"user\";q=2;w=60"]);
    }
    world.send(from("192.0.2.9", "u1")).await.is(429, "too_many_requests");
    assert_eq!(world.send(from("192.0.2.9", "u2")).await.status, StatusCode::OK);
    // An invalid token uses up no user's budget.
    for _ in 0..3 {
        let mut forged = from("192.0.2.9", "u3");
        let token = forged.headers()["authorization"].to_str().unwrap().to_owned() + "x";
        forged.headers_mut().insert("authorization", token.parse().unwrap());
        let answer = world.send(forged).await;
        answer.is(401, "token_invalid");
        assert_eq!(values(&answer, "ratelimit").len(), 1);
    }
    assert_eq!(world.send(from("192.0.2.9", "u3")).await.status, StatusCode::OK);
}

/// The user's remaining budget, as the ingresses report it in turn, until one refuses.
async fn spent(ingresses: &[&World], user: &str) -> Vec<String> {
    let mut remaining = Vec::new();
    for ingress in ingresses.iter().cycle() {
        let answer = ingress.send(from("192.0.2.1", user)).await;
        remaining.push(values(&answer, "ratelimit").first().unwrap().split(';').nth(1).unwrap().to_owned());
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            let wait: u64 = answer.header("retry-after").parse().unwrap();
            assert!((1..=15).contains(&wait), "{wait}");
            return remaining;
        }
    }
    remaining
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn several_ingresses_share_a_budget_and_have_one_each_without_redis(db: PgPool) {
    let redis = crate::copies::redis(&db).await;
    let world = async |redis: Option<Redis>| {
        let mut setup = Setup { redis, ..Setup::default() };
        setup.settings.per_minute.per_user = 4;
        World::with(db.clone(), setup).await
    };
    let (one, other) = (world(Some(redis.clone())).await, world(Some(redis.clone())).await);
    // On a machine that is held up, Redis may once be too slow, and an ingress counts alone.
    let mut seen = Vec::new();
    for n in 0..10 {
        seen.push(spent(&[&one, &other], &format!("u{n}")).await);
        if seen.last().is_some_and(|remaining| *remaining == ["r=3", "r=2", "r=1", "r=0", "r=0"]) {
            break;
        }
    }
    assert_eq!(*seen.last().unwrap(), ["r=3", "r=2", "r=1", "r=0", "r=0"], "{seen:?}");
    let user = format!("u{}", seen.len() - 1);
    // What a key is kept for ends by itself.
    let script = Script::new("return redis.call('PTTL', KEYS[1])");
    let ttl: i64 = redis.run(&script, &[redis.key(&format!("requests:user:{user}"))], &[]).await.unwrap();
    assert!((1..=60_000).contains(&ttl), "{ttl}");

    let nowhere = RedisConfig::new("redis://127.0.0.1:9/0", "").unwrap();
    let alone = world(Some(Redis::connect(&nowhere).await)).await;
    assert_eq!(spent(&[&alone], "u1").await, ["r=3", "r=2", "r=1", "r=0", "r=0"]);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_answer_tells_browsers_how_little_they_may(db: PgPool) {
    let world = World::new(db).await;
    let callback = Request::post("/v1/callbacks/wechat/main").body(Body::from("{}")).unwrap();
    let page = Request::get("/pay/success").body(Body::empty()).unwrap();
    let description = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let nowhere = Request::get("/nowhere").body(Body::empty()).unwrap();
    for request in [from("192.0.2.1", "u1"), nowhere, callback, page, description] {
        let path = request.uri().path().to_owned();
        let answer = world.send(request).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        assert!(values(&answer, "content-security-policy")[0].starts_with("default-src 'none'"), "{path}");
        assert_eq!(values(&answer, "content-security-policy").len(), 1, "{path}");
        assert_eq!(answer.header("strict-transport-security"), "max-age=31536000", "{path}");
        assert_eq!((answer.header("server"), answer.header("x-powered-by")), ("", ""), "{path}");
    }
    let docs = world.send(Request::get("/docs/").body(Body::empty()).unwrap()).await;
    assert!(docs.header("content-security-policy").contains("script-src 'self'"));
    assert_eq!(docs.header("x-frame-options"), "DENY");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn pages_of_listed_origins_may_send_requests_and_no_others(db: PgPool) {
    let mut setup = Setup::default();
    setup.settings.cors_origins = vec![url::Url::parse("https://shop.example.com").unwrap().origin()];
    let world = World::with(db, setup).await;
    let preflight = |origin: &str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/orders")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key")
            .body(Body::empty())
            .unwrap()
    };
    let allowed = world.send(preflight("https://shop.example.com")).await;
    assert_eq!(allowed.status, StatusCode::OK);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://shop.example.com");
    assert!(allowed.header("access-control-allow-headers").contains("idempotency-key"));
    assert_eq!(allowed.header("access-control-allow-credentials"), "", "no cookies");
    for other in ["https://evil.example.com", "https://shop.example.com.evil.example", "null"] {
        assert_eq!(world.send(preflight(other)).await.header("access-control-allow-origin"), "", "{other}");
    }
    // Also on a refusal, or the page could not read it.
    let mut refused = Request::get("/v1/orders").body(Body::empty()).unwrap();
    refused.headers_mut().insert("origin", "https://shop.example.com".parse().unwrap());
    let answer = world.send(refused).await;
    answer.is(401, "token_missing");
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example.com");
    let mut callback = Request::post("/v1/callbacks/alipay/main").body(Body::from("a=1")).unwrap();
    callback.headers_mut().insert("origin", "https://shop.example.com".parse().unwrap());
    assert_eq!(world.send(callback).await.header("access-control-allow-origin"), "", "no page posts callbacks");
    let by_default = World::new(world.db.clone()).await;
    assert_eq!(by_default.send(preflight("https://shop.example.com")).await.header("access-control-allow-origin"), "");
}
