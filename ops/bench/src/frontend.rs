//! The merchant's frontends, as requests.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use uuid::Uuid;

use crate::database::order_id;
use crate::http::render;

/// Orders that are inserted into the database belong to this many users, in turn.
pub(crate) const USERS: u32 = 1000;
const TOKEN: Duration = Duration::from_secs(7200);
/// The payer's identity, if one is needed.
const OPENID: &str = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o";

/// The merchant's backend, which signs the prices with the secret of an API key.
pub(crate) struct Vouching {
    key_id: String,
    secret: EncodingKey,
}

impl Vouching {
    pub(crate) fn new(key_id: String, secret: &str) -> Vouching {
        Vouching { key_id, secret: EncodingKey::from_secret(secret.as_bytes()) }
    }

    /// A new offer for a user.
    fn offer(&self, user: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let claims = json!({ "iss": self.key_id, "aud": "payment-api/offers", "sub": user, "jti": Uuid::now_v7().to_string(),
            "iat": now.as_secs(), "exp": (now + TOKEN).as_secs(), "product_type": "membership", "subject": "bench",
            "amount": "12.34", "metadata": { "shop": "bench" } });
        let (typ, kid) = (Some("offer+jwt".to_owned()), Some(self.key_id.clone()));
        let header = Header { typ, kid, ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.secret).context("signing an offer")
    }
}

/// The signer of the users' tokens.
pub(crate) struct Frontend {
    key: EncodingKey,
    tokens: BTreeMap<u32, String>,
}

impl Frontend {
    pub(crate) fn new(secret: &str) -> Result<Frontend> {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let mut frontend = Frontend { key, tokens: BTreeMap::new() };
        frontend.tokens = (0..USERS).map(|user| Ok((user, frontend.token(user)?))).collect::<Result<_>>()?;
        Ok(frontend)
    }

    /// A request for a new order.
    pub(crate) fn order(&self, n: u32, method: &str, scene: &str) -> Vec<u8> {
        let mut order = json!({ "product_type": "membership", "subject": "bench", "amount": "12.34",
            "payment_method": method, "scene": scene, "metadata": { "shop": "bench" } });
        if scene == "jsapi" {
            order["openid"] = OPENID.into();
        }
        self.post(n, "/v1/orders", &order.to_string())
    }

    /// A request for a new order at the price of an offer.
    pub(crate) fn purchase(&self, n: u32, vouching: &Vouching) -> Result<Vec<u8>> {
        let offer = vouching.offer(&format!("bench-{}", n % USERS))?;
        let order = json!({ "offer": offer, "payment_method": "alipay", "scene": "page" });
        Ok(self.post(n, "/v1/orders", &order.to_string()))
    }

    /// A request for a refund of all the money of the nth inserted order.
    pub(crate) fn refund(&self, n: u32) -> Vec<u8> {
        let body = json!({ "reason": "bench" }).to_string();
        self.post(n, &format!("/v1/orders/{}/refunds", order_id(n)), &body)
    }

    /// A read of the nth inserted order.
    pub(crate) fn look(&self, n: u32) -> Vec<u8> {
        let path = format!("/v1/orders/{}", order_id(n));
        render("GET", &path, &[("Authorization", self.of(n))], b"")
    }

    /// A request to close the nth inserted order.
    pub(crate) fn close(&self, n: u32) -> Vec<u8> {
        self.post(n, &format!("/v1/orders/{}/close", order_id(n)), "{}")
    }

    fn post(&self, n: u32, path: &str, body: &str) -> Vec<u8> {
        let key = Uuid::now_v7().to_string();
        let headers =
            [("Content-Type", "application/json"), ("Idempotency-Key", key.as_str()), ("Authorization", self.of(n))];
        render("POST", path, &headers, body.as_bytes())
    }

    fn of(&self, n: u32) -> &str {
        self.tokens.get(&(n % USERS)).map_or("", String::as_str)
    }

    fn token(&self, user: u32) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let claims = json!({ "iss": "payment", "aud": "payment-api", "sub": format!("bench-{user}"),
            "iat": now.as_secs(), "nbf": now.as_secs(), "exp": (now + TOKEN).as_secs() });
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key);
        Ok(format!("Bearer {}", token.context("signing a token")?))
    }
}
