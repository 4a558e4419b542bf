//! Which tokens are accepted, and which are not.

use std::path::Path;

use axum::body::Body;
use axum::http::{Method, Request};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{KeyEnvironment, OrderId};
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use payment_api::access::auth::Authenticator;
use payment_api::access::view_token::ViewTokens;
use runtime::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::callers::{key as api_key, send};
use crate::support::Log;
use crate::world::{Answer, SECRET, Setup, VIEW_SECRET, World, claimed, minted};

pub fn private_key(name: &str) -> String {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/gateway/tests/fixtures/vectors/keys");
    std::fs::read_to_string(keys.join(name)).unwrap()
}

fn now() -> i64 {
    Clock::system().now().unix_timestamp()
}

/// Good claims with some changed; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({ "sub": "u1", "iss": "payment", "aud": "payment-api", "iat": now(), "exp": now() + 300 });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

/// A secret that is not ours.
const STRANGE: &str = "another secret of thirty-two bytes";

/// A token with this header and these claims, which no library would write.
fn signed_as(header: Value, claims: &str, secret: &str) -> String {
    signed_as_text(&header.to_string(), claims, secret)
}

fn signed_as_text(header: &str, claims: &str, secret: &str) -> String {
    runtime::telemetry::install_crypto();
    let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

async fn request(world: &World, authorization: &str) -> Answer {
    let request = Request::get("/v1/orders").header("authorization", authorization);
    world.send(request.body(Body::empty()).unwrap()).await
}

async fn request_with(world: &World, token: &str) -> Answer {
    request(world, &format!("Bearer {token}")).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_good_token_opens_and_the_scheme_has_no_case(db: PgPool) {
    let world = World::new(db).await;
    let token = minted(&claims(json!({ "nbf": now() - 5 })), SECRET);
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(request(&world, &format!("{scheme} {token}")).await.status.as_u16(), 200);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_token_is_asked_for(db: PgPool) {
    let world = World::new(db).await;
    let answer = world.send(Request::get("/v1/orders").body(Body::empty()).unwrap()).await;
    answer.is(401, "token_missing");
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    insta::assert_json_snapshot!(answer.json());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn tokens_that_prove_nothing_are_refused(db: PgPool) {
    let world = World::new(db).await;
    let unsigned = |algorithm: &str| {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": algorithm, "typ": "JWT" }).to_string());
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims(json!({})).to_string()))
    };
    let good = minted(&claims(json!({})), SECRET);
    let public_key_as_secret = minted(&claims(json!({})), &private_key("wx_merchant_public.pem"));
    let view = ViewTokens::new(&VIEW_SECRET.into());
    let view = view.mint(OrderId::from_u128(1), Clock::system().now()).unwrap();
    let good_claims = claims(json!({})).to_string();
    let twice = |member: &str| format!("{},{member}}}", good_claims.trim_end_matches('}'));
    let strange_jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(STRANGE), "alg": "HS256" });
    for (why, token) in [
        ("alg none", unsigned("none")),
        ("alg None", unsigned("None")),
        ("no signature", unsigned("HS256")),
        ("another secret", minted(&claims(json!({})), "another secret of thirty-two bytes")),
        ("a public key as the secret", public_key_as_secret),
        ("another issuer", minted(&claims(json!({ "iss": "other" })), SECRET)),
        ("another audience", minted(&claims(json!({ "aud": "other" })), SECRET)),
        ("no issuer", minted(&claims(json!({ "iss": null })), SECRET)),
        ("no audience", minted(&claims(json!({ "aud": null })), SECRET)),
        ("no expiry", minted(&claims(json!({ "exp": null })), SECRET)),
        ("no subject", minted(&claims(json!({ "sub": null })), SECRET)),
        ("an empty subject", minted(&claims(json!({ "sub": "" })), SECRET)),
        ("a long subject", minted(&claims(json!({ "sub": "u".repeat(33) })), SECRET)),
        ("a subject with a line end", minted(&claims(json!({ "sub": "u1\nu2" })), SECRET)),
        ("not yet", minted(&claims(json!({ "nbf": now() + 60 })), SECRET)),
        ("an expiry far away", minted(&claims(json!({ "exp": 253_402_300_799_i64 })), SECRET)),
        ("an expiry beyond a day", minted(&claims(json!({ "exp": now() + 86_401 })), SECRET)),
        ("an expiry as text", minted(&claims(json!({ "exp": (now() + 300).to_string() })), SECRET)),
        ("an expiry that is no number", minted(&claims(json!({ "exp": [now() + 300] })), SECRET)),
        ("no time of issue", minted(&claims(json!({ "iat": null })), SECRET)),
        ("a time of issue as text", minted(&claims(json!({ "iat": now().to_string() })), SECRET)),
        ("a time of issue in the future", minted(&claims(json!({ "iat": now() + 90, "exp": now() + 300 })), SECRET)),
        ("a time of issue before time", minted(&claims(json!({ "iat": -1 })), SECRET)),
        ("an old token that is long good", minted(&claims(json!({ "iat": now() - 86_200 })), SECRET)),
        ("a scope for two hours", minted(&claims(json!({ "scope": "payments:admin", "exp": now() + 3_601 })), SECRET)),
        ("any scope for two hours", minted(&claims(json!({ "scope": "orders x", "exp": now() + 3_601 })), SECRET)),
        (
            "a critical extension",
            signed_as(json!({ "alg": "HS256", "crit": ["exp2"], "exp2": 1 }), &good_claims, SECRET),
        ),
        (
            "a key of its own by URL",
            signed_as(json!({ "alg": "HS256", "jku": "https://a.example" }), &good_claims, STRANGE),
        ),
        (
            "a certificate by URL",
            signed_as(json!({ "alg": "HS256", "x5u": "https://a.example" }), &good_claims, STRANGE),
        ),
        ("a key of its own", signed_as(json!({ "alg": "HS256", "jwk": strange_jwk }), &good_claims, STRANGE)),
        ("two algorithms", signed_as_text("{\"alg\":\"HS256\",\"alg\":\"HS256\"}", &good_claims, SECRET)),
        ("two subjects", signed_as(json!({ "alg": "HS256" }), &twice("\"sub\":\"u2\""), SECRET)),
        ("two expiries", signed_as(json!({ "alg": "HS256" }), &twice("\"exp\":4000000000"), SECRET)),
        ("two times of issue", signed_as(json!({ "alg": "HS256" }), &twice("\"iat\":1"), SECRET)),
        ("two issuers", signed_as(json!({ "alg": "HS256" }), &twice("\"iss\":\"payment\""), SECRET)),
        ("two audiences", signed_as(json!({ "alg": "HS256" }), &twice("\"aud\":\"payment-api\""), SECRET)),
        ("a byte changed", good.replacen('.', ".A", 1)),
        ("a view token", view),
        ("a view token's claims", minted(&claims(json!({ "aud": "payment-view" })), SECRET)),
        ("nothing", String::new()),
        ("garbage", "a.b.c".to_owned()),
        ("a long thing", "a".repeat(20_000)),
    ] {
        let answer = request_with(&world, &token).await;
        assert_eq!(answer.status.as_u16(), 401, "{why}");
        answer.is(401, "token_invalid");
        assert_eq!(answer.header("www-authenticate"), "Bearer error=\"invalid_token\"", "{why}");
    }
    request(&world, &format!("Basic {good}")).await.is(401, "token_invalid");
    request(&world, &good).await.is(401, "token_invalid");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_token_may_live_a_day_and_an_hour_with_a_scope(db: PgPool) {
    let world = World::new(db).await;
    for good in [
        json!({ "exp": now() + 86_400 }),
        json!({ "iat": now() + 20 }),
        json!({ "iat": now() - 86_000, "exp": now() + 300 }),
        json!({ "scope": "orders payments", "exp": now() + 86_400 }),
        json!({ "scope": "payments:admin", "exp": now() + 3_600 }),
        json!({ "scope": "payments:refund", "exp": now() + 3_600 }),
        // A NumericDate may have a fraction.
        json!({ "iat": now() as f64 - 0.5, "exp": now() as f64 + 300.5 }),
    ] {
        assert_eq!(request_with(&world, &minted(&claims(good.clone()), SECRET)).await.status.as_u16(), 200, "{good}");
    }
    let plain = signed_as(json!({ "alg": "HS256" }), &claims(json!({})).to_string(), SECRET);
    assert_eq!(request_with(&world, &plain).await.status.as_u16(), 200, "what the bad ones are made with is good");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_expired_token_says_so_after_the_leeway(db: PgPool) {
    let world = World::new(db).await;
    assert_eq!(request_with(&world, &minted(&claims(json!({ "exp": now() - 20 })), SECRET)).await.status.as_u16(), 200);
    request_with(&world, &minted(&claims(json!({ "exp": now() - 40 })), SECRET)).await.is(401, "token_expired");
}

/// A JWKS with the public half of one RSA key, changed a little.
pub fn jwks(kid: Option<&str>, change: impl Fn(&mut Value)) -> String {
    let private = EncodingKey::from_rsa_pem(private_key("wx_merchant_private_pkcs8.pem").as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
    jwk.common.key_id = kid.map(str::to_owned);
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    let mut jwk = serde_json::to_value(jwk).unwrap();
    change(&mut jwk);
    json!({ "keys": [jwk] }).to_string()
}

fn by_rsa(kid: Option<&str>, algorithm: Algorithm, pem: &str) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    encode(&header, &claims(json!({})), &EncodingKey::from_rsa_pem(private_key(pem).as_bytes()).unwrap()).unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn keys_of_a_jwks_are_chosen_by_name_and_keep_their_algorithm(db: PgPool) {
    runtime::telemetry::install_crypto();
    let authenticator = Authenticator::new().with_secret(&SECRET.into(), &claimed());
    let authenticator = authenticator.with_jwks(&jwks(Some("k1"), |_| {}), &claimed()).unwrap();
    let world = World::with(db, Setup { authenticator, ..Setup::default() }).await;
    let (own, foreign) = ("wx_merchant_private_pkcs8.pem", "wx_other_private_pkcs8.pem");

    assert_eq!(request_with(&world, &by_rsa(Some("k1"), Algorithm::RS256, own)).await.status.as_u16(), 200);
    assert_eq!(
        request_with(&world, &by_rsa(None, Algorithm::RS256, own)).await.status.as_u16(),
        200,
        "there is only one"
    );
    assert_eq!(request_with(&world, &minted(&claims(json!({})), SECRET)).await.status.as_u16(), 200);
    for (kid, algorithm, pem) in [
        (Some("k2"), Algorithm::RS256, own),
        (Some("k1"), Algorithm::RS256, foreign),
        (Some("k1"), Algorithm::RS512, own),
        (Some("k1"), Algorithm::PS256, own),
    ] {
        request_with(&world, &by_rsa(kid, algorithm, pem)).await.is(401, "token_invalid");
    }
    // The classic: the public key, which everybody has, taken for a shared secret.
    for text in [private_key("wx_merchant_public.pem"), jwks(Some("k1"), |_| {})] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k1".to_owned());
        let forged = encode(&header, &claims(json!({})), &EncodingKey::from_secret(text.as_bytes())).unwrap();
        request_with(&world, &forged).await.is(401, "token_invalid");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_ed25519_key_of_a_jwks_verifies(db: PgPool) {
    runtime::telemetry::install_crypto();
    let set = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "kid": "e1", "use": "sig", "x": "6kpsY-KcUgq-9VB7Ey7F-ZVHdq6-vnuSQh7qaRRG0iw" }
    ] });
    let authenticator = Authenticator::new().with_jwks(&set.to_string(), &claimed()).unwrap();
    let world = World::with(db, Setup { authenticator, ..Setup::default() }).await;
    let signed = |seed: u8| {
        // RFC 8410, section 7: a private key without its public half.
        let der =
            [b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".as_slice(), &[seed; 32]].concat();
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("e1".to_owned());
        encode(&header, &claims(json!({})), &EncodingKey::from_ed_der(&der)).unwrap()
    };
    assert_eq!(request_with(&world, &signed(7)).await.status.as_u16(), 200);
    request_with(&world, &signed(8)).await.is(401, "token_invalid");
}

#[test]
fn a_jwks_with_keys_that_cannot_be_used_is_refused_whole() {
    runtime::telemetry::install_crypto();
    let wrong = |text: &str| match Authenticator::new().with_jwks(text, &claimed()) {
        Ok(_) => panic!("{text}"),
        Err(wrong) => wrong.join("\n"),
    };
    insta::assert_snapshot!(
        [
            wrong("{}"),
            wrong("{\"keys\":[]}"),
            wrong(&jwks(None, |_| {})),
            wrong(&jwks(Some("k1"), |jwk| jwk["alg"] = json!("RS512"))),
            wrong(&jwks(Some("k1"), |jwk| jwk["n"] = json!("AQAB"))),
            wrong(&jwks(Some("k1"), |jwk| jwk["use"] = json!("enc"))),
            wrong("{\"keys\":[{\"kty\":\"oct\",\"kid\":\"k1\",\"k\":\"AAAA\"}]}"),
        ]
        .join("\n")
    );
}

/// The last line about a refusal, and that there is exactly one more than before.
struct Refusals {
    log: Log,
    seen: usize,
}

impl Refusals {
    #[track_caller]
    fn one_more(&mut self, reason: &str) {
        let lines = self.log.lines("was refused: ");
        assert_eq!(lines.len(), self.seen + 1, "{reason}\n{}", lines.join("\n"));
        assert!(lines[self.seen].contains(reason), "{reason}: {}", lines[self.seen]);
        self.seen += 1;
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_log_names_the_claim_that_failed_and_the_answer_does_not(db: PgPool) {
    let (log, _here) = Log::kept();
    let mut refusals = Refusals { log: log.clone(), seen: 0 };
    let world = World::new(db).await;
    for (changes, reason) in [
        (json!({ "iss": "other" }), "with a valid signature was refused: its iss is not payment"),
        (json!({ "aud": "other" }), "with a valid signature was refused: its aud is not payment-api"),
        (json!({ "iat": now() - 600, "exp": now() - 300 }), "its exp has passed"),
        (json!({ "nbf": now() + 300 }), "its nbf is in the future"),
        (json!({ "sub": null }), "it has no sub"),
        (json!({ "iss": null }), "it has no iss"),
        (json!({ "aud": null }), "it has no aud"),
        (json!({ "exp": null }), "it has no exp"),
        (json!({ "iat": null }), "it has no iat"),
        (json!({ "exp": "soon" }), "its exp is not a number of seconds"),
        (json!({ "scope": ["payments:read"] }), "its scope is not text: write the words in one text, with a blank"),
        (json!({ "sub": 42 }), "its sub is not text"),
        (json!({ "exp": now() + 95_000 }), "s from its iat, but at most 86400 s are allowed"),
        (json!({ "sub": "" }), "its sub does not fit"),
        (json!({ "sub": "two words" }), "its sub does not fit"),
        (json!({ "sub": "-" }), "its sub is the user of unplaced orders"),
    ] {
        let token = minted(&claims(changes), SECRET);
        let answer = request_with(&world, &token).await;
        assert_eq!(answer.status.as_u16(), 401, "{reason}");
        refusals.one_more(reason);
        assert!(!answer.body.contains("iss") && !answer.body.contains("sub"), "{}", answer.body);
        assert!(!log.text().contains(&token), "a token is never logged");
    }
    request_with(&world, &minted(&claims(json!({})), STRANGE)).await.is(401, "token_invalid");
    refusals.one_more("A token was refused: no key verifies its signature");
    request_with(&world, "a.b.c").await.is(401, "token_invalid");
    refusals.one_more("it is not a JWT");
    request(&world, "Basic dTpw").await.is(401, "token_invalid");
    refusals.one_more("the header Authorization is not `Bearer`");
    // The page of a buyer, with a token that has expired.
    let order = world.placed("u1").await;
    let expired = ViewTokens::new(&VIEW_SECRET.into());
    let long_ago = Clock::system().now() - time::Duration::days(3);
    let expired = expired.mint(OrderId::parse(&order).unwrap(), long_ago).unwrap();
    let page = Request::get(format!("/v1/orders/{order}?view_token={expired}")).body(Body::empty()).unwrap();
    world.send(page).await.is(401, "token_expired");
    refusals.one_more("A view token was refused: its exp has passed");
    assert!(!log.text().contains(&expired));
}

/// A stranger can send any number of them.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_unknown_kid_is_named_and_a_flood_of_them_does_not_fill_the_log(db: PgPool) {
    let (log, _here) = Log::kept();
    let mut refusals = Refusals { log: log.clone(), seen: 0 };
    let authenticator = Authenticator::new().with_jwks(&jwks(Some("k1"), |_| {}), &claimed()).unwrap();
    let world = World::with(db, Setup { authenticator, ..Setup::default() }).await;
    let strange = by_rsa(Some("k2\n\u{1b}"), Algorithm::RS256, "wx_merchant_private_pkcs8.pem");
    request_with(&world, &strange).await.is(401, "token_invalid");
    refusals.one_more("no key for RS256 has its kid ");
    assert!(!log.text().contains('\u{1b}'), "what a stranger writes steers no terminal");
    for _ in 0..100 {
        request_with(&world, &strange).await.is(401, "token_invalid");
    }
    let lines = log.lines("was refused: ").len();
    assert!(lines < 90, "{lines} lines");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_log_says_why_an_api_key_was_refused(db: PgPool) {
    let (log, _here) = Log::kept();
    let mut refusals = Refusals { log: log.clone(), seen: 0 };
    let world = World::new(db.clone()).await;
    let (id, good) = api_key(&db, |_| {}).await;
    let (there, elsewhere) = api_key(&db, |new| new.networks = vec!["203.0.113.0/24".parse().unwrap()]).await;
    let (_, live) = api_key(&db, |new| new.environment = KeyEnvironment::Live).await;
    world.watch_keys().await;
    let good = good.expose_secret();
    let wrong = format!("{}00", &good[..good.len() - 2]);
    let unknown = good.replace(&id.to_string(), "0123456789abcdef");
    let broken = good.replace(&id.to_string(), "0123456789ABCDEF");
    for (text, reason) in [
        (wrong.as_str(), format!("API key {id} was refused: its secret is not that of the key")),
        (elsewhere.expose_secret(), format!("API key {there} was refused: it may not be used from this address")),
        (live.expose_secret(), "it is a key of another environment".to_owned()),
        (&unknown, "API key 0123456789abcdef was refused: no active key has this id".to_owned()),
        (&broken, "does not have the form of one".to_owned()),
    ] {
        send(&world, text, Method::GET, "/v1/admin/cases", None).await.is(401, "token_invalid");
        refusals.one_more(&reason);
        assert!(!log.text().contains(text.rsplit('_').next().unwrap()), "a secret is never logged");
    }
    assert_eq!(send(&world, good, Method::GET, "/v1/admin/cases", None).await.status.as_u16(), 200);
    // What a key lacks is in the line of the answer.
    let refund = send(&world, good, Method::POST, "/v1/orders/x/refunds", Some(&json!({}))).await;
    refund.is(403, "scope_missing");
    let lines = log.lines("Answered 403: this needs the scope payments:refund");
    assert!(lines.len() == 1 && lines[0].contains(&format!("key {id}")), "{lines:?}");
}
