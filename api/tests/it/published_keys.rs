//! Issuers that publish their keys at a URL: the very first token and the very first offer get in.

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use payment_api::access::token_keys::TokenKeys;
use runtime::env::Env;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::callers::{now, send};
use crate::offers::{VOUCHED, buy, by, claims};
use crate::world::{SECRET, Setup, World};

const VIEW: &str = "fedcba9876543210fedcba9876543210-view";

/// Serves the public half of a fresh key, and returns the URL and the private half.
async fn publish() -> (String, EncodingKey) {
    runtime::telemetry::install_crypto();
    let private = EncodingKey::from_rsa_pem(testkit::RsaPair::generate().private_pem().as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("k1".to_owned());
    let set = json!({ "keys": [jwk] }).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/jwks", get(|| async { set }))).await });
    (url, private)
}

fn signed(typ: &str, claims: &Value, key: &EncodingKey) -> String {
    let header = Header { kid: Some("k1".to_owned()), typ: Some(typ.to_owned()), ..Header::new(Algorithm::RS256) };
    encode(&header, claims, key).unwrap()
}

async fn world(db: PgPool, url: &str) -> World {
    let mut env = Env::of([
        ("JWT_HS256_SECRET", SECRET),
        ("VIEW_TOKEN_SECRET", VIEW),
        ("SERVICE_JWT_JWKS_URL", url),
        ("SERVICE_JWT_ISSUER", "services"),
        ("SERVICE_JWT_AUDIENCE", "payment-services"),
    ]);
    let (_, authenticator, _) = TokenKeys::from_env(&mut env).unwrap();
    env.finish().unwrap();
    let mut setup = Setup { authenticator, ..Setup::default() };
    setup.settings.buyer_prices = VOUCHED;
    World::with(db, setup).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_token_of_an_issuer_that_publishes_its_keys_gets_in_at_once(db: PgPool) {
    let (url, key) = publish().await;
    let world = world(db, &url).await;
    let claims = json!({ "iss": "services", "aud": "payment-services", "sub": "shop", "iat": now(), "exp": now() + 60,
        "scope": "payments:read payments:cases.confirm" });
    let good = signed("JWT", &claims, &key);
    let listed = send(&world, &good, Method::GET, "/v1/admin/cases", None).await;
    assert_eq!(listed.status.as_u16(), 200, "{}", listed.body);
    let offer = signed("offer+jwt", &claims, &key);
    send(&world, &offer, Method::GET, "/v1/admin/cases", None).await.is(401, "token_invalid");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_offer_of_an_issuer_that_publishes_its_keys_is_taken_at_once(db: PgPool) {
    let (url, key) = publish().await;
    let world = world(db, &url).await;
    let offer = signed("offer+jwt", &claims("services", json!({})), &key);
    let bought = buy(&world, "u1", "k1", &by(&offer)).await;
    assert_eq!((bought.status.as_u16(), &bought.json()["order"]["amount"]), (201, &json!("12.34")), "{}", bought.body);
    let token = signed("JWT", &claims("services", json!({ "jti": "offer-2" })), &key);
    buy(&world, "u1", "k2", &by(&token)).await.is(400, "offer_invalid");
}
