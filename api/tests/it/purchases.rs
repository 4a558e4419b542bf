//! Orders of one purchase: what is found again, what is shown to whom, and how long a price holds.

use axum::http::Method;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use payment_api::access::key::{Claimed, Issuer};
use payment_api::access::prices::BuyerPrices;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::{jwks, private_key};
use crate::callers::{now, send};
use crate::offers::{Backend, VOUCHED, backend, buy, by, claims, shop, shop_with};
use crate::support::Who::User;
use crate::world::{Setup, World, wechat_order};

/// The request of a buyer who pays within WeChat.
fn within_wechat(offer: &str, openid: &str) -> Value {
    json!({ "offer": offer, "payment_method": "wechat", "scene": "jsapi", "openid": openid })
}

/// The seconds from now to the end of an order.
fn lives(order: &Value) -> i64 {
    let ends = OffsetDateTime::parse(order["expires_at"].as_str().unwrap(), &Rfc3339).unwrap();
    ends.unix_timestamp() - now()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_is_found_only_by_the_payer_whom_its_credential_fits(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let offer = shop.offer(json!({}));
    let first = buy(&world, "u1", "k1", &within_wechat(&offer, "payer-1")).await;
    assert_eq!(first.status, 201, "{}", first.json());
    let found = buy(&world, "u1", "k2", &within_wechat(&offer, "payer-1")).await;
    assert_eq!((found.status.as_u16(), &found.json()["order"]["id"]), (200, &first.json()["order"]["id"]));
    buy(&world, "u1", "k3", &within_wechat(&offer, "payer-2")).await.is(409, "offer_has_open_order");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_is_closing_is_not_found(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let offer = by(&shop.offer(json!({})));
    let id = buy(&world, "u1", "k1", &offer).await.json()["order"]["id"].as_str().unwrap().to_owned();
    let close = world.request(User("u1"), Method::POST, &format!("/v1/orders/{id}/close"), None).await;
    assert_eq!(close.status, 202, "{}", close.body);
    let refused = buy(&world, "u1", "k2", &offer).await;
    refused.is(409, "offer_has_open_order");
    assert_eq!(refused.json()["order_id"], id.as_str());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_does_not_learn_of_another_buyers_order(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let of_u2 = json!({ "jti": "offer-2", "sub": "u2", "merchant_order_no": "A1002" });
    let id = buy(&world, "u2", "k1", &by(&shop.offer(of_u2))).await.json()["order"]["id"].as_str().unwrap().to_owned();
    let refused = buy(&world, "u1", "k1", &by(&shop.offer(json!({ "merchant_order_no": "A1002" })))).await;
    refused.is(409, "offer_has_open_order");
    assert!(refused.json()["order_id"].is_null() && !refused.body.contains(&id), "{}", refused.body);
    // The merchant may.
    let mut body = wechat_order();
    (body["user_id"], body["merchant_order_no"]) = (json!("u1"), json!("A1002"));
    let refused = backend(&world, &shop, "k1", &body).await;
    refused.is(409, "merchant_order_no_has_open_order");
    assert_eq!(refused.json()["order_id"], id.as_str());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_price_holds_as_long_as_its_offer(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    for (n, (offer, asked, holds)) in
        [(600, 604_800, 1800), (600, 300, 300), (7200, 604_800, 7200), (7200, 3600, 3600)].into_iter().enumerate()
    {
        let mut body = by(&shop.offer(json!({ "jti": format!("offer-{n}"), "exp": now() + offer })));
        body["expires_in"] = json!(asked);
        let order = buy(&world, "u1", &format!("k{n}"), &body).await.json()["order"].clone();
        assert!((holds - 30..=holds).contains(&lives(&order)), "{asked} of {offer}: {order}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyers_price_gets_no_credential_once_the_account_is_real(db: PgPool) {
    let pilot = shop_with(db.clone(), BuyerPrices { any: true, ..VOUCHED }).await;
    let order = buy(&pilot, "u1", "k1", &wechat_order()).await.json()["order"]["id"].as_str().unwrap().to_owned();
    let mut setup = Setup { is_production: true, ..Setup::default() };
    setup.settings.buyer_prices = VOUCHED;
    let live = World::with(db, setup).await;
    let path = format!("/v1/orders/{order}/payment");
    live.request(User("u1"), Method::POST, &path, None).await.is(403, "price_not_vouched");
    assert_eq!(pilot.request(User("u1"), Method::POST, &path, None).await.status, 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_service_issuers_keys_sign_offers(db: PgPool) {
    runtime::telemetry::install_crypto();
    let mut setup = Setup::default();
    setup.settings.buyer_prices = VOUCHED;
    let claimed = |of, audience: &str| Claimed { of, issuer: "service".to_owned(), audience: audience.to_owned() };
    let set = jwks(Some("k1"), |_| {});
    setup.authenticator = setup
        .authenticator
        .with_offers_to("payment-api")
        .with_jwks(&set, &claimed(Issuer::Services, "payment-api"))
        .unwrap()
        .with_jwks(&set, &claimed(Issuer::Offers, "payment-api/offers"))
        .unwrap();
    let world = World::with(db.clone(), setup).await;
    let signed = |typ: &str, claims: Value| {
        let mut header = Header::new(Algorithm::RS256);
        (header.typ, header.kid) = (Some(typ.to_owned()), Some("k1".to_owned()));
        let key = EncodingKey::from_rsa_pem(private_key("wx_merchant_private_pkcs8.pem").as_bytes()).unwrap();
        encode(&header, &claims, &key).unwrap()
    };
    let offer = signed("offer+jwt", claims("service", json!({})));
    assert_eq!(buy(&world, "u1", "k1", &by(&offer)).await.status, 201);
    let voucher: String = world.one("select voucher from payment_orders").await;
    assert_eq!(voucher, "service");
    // A token of the issuer is no offer, whatever it claims, and an offer is no token.
    buy(&world, "u1", "k2", &by(&signed("JWT", claims("service", json!({}))))).await.is(400, "offer_invalid");
    let as_token = claims("service", json!({ "aud": "payment-api", "scope": "payments:read" }));
    send(&world, &signed("offer+jwt", as_token), Method::GET, "/v1/admin/cases", None).await.is(401, "token_invalid");
}

/// A service issuer signs with the keys of its JWKS. Each claim and each header counts there as well.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_offer_of_the_service_issuer_that_is_altered_is_no_offer(db: PgPool) {
    runtime::telemetry::install_crypto();
    let mut setup = Setup::default();
    setup.settings.buyer_prices = VOUCHED;
    let claimed =
        Claimed { of: Issuer::Offers, issuer: "service".to_owned(), audience: "payment-api/offers".to_owned() };
    let set = jwks(Some("k1"), |_| {});
    setup.authenticator = setup.authenticator.with_offers_to("payment-api").with_jwks(&set, &claimed).unwrap();
    let world = World::with(db.clone(), setup).await;
    let pem = private_key("wx_merchant_private_pkcs8.pem");
    let rsa = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    // The text of a public key must not become the secret of a MAC.
    let public = EncodingKey::from_secret(set.to_string().as_bytes());
    let signed = |(kid, algorithm, key): (Option<&str>, Algorithm, &EncodingKey), change: Value| {
        let mut header = Header::new(algorithm);
        (header.typ, header.kid) = (Some("offer+jwt".to_owned()), kid.map(str::to_owned));
        encode(&header, &claims("service", change), key).unwrap()
    };
    let good = (Some("k1"), Algorithm::RS256, &rsa);
    for (how, change) in [
        (good, json!({ "iss": "other" })),
        (good, json!({ "iss": null })),
        (good, json!({ "aud": "payment-api" })),
        (good, json!({ "aud": null })),
        (good, json!({ "exp": (now() + 100_000) as f64 })),
        (good, json!({ "sub": "u2" })),
        ((Some("k2"), Algorithm::RS256, &rsa), json!({})),
        ((Some("k1"), Algorithm::RS512, &rsa), json!({})),
        ((Some("k1"), Algorithm::HS256, &public), json!({})),
    ] {
        let offer = signed(how, change.clone());
        let refused = buy(&world, "u1", "k1", &by(&offer)).await;
        assert_eq!(refused.status, 400, "{change} {:?}", how.0);
        refused.is(400, "offer_invalid");
    }
    assert_eq!(buy(&world, "u1", "k1", &by(&signed(good, json!({})))).await.status, 201);
}
