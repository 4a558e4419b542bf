//! The outer shell: addresses, methods, shapes of requests, and how the answers of layers look.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::world::{Setup, World, signed};

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn unknown_addresses_and_methods_are_problems(db: PgPool) {
    let world = World::new(db).await;
    for path in ["/nowhere", "/v1", "/v1/orders/a/b/c", "/v1/callbacks/paypal/main", "/docs/nowhere"] {
        let answer = world.send(get(path)).await;
        assert_eq!(answer.status.as_u16(), 404, "{path}");
        if path != "/docs/nowhere" {
            answer.is(404, "not_found");
        }
    }
    for (method, path, allowed) in [
        (Method::PUT, "/v1/orders", "GET,HEAD,POST"),
        (Method::DELETE, "/v1/orders/00000000000000000000000000000000", "GET,HEAD"),
        (Method::GET, "/v1/orders/00000000000000000000000000000000/payment", "POST"),
    ] {
        let anonymous = Request::builder().method(&method).uri(path).body(Body::empty()).unwrap();
        world.send(anonymous).await.is(401, "token_missing");
        let answer = world.send(signed(method.clone(), path, "u1").body(Body::empty()).unwrap()).await;
        answer.is(405, "method_not_allowed");
        let mut allow: Vec<&str> = answer.header("allow").split(',').collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{method} {path}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_request_names_one_host_and_nothing_twice(db: PgPool) {
    let world = World::new(db).await;
    let twice = Request::get("/").header("host", "a").header("host", "b").body(Body::empty()).unwrap();
    world.send(twice).await.is(400, "bad_request");
    let mut none = get("/");
    none.headers_mut().insert("host", "a".parse().unwrap());
    none.headers_mut().remove("host");
    let router = world.router.clone();
    let answer = tower::ServiceExt::oneshot(router, none).await.unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    for name in ["authorization", "idempotency-key", "content-type"] {
        let request = signed(Method::POST, "/v1/orders", "u1").header(name, "a").header(name, "b");
        world.send(request.body(Body::empty()).unwrap()).await.is(400, "bad_request");
    }
    world.send(get(&format!("/{}", "a".repeat(4097)))).await.is(414, "uri_too_long");
    world.send(get(&format!("/nowhere?{}", "a".repeat(4080)))).await.is(404, "not_found");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_body_has_64_kib_at_most(db: PgPool) {
    let world = World::new(db).await;
    let send = |length: usize, declared: bool| {
        let request = signed(Method::POST, "/v1/orders", "u1").header("idempotency-key", "k");
        let request = request.header("content-type", "application/json");
        let body = match declared {
            true => Body::from(vec![b' '; length]),
            // Without a length, as with chunked encoding.
            false => Body::from_stream(futures_util::stream::iter(
                vec![b' '; length].chunks(1000).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect::<Vec<_>>(),
            )),
        };
        world.send(request.body(body).unwrap())
    };
    for declared in [true, false] {
        send(64 * 1024 + 1, declared).await.is(413, "body_too_large");
        send(64 * 1024, declared).await.is(400, "malformed_json");
    }
}

/// A body in two parts, with silence between them.
fn halting(first: &str, silence: Duration, second: &str) -> Body {
    let parts = [(Duration::ZERO, first.to_owned()), (silence, second.to_owned())];
    Body::from_stream(futures_util::stream::iter(parts).then(|(silence, part)| async move {
        // Real time: the sender's network is this slow.
        tokio::time::sleep(silence).await;
        Ok::<_, std::io::Error>(part)
    }))
}

const FOREVER: Duration = Duration::from_secs(3600);

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_slow_network_is_waited_for_and_then_refused(db: PgPool) {
    let world = World::new(db).await;
    let order = crate::world::alipay_order().to_string();
    let (first, second) = order.split_at(40);
    let send = |key: &str, body: Body| {
        let request = signed(Method::POST, "/v1/orders", "u1").header("idempotency-key", key);
        world.send(request.header("content-type", "application/json").body(body).unwrap())
    };
    let halts = send("k1", halting(first, Duration::from_millis(1300), second));
    let stalls = send("k2", halting(first, FOREVER, second));
    let (halts, stalls) = tokio::join!(halts, stalls);
    assert_eq!(halts.status.as_u16(), 201, "{}", halts.body);
    stalls.is(408, "request_timeout");
    // A wrong body is still a wrong body.
    let broken = futures_util::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("reset"))]);
    send("k3", Body::from_stream(broken)).await.is(400, "bad_request");
    assert_eq!(world.count("payment_orders").await, 1);
}

