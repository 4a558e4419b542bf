//! Who names the price: offers, the catalogue, backends, and no buyer.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request};
use domain::{ApiKeyId, ApiKeySecret, Scopes};
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use payment_api::access::prices::BuyerPrices;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::api_keys;
use time::Duration;

use crate::callers::{key, now, send, until};
use crate::support::Log;
use crate::support::Who::Admin;
use crate::world::{Answer, SEAL_KEY, Setup, World, seal_keys, token, wechat_order};

/// Prices with a voucher.
pub const VOUCHED: BuyerPrices = BuyerPrices { offer: true, catalogue: true, any: false, any_until: 0 };

/// A backend that signs offers with its API key's secret for them.
pub struct Backend {
    pub id: ApiKeyId,
    pub secret: SecretString,
    pub key: SecretString,
}

impl Backend {
    pub async fn new(db: &PgPool) -> Backend {
        let (id, key) = key(db, |_| ()).await;
        Backend { id, secret: given(db, id, 8, Duration::ZERO).await, key }
    }

    pub fn claims(&self, change: Value) -> Value {
        claims(&self.id.to_string(), change)
    }

    pub fn offer(&self, change: Value) -> String {
        self.signed(&self.claims(change))
    }

    fn signed(&self, claims: &Value) -> String {
        self.signed_as(claims, |_| ())
    }

