//! The buyer's address is stated, and an address that no buyer has is sent to no gateway in silence.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::callers::key;
use crate::support::Log;
use crate::world::{Answer, Setup, World, token, wechat_order};

/// An order at WeChat Pay by the holder of this token, from this machine.
async fn create(world: &World, token: &str, peer: &str, changes: Value) -> Answer {
    let mut order = wechat_order();
    for (name, value) in changes.as_object().unwrap() {
        order[name] = value.clone();
    }
    let request = Request::post("/v1/orders")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("idempotency-key", uuid::Uuid::now_v7().to_string());
    let mut request = request.body(Body::from(order.to_string())).unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 40_000)));
    world.send(request).await
}

/// The address that the gateway got last.
fn sent(world: &World) -> Value {
    let prepaid = world.gateway.prepaid.lock().unwrap();
    let body: Value = serde_json::from_str(prepaid.last().unwrap()["body"].as_str().unwrap()).unwrap();
    body["scene_info"]["payer_client_ip"].clone()
}

fn refused(answer: &Answer, rule: &str) {
    answer.is(400, "invalid_fields");
    let faults = answer.json()["errors"].clone();
    let fault = faults.as_array().unwrap().iter().find(|fault| fault["field"] == "client_ip").unwrap();
    assert!(fault["message"].as_str().unwrap().contains(rule), "{fault}");
}

/// Case w6: the shop's server orders from its own machine, and states where its buyer is.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_gateway_gets_the_address_that_a_backend_states(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (_, backend) = key(&db, |_| {}).await;
    world.watch_keys().await;
    for (stated, address) in
        [("203.0.113.7", "203.0.113.7"), ("::ffff:203.0.113.7", "203.0.113.7"), ("2400:3200::1", "2400:3200::1")]
    {
        let body = json!({ "user_id": "u7", "scene": "h5", "client_ip": stated });
        let made = create(&world, backend.expose_secret(), "127.0.0.1", body).await;
        assert_eq!(made.status.as_u16(), 201, "{}", made.body);
        assert_eq!(sent(&world), address);
    }
    let stored = "select host(client_ip) from payment_orders order by id desc limit 1";
    assert_eq!(world.one::<String>(stored).await, "2400:3200::1");
    let calls = world.gateway.calls();
    for (scene, address) in [
        ("h5", "127.0.0.1"),
        ("h5", "10.0.0.5"),
        ("h5", "172.16.0.1"),
        ("h5", "192.168.1.1"),
        ("h5", "169.254.1.1"),
        ("h5", "100.64.0.1"),
        ("h5", "0.0.0.0"),
        ("h5", "224.0.0.1"),
        ("h5", "::1"),
        ("h5", "fe80::1"),
        ("h5", "fd00::1"),
        ("h5", "::ffff:127.0.0.1"),
        ("native", "127.0.0.1"),
    ] {
        let body = json!({ "user_id": "u7", "scene": scene, "client_ip": address });
        let answer = create(&world, backend.expose_secret(), "127.0.0.1", body).await;
        refused(&answer, "an address that a buyer on the internet has");
    }
    for wrong in ["localhost", "203.0.113.7:80", "203.0.113", ""] {
        let body = json!({ "user_id": "u7", "scene": "h5", "client_ip": wrong });
        refused(&create(&world, backend.expose_secret(), "127.0.0.1", body).await, "an IPv4 or IPv6 address");
    }
    assert_eq!(world.gateway.calls(), calls, "no gateway was called");
}

/// Where real money is paid, buyers do not have the addresses of documents either.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn in_production_an_address_of_a_document_is_no_buyers(db: PgPool) {
    let world = World::with(db.clone(), Setup { is_production: true, ..Setup::default() }).await;
    let (_, backend) = key(&db, |_| {}).await;
    world.watch_keys().await;
    let body = |address: &str| json!({ "user_id": "u7", "scene": "h5", "client_ip": address });
    for address in ["203.0.113.7", "192.0.2.1", "198.51.100.7", "2001:db8::1", "127.0.0.1"] {
        let answer = create(&world, backend.expose_secret(), "127.0.0.1", body(address)).await;
        refused(&answer, "an address that a buyer on the internet has");
    }
    let made = create(&world, backend.expose_secret(), "127.0.0.1", body("1.2.3.4")).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    assert_eq!(sent(&world), "1.2.3.4");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_behind_an_unknown_proxy_gets_no_h5_in_production(db: PgPool) {
    let mut setup = Setup { is_production: true, ..Setup::default() };
    setup.settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let world = World::with(db, setup).await;
    let (log, _here) = Log::kept();
    let h5 = json!({ "scene": "h5" });
    for peer in ["127.0.0.1", "192.168.0.9", "::1", "10.0.0.1", "198.51.100.7"] {
        let answer = create(&world, &token("u1"), peer, h5.clone()).await;
        refused(&answer, "TRUSTED_PROXIES");
        refused(&answer, peer);
    }
    assert_eq!(world.gateway.calls(), 0);
    let warnings = log.lines("TRUSTED_PROXIES");
    assert!(!warnings.is_empty() && warnings[0].contains("WARN"), "{warnings:?}");
    // A scene that sends no address, and a buyer whose address is known.
    assert_eq!(create(&world, &token("u1"), "127.0.0.1", json!({})).await.status.as_u16(), 201);
    assert_eq!(create(&world, &token("u1"), "1.2.3.4", h5).await.status.as_u16(), 201);
    assert_eq!(sent(&world), "1.2.3.4");
}

/// The demo, whose shop, ingress and gateway are one machine.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn with_a_simulator_a_buyer_may_be_on_this_machine(db: PgPool) {
    let world = World::new(db).await;
    let made = create(&world, &token("u1"), "127.0.0.1", json!({ "scene": "h5" })).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    assert_eq!(sent(&world), "127.0.0.1");
}