/// The gateways' routes wait less, and do not hold it against the sender either.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_slow_callback_is_no_bad_one(db: PgPool) {
    let world = World::new(db).await;
    for _ in 0..3 {
        let stalls = Request::post("/v1/callbacks/alipay/main").body(halting("a=1", FOREVER, "&b=2")).unwrap();
        let answer = world.send(stalls).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (408, "fail"));
    }
    let now = tokio::time::Instant::now();
    assert!(!world.app.strikes.is_out("198.51.100.7".parse().unwrap(), now));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn too_many_at_once_are_sent_away_and_callbacks_are_not(db: PgPool) {
    let mut setup = Setup::default();
    setup.settings.requests = 1;
    let world = World::with(db, setup).await;
    world.gateway.is(crate::world::Mood::Waits);
    let body = crate::world::wechat_order();
    let busy = world.create("u1", "k1", &body);
    let other = async {
        world.gateway.is_called().await;
        let refused = world.send(get("/v1/payment-methods")).await;
        let callback = Request::post("/v1/callbacks/alipay/main").body(Body::from("a=1")).unwrap();
        let callback = world.send(callback).await;
        world.gateway.let_go();
        (refused, callback)
    };
    let (busy, (refused, callback)) = tokio::join!(busy, other);
    assert_eq!(busy.status.as_u16(), 201);
    refused.is(503, "overloaded");
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(callback.status.as_u16(), 400, "callbacks have room of their own");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_request_has_an_id_of_ours(db: PgPool) {
    let world = World::new(db).await;
    let named = Request::get("/").header("x-request-id", "mine").body(Body::empty()).unwrap();
    assert_eq!(world.send(named).await.header("x-request-id").len(), 32, "theirs is logged beside it");
    assert_eq!(world.send(get("/nowhere")).await.header("x-request-id").len(), 32);
}

/// Every operation with its answers.
fn summary(description: &Value) -> String {
    let mut summary = String::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            summary += &format!("{} {path}: {}\n", method.to_uppercase(), operation["summary"].as_str().unwrap());
            for (status, answer) in operation["responses"].as_object().unwrap() {
                summary += &format!("    {status} {}\n", answer["description"].as_str().unwrap());
            }
        }
    }
    summary
}

/// The administrators' routes are not reachable from the Internet.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn where_the_description_is_not_served_nothing_names_it(db: PgPool) {
    let mut setup = Setup::default();
    setup.settings.serve_docs = false;
    let world = World::with(db, setup).await;
    for path in ["/openapi.json", "/docs", "/docs/", "/docs/index.html"] {
        assert_eq!(world.send(get(path)).await.status.as_u16(), 404, "{path}");
    }
    assert_eq!(world.send(get("/")).await.json(), json!({ "service": "payment-api" }));
    assert_eq!(world.send(get("/v1/payment-methods")).await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_api_describes_itself(db: PgPool) {
    let world = World::new(db).await;
    insta::assert_snapshot!(summary(&world.send(get("/openapi.json")).await.json()));

    let index = world.send(get("/")).await.json();
    assert_eq!((&index["documentation"], &index["openapi"]), (&json!("/docs"), &json!("/openapi.json")));
    let moved = world.send(get("/docs")).await;
    assert_eq!((moved.status.as_u16(), moved.header("location")), (303, "/docs/"));
    let page = world.send(get("/docs/")).await;
    assert!(page.status.is_success() && page.body.contains("swagger-ui"), "{}", page.body);
    let script = world.send(get("/docs/swagger-initializer.js")).await;
    assert!(script.body.contains("/openapi.json"), "{}", script.body);
    for part in ["/docs/swagger-ui.css", "/docs/index.css", "/docs/swagger-ui-standalone-preset.js"] {
        assert!(world.send(get(part)).await.status.is_success(), "{part}");
    }
}

/// The description of a new order, the parser and the type that clients see name the same fields.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_description_of_a_new_order_is_what_is_read(db: PgPool) {
    let world = World::new(db).await;
    let description = world.send(get("/openapi.json")).await.json();
    let schema = &description["components"]["schemas"]["CreateOrder"];
    // What an offer or the catalogue may fix is required where neither does.
    let terms = ["product_type", "subject", "amount"];
    let mut all = serde_json::Map::new();
    for name in schema["properties"].as_object().unwrap().keys() {
        all.insert(name.clone(), json!({ "not": "valid" }));
    }
    all.remove("offer");
    let answer = world.create("u1", "k", &json!(all)).await.json();
    let unknown =
        answer["errors"].as_array().unwrap().iter().filter(|e| e["message"].as_str().unwrap().contains("not a field"));
    assert_eq!(unknown.count(), 0, "{answer}");
    let missing = world.create("u1", "k", &json!({})).await.json();
    let missing: Vec<&str> =
        missing["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    let required: Vec<&str> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(missing, [&terms[..], &required].concat());
    let offer = world.create("u1", "k", &json!({ "offer": 7 })).await.json();
    assert_eq!(offer["errors"][0]["field"], "offer");
}