    fn signed_as(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> String {
        runtime::telemetry::install_crypto();
        let mut header = Header::new(Algorithm::HS256);
        (header.typ, header.kid) = (Some("offer+jwt".to_owned()), Some(self.id.to_string()));
        change(&mut header);
        encode(&header, claims, &EncodingKey::from_secret(self.secret.expose_secret().as_bytes())).unwrap()
    }
}

/// Gives a key a secret for offers.
async fn given(db: &PgPool, id: ApiKeyId, bytes: u8, overlap: Duration) -> SecretString {
    let secret = ApiKeySecret::from_bytes([bytes; 32]).offer_text();
    let (seal, name) = (seal_keys([("SEAL_KEY", SEAL_KEY)]).unwrap(), id.to_string());
    let sealed = seal.seal(&api_keys::offer_secret_place(&name), secret.expose_secret().as_bytes()).unwrap();
    let mut tx = db.begin().await.unwrap();
    api_keys::set_offer_secret(&mut tx, id, &sealed, overlap, "a1").await.unwrap();
    tx.commit().await.unwrap();
    secret
}

/// Good claims with some changed; `null` takes one away.
pub fn claims(iss: &str, changes: Value) -> Value {
    let mut claims = json!({
        "iss": iss, "aud": "payment-api/offers", "iat": now(), "exp": now() + 600, "jti": "offer-1", "sub": "u1",
        "product_type": "credits", "subject": "十次修图", "amount": "12.34",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

pub async fn shop(db: PgPool) -> World {
    shop_with(db, VOUCHED).await
}

pub async fn shop_with(db: PgPool, prices: BuyerPrices) -> World {
    let mut setup = Setup::default();
    setup.settings.buyer_prices = prices;
    setup.authenticator = setup.authenticator.with_offers_to("payment-api");
    World::with(db, setup).await
}

/// The request of a buyer who has an offer.
pub fn by(offer: &str) -> Value {
    json!({ "offer": offer, "payment_method": "wechat", "scene": "native" })
}

pub async fn buy(world: &World, user: &str, idempotency_key: &str, body: &Value) -> Answer {
    world.create(user, idempotency_key, body).await
}

pub async fn backend(world: &World, backend: &Backend, idempotency_key: &str, body: &Value) -> Answer {
    let request = Request::builder().method(Method::POST).uri("/v1/orders").header("idempotency-key", idempotency_key);
    let request = request.header("authorization", format!("Bearer {}", backend.key.expose_secret()));
    let request = request.header("content-type", "application/json");
    world.send(request.body(Body::from(body.to_string())).unwrap()).await
}

async fn closed(world: &World, id: &str) {
    world.close_locally(id).await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_does_not_name_the_price(db: PgPool) {
    let world = shop(db.clone()).await;
    for body in [wechat_order(), json!({ "amount": "0.01" }), json!({ "subject": "x" }), json!({ "metadata": {} })] {
        buy(&world, "u1", "k1", &body).await.is(403, "price_not_vouched");
    }
    assert_eq!((world.count("payment_orders").await, world.count("idempotency_keys").await), (0, 0));

    // Each way is named alone, too.
    let only_offers = shop_with(db.clone(), BuyerPrices { catalogue: false, ..VOUCHED }).await;
    buy(&only_offers, "u1", "k1", &json!({ "product_type": "credits" })).await.is(403, "price_not_vouched");
    let only_listed = shop_with(db.clone(), BuyerPrices { offer: false, ..VOUCHED }).await;
    buy(&only_listed, "u1", "k1", &by("x")).await.is(403, "price_not_vouched");
    let any = BuyerPrices { any: true, ..VOUCHED };
    let mut setup = Setup { is_production: true, ..Setup::default() };
    setup.settings.buyer_prices = any;
    buy(&World::with(db.clone(), setup).await, "u1", "k1", &wechat_order()).await.is(403, "price_not_vouched");
    let until = BuyerPrices { any_until: (now() + 60) as u64, ..VOUCHED };
    let mut setup = Setup { is_production: true, ..Setup::default() };
    setup.settings.buyer_prices = until;
    assert_eq!(buy(&World::with(db, setup).await, "u1", "k1", &wechat_order()).await.status, 201);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_offer_fixes_what_is_sold(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let offer = shop.offer(json!({ "metadata": { "cart": 7 }, "merchant_order_no": "A1002" }));
    let answer = buy(&world, "u1", "k1", &by(&offer)).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    let order = answer.json()["order"].clone();
    assert_eq!(order["amount"], "12.34");
    assert_eq!(order["subject"], "十次修图");
    assert_eq!(order["merchant_order_no"], "A1002");
    assert_eq!(order["metadata"], json!({ "cart": 7 }));
    let row: (String, String, String) =
        sqlx::query_as("select vouched_by, voucher, offer_id from payment_orders").fetch_one(&db).await.unwrap();
    assert_eq!(row, ("offer".to_owned(), format!("key {}", shop.id), "offer-1".to_owned()));

    // A repeat gets the first answer, even after the offer has expired.
    let again = buy(&world, "u1", "k1", &by(&offer)).await;
    assert_eq!((again.status.as_u16(), again.header("idempotency-replayed")), (201, "true"));

    // What the offer fixes is not in the request.
    let mut more = by(&shop.offer(json!({ "jti": "offer-2" })));
    for (name, value) in [("amount", json!("0.01")), ("subject", json!("x")), ("metadata", json!({}))] {
        more[name] = value;
    }
    let refused = buy(&world, "u1", "k2", &more).await;
    refused.is(400, "invalid_fields");
    let fields: Vec<String> =
        refused.json()["errors"].as_array().unwrap().iter().map(|fault| fault["field"].to_string()).collect();
    assert_eq!(fields, ["\"subject\"", "\"amount\"", "\"metadata\""]);
    let at_alipay = shop.offer(json!({ "jti": "offer-3", "methods": ["alipay"] }));
    buy(&world, "u1", "k3", &by(&at_alipay)).await.is(400, "invalid_fields");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_offer_that_is_altered_is_no_offer(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let (log, _guard) = Log::kept();
    let long = "x".repeat(65);
    for (change, why) in [
        (json!({ "sub": "u2" }), "it is for another user"),
        (json!({ "aud": "payment-api" }), "its aud is not payment-api/offers"),
        (json!({ "iss": "service" }), "its iss is not"),
        (json!({ "exp": now() + 25 * 3600 }), "it lives more than 24 hours"),
        (json!({ "iat": now() + 3600, "exp": now() + 4000 }), "its iat is in the future"),
        (json!({ "amount": "0.00" }), "its amount is not"),
        (json!({ "amount": "-1.00" }), "its amount is not"),
        (json!({ "amount": 12.34 }), "its claims do not fit"),
        (json!({ "jti": null }), "its claims do not fit: missing field `jti`"),
        (json!({ "jti": long }), "its jti must be"),
        (json!({ "exp": null }), "its claims do not fit: missing field `exp`"),
        (json!({ "discount": "1.00" }), "its claims do not fit: unknown field `discount`"),
        (json!({ "product_type": "a b" }), "its product_type must be"),
        (json!({ "subject": "" }), "its subject must be"),
        (json!({ "merchant_order_no": "A 1" }), "its merchant_order_no must be"),
        (json!({ "metadata": [] }), "its claims do not fit"),
        (json!({ "methods": ["paypal"] }), "its methods must be"),
    ] {
        let before = log.lines("An offer was refused").len();
        // The log has a few of them in a second.
        until(async || {
            buy(&world, "u1", "k1", &by(&shop.offer(change.clone()))).await.is(400, "offer_invalid");
            log.lines("An offer was refused").len() > before
        })
        .await;
        let last = log.lines("An offer was refused").pop().unwrap_or_default();
        assert!(last.contains(why), "{change}: {last}");
    }
    buy(&world, "u1", "k1", &by(&shop.offer(json!({ "iat": now() - 700, "exp": now() - 60 }))))
        .await
        .is(400, "offer_expired");

    // Each claim is signed.
    let good = shop.offer(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let cheap = shop.offer(json!({ "amount": "0.01" }));
    let forged = [parts[0], cheap.split('.').nth(1).unwrap(), parts[2]].join(".");
    let stranger = Backend { secret: "os_not_ours".into(), key: shop.key.clone(), id: shop.id };
    for wrong in [forged, stranger.offer(json!({})), "x".to_owned(), String::new(), format!("{good}.x")] {
        buy(&world, "u1", "k1", &by(&wrong)).await.is(400, "offer_invalid");
    }
    for change in [
        (|header| header.typ = Some("JWT".to_owned())) as fn(&mut Header),
        |header| header.typ = None,
        |header| header.typ = Some("application/JWT".to_owned()),
        |header| header.kid = None,
        |header| header.kid = Some("0123456789abcdef".to_owned()),
        |header| header.crit = Some(vec!["exp".to_owned()]),
    ] {
        buy(&world, "u1", "k1", &by(&shop.signed_as(&shop.claims(json!({})), change))).await.is(400, "offer_invalid");
    }
    assert_eq!((world.count("payment_orders").await, world.count("idempotency_keys").await), (0, 0));

    // Neither is the other: an offer names no caller, and a token sells nothing.
    let long_form = shop.signed_as(&shop.claims(json!({ "aud": "payment-api" })), |header| {
        header.typ = Some("application/offer+jwt".to_owned());
    });
    for offer in [&good, &long_form] {
        send(&world, offer, Method::GET, "/v1/orders", None).await.is(401, "token_invalid");
    }
    buy(&world, "u1", "k1", &by(&token("u1"))).await.is(400, "offer_invalid");
    buy(&world, "u1", "k1", &by(shop.key.expose_secret())).await.is(400, "offer_invalid");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_keys_offers_end_with_the_key_and_with_its_secret(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    let (reader, text) = key(&db, |new| new.scopes = Scopes::parse("payments:read")).await;
    let keys = &world.app.tokens.keys;
    keys.refresh(&db).await.unwrap();
    assert_eq!(buy(&world, "u1", "k1", &by(&shop.offer(json!({})))).await.status, 201);

    // The secret before counts on for a while, and the one before that does not.
    let second = given(&db, shop.id, 9, Duration::HOUR).await;
    keys.refresh(&db).await.unwrap();
    let new = Backend { secret: second, key: shop.key.clone(), id: shop.id };
    assert_eq!(buy(&world, "u1", "k2", &by(&shop.offer(json!({ "jti": "2" })))).await.status, 201);
    assert_eq!(buy(&world, "u1", "k3", &by(&new.offer(json!({ "jti": "3" })))).await.status, 201);
    given(&db, shop.id, 10, Duration::ZERO).await;
    keys.refresh(&db).await.unwrap();
    for old in [&shop, &new] {
        buy(&world, "u1", "k4", &by(&old.offer(json!({ "jti": "4" })))).await.is(400, "offer_invalid");
    }

    // The key's own secret signs nothing, and a key that may not create orders gets no secret for offers.
    let own = Backend { secret: shop.key.clone(), key: shop.key.clone(), id: shop.id };
    buy(&world, "u1", "k4", &by(&own.offer(json!({ "jti": "4" })))).await.is(400, "offer_invalid");
    let mut tx = db.begin().await.unwrap();
    assert!(api_keys::set_offer_secret(&mut tx, reader, b"sealed", Duration::ZERO, "a1").await.is_err());
    tx.rollback().await.unwrap();
    drop(text);

    let last = Backend { secret: given(&db, shop.id, 11, Duration::ZERO).await, key: shop.key.clone(), id: shop.id };
    keys.refresh(&db).await.unwrap();
    let sold = by(&last.offer(json!({ "jti": "5" })));
    assert_eq!(buy(&world, "u1", "k5", &sold).await.status, 201);
    let mut tx = db.begin().await.unwrap();
    api_keys::revoke(&mut tx, shop.id, "a1").await.unwrap();
    tx.commit().await.unwrap();
    keys.refresh(&db).await.unwrap();
    buy(&world, "u1", "k6", &by(&last.offer(json!({ "jti": "6" })))).await.is(400, "offer_invalid");
    // What a revoked key vouched for stays sold.
    let replayed = buy(&world, "u1", "k5", &sold).await;
    assert_eq!((replayed.status.as_u16(), replayed.header("idempotency-replayed")), (201, "true"));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_purchase_has_one_order_that_is_not_closed(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let offer = shop.offer(json!({}));
    let first = buy(&world, "u1", "k1", &by(&offer)).await;
    let id = first.json()["order"]["id"].as_str().unwrap().to_owned();

    // The same way to pay finds the order, and uses no key.
    let found = buy(&world, "u1", "k2", &by(&offer)).await;
    assert_eq!((found.status.as_u16(), found.header("idempotency-expires")), (200, ""));
    assert_eq!(found.json()["order"]["id"], id.as_str());
    assert_eq!(world.count("idempotency_keys").await, 1);

    // Another way to pay, or another price, needs a close first.
    let mut at_alipay = by(&offer);
    (at_alipay["payment_method"], at_alipay["scene"]) = (json!("alipay"), json!("page"));
    for other in
        [at_alipay, by(&shop.offer(json!({ "amount": "12.35" }))), by(&shop.offer(json!({ "merchant_order_no": "A" })))]
    {
        let refused = buy(&world, "u1", "k3", &other).await;
        refused.is(409, "offer_has_open_order");
        assert_eq!(refused.json()["order_id"], id.as_str());
    }

    // A closed order is followed by another one, and a paid one by none.
    closed(&world, &id).await;
    let second = buy(&world, "u1", "k4", &by(&offer)).await;
    assert_eq!(second.status, 201, "{}", second.json());
    let id = second.json()["order"]["id"].as_str().unwrap().to_owned();
    world.pay(&id).await;
    let refused = buy(&world, "u1", "k5", &by(&offer)).await;
    refused.is(409, "offer_used");
    assert_eq!(refused.json()["order_id"], id.as_str());
    assert_eq!(world.count("payment_orders").await, 2);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn one_offer_64_times_at_once_makes_one_order(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    let (world, body) = (Arc::new(world), by(&shop.offer(json!({ "merchant_order_no": "A1002" }))));
    let requests = (0..64).map(|n| {
        let (world, body) = (world.clone(), body.clone());
        tokio::spawn(async move { buy(&world, "u1", &format!("k{n}"), &body).await })
    });
    let mut ids = HashSet::new();
    for answer in join_all(requests).await {
        let answer = answer.unwrap();
        // The first credential may not be stored yet, and the gateway gets six calls.
        if answer.status == 429 {
            continue;
        }
        assert!(matches!(answer.status.as_u16(), 200 | 201), "{} {}", answer.status, answer.json());
        ids.insert(answer.json()["order"]["id"].to_string());
    }
    assert_eq!((ids.len(), world.count("payment_orders").await, world.count("idempotency_keys").await), (1, 1, 1));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_backends_number_names_one_purchase(db: PgPool) {
    let world = shop(db.clone()).await;
    let (shop, other) = (Backend::new(&db).await, Backend::new(&db).await);
    world.watch_keys().await;
    let mut body = wechat_order();
    (body["user_id"], body["merchant_order_no"]) = (json!("u1"), json!("A1002"));
    let first = backend(&world, &shop, "k1", &body).await;
    assert_eq!(first.status, 201, "{}", first.json());
    let order = first.json()["order"].clone();
    assert_eq!(order["merchant_order_no"], "A1002");
    // The number is the merchant's, whichever of its backends sends it.
    let found = backend(&world, &other, "k1", &body).await;
    assert_eq!((found.status.as_u16(), &found.json()["order"]["id"]), (200, &order["id"]));
    body["amount"] = json!("99.00");
    backend(&world, &shop, "k2", &body).await.is(409, "merchant_order_no_has_open_order");
    world.pay(order["id"].as_str().unwrap()).await;
    backend(&world, &shop, "k3", &body).await.is(409, "merchant_order_no_used");
    body["merchant_order_no"] = json!("A 1003");
    backend(&world, &shop, "k4", &body).await.is(400, "invalid_fields");
    // A buyer's own request cannot take a number.
    let any = shop_with(db, BuyerPrices { any: true, ..VOUCHED }).await;
    let mut own = wechat_order();
    own["merchant_order_no"] = json!("A1003");
    buy(&any, "u1", "k1", &own).await.is(400, "invalid_fields");
    // And a backend names the price itself.
    let mut offered = by("x");
    offered["user_id"] = json!("u1");
    backend(&world, &shop, "k5", &offered).await.is(400, "invalid_fields");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_catalogue_names_the_price(db: PgPool) {
    let world = shop(db.clone()).await;
    let put =
        async |body: &Value| world.request(Admin("a1"), Method::PUT, "/v1/admin/catalogue/credits", Some(body)).await;
    let price = |version: i64, amount: &str| json!({ "version": version, "subject": "十次修图", "amount": amount });
    let order = json!({ "product_type": "credits", "payment_method": "wechat", "scene": "native" });
    let unknown = buy(&world, "u1", "k1", &order).await;
    unknown.is(400, "invalid_fields");
    assert_eq!(unknown.json()["errors"][0]["field"], "product_type");

    assert_eq!(put(&price(0, "12.34")).await.status, 200);
    put(&price(0, "0.01")).await.is(409, "config_changed");
    put(&price(2, "0.01")).await.is(409, "config_changed");
    put(&price(1, "0.00")).await.is(400, "invalid_fields");
    put(&price(i64::MAX, "0.01")).await.is(400, "invalid_fields");
    put(&price(-1, "0.01")).await.is(400, "invalid_fields");
    // Only people set prices.
    let (_, config) = key(&db, |new| new.scopes = Scopes::parse("payments:config")).await;
    world.app.tokens.keys.refresh(&db).await.unwrap();
    let path = "/v1/admin/catalogue/credits";
    let by_key = send(&world, config.expose_secret(), Method::PUT, path, Some(&price(1, "0.01"))).await;
    by_key.is(403, "person_required");
    let bought = buy(&world, "u1", "k1", &order).await;
    assert_eq!((bought.status.as_u16(), &bought.json()["order"]["amount"]), (201, &json!("12.34")));
    let mut cheaper = order.clone();
    cheaper["amount"] = json!("0.01");
    buy(&world, "u1", "k2", &cheaper).await.is(403, "price_not_vouched");

    // A new price is for the next order, and what is not sold any more is refused.
    assert_eq!(put(&price(1, "20.00")).await.json()["version"], 2);
    assert_eq!(buy(&world, "u1", "k3", &order).await.json()["order"]["amount"], "20.00");
    assert_eq!(buy(&world, "u1", "k1", &order).await.json()["order"]["amount"], "12.34");
    let mut gone = price(2, "20.00");
    gone["active"] = json!(false);
    assert_eq!(put(&gone).await.status, 200);
    buy(&world, "u1", "k4", &order).await.is(400, "invalid_fields");
    let listed = world.request(Admin("a1"), Method::GET, "/v1/admin/catalogue", None).await.json();
    assert_eq!((&listed["products"][0]["version"], &listed["products"][0]["active"]), (&json!(3), &json!(false)));
    assert_eq!(world.one::<i64>("select count(*) from audit_log where act = 'catalogue.changed'").await, 3);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_holds_few_orders_that_wait(db: PgPool) {
    let mut setup = Setup::default();
    setup.settings.pending_per_user = 2;
    let world = World::with(db.clone(), setup).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    for key in ["k1", "k2"] {
        assert_eq!(buy(&world, "u1", key, &wechat_order()).await.status, 201);
    }
    buy(&world, "u1", "k3", &wechat_order()).await.is(409, "too_many_pending_orders");
    assert_eq!(buy(&world, "u1", "k1", &wechat_order()).await.status, 201, "a repeat creates none");
    assert_eq!(buy(&world, "u2", "k3", &wechat_order()).await.status, 201);
    let mut body = wechat_order();
    body["user_id"] = json!("u1");
    assert_eq!(backend(&world, &shop, "k3", &body).await.status, 201, "a backend's orders have no such limit");
    body["user_id"] = json!("u3");
    for key in ["k4", "k5"] {
        assert_eq!(backend(&world, &shop, key, &body).await.status, 201);
    }
    assert_eq!(buy(&world, "u3", "k1", &wechat_order()).await.status, 201, "and do not count");
    let id: String = world.one("select id::text from payment_orders where user_id = 'u1' order by id limit 1").await;
    closed(&world, &id).await;
    let id: String = world
        .one("select id::text from payment_orders where user_id = 'u1' and status = 'pending' order by id limit 1")
        .await;
    closed(&world, &id).await;
    assert_eq!(buy(&world, "u1", "k3", &wechat_order()).await.status, 201);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_was_vouched_for_does_not_change(db: PgPool) {
    let world = shop(db.clone()).await;
    let shop = Backend::new(&db).await;
    world.watch_keys().await;
    assert_eq!(buy(&world, "u1", "k1", &by(&shop.offer(json!({})))).await.status, 201);
    for change in [
        "amount = 0.01",
        "subject = 'x'",
        "product_type = 'x'",
        "metadata = '{\"a\":1}'",
        "offer_id = 'x'",
        "voucher = 'x'",
        "merchant_order_no = 'x'",
        "vouched_by = 'backend'",
        "is_closed = true",
    ] {
        let done = sqlx::query(sqlx::AssertSqlSafe(format!("update payment_orders set {change}"))).execute(&db).await;
        let refused = done.unwrap_err();
        let by = refused.as_database_error().and_then(|error| error.constraint()).unwrap_or_default();
        let rule =
            if change.starts_with("is_closed") { "payment_orders_is_closed" } else { "payment_orders_terms_stay" };
        assert_eq!(by, rule, "{change}");
    }
}
