//! The merchant's side: a frontend that creates orders, requests refunds, and reads both.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::history::Answered;
use crate::http::{Answer, answer, http_client};
use crate::{Gateway, SOON, eventually, slug, unique};

/// The buyer, unless a test names another.
pub const BUYER: &str = "buyer-1";
/// The payer's identity at WeChat Pay, which must never appear in a log.
pub const OPENID: &str = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o";

/// The frontend. It signs its users' tokens with the secret that the service verifies them with.
#[derive(Debug)]
pub struct Shop {
    base: String,
    /// `JWT_HS256_SECRET`.
    pub jwt_secret: String,
    /// Every answer to a request that creates something.
    answers: Mutex<Vec<Answered>>,
}

/// An order as its buyer sees it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Our id.
    pub id: String,
    /// The number that both gateways use for it.
    pub order_no: String,
    /// The gateway at which it is to be paid.
    pub gateway: Gateway,
    /// The payment scene.
    pub scene: String,
    /// The price.
    pub amount_fen: i64,
    /// The payment parameters: `kind` and the fields of that kind.
    pub payment: Value,
    /// A token with which its holder can read the order.
    pub view_token: String,
}

/// A request for a new order.
#[derive(Debug, Clone)]
pub struct Purchase {
    /// The gateway at which it is to be paid.
    pub gateway: Gateway,
    /// The payment scene.
    pub scene: String,
    /// The price, in yuan.
    pub yuan: String,
    /// The buyer.
    pub user: String,
    /// The Idempotency-Key.
    pub attempt: String,
    /// Where the browser goes after the payment.
    pub return_url: Option<String>,
}

impl Purchase {
    /// A new purchase of the usual buyer.
    #[must_use]
    pub fn new(gateway: Gateway, scene: &str, yuan: &str) -> Purchase {
        let (scene, yuan) = (scene.to_owned(), yuan.to_owned());
        Purchase { gateway, scene, yuan, user: BUYER.to_owned(), attempt: unique(), return_url: None }
    }

    /// The body of the request.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = json!({
            "product_type": "membership",
            "subject": "会员月卡",
            "amount": self.yuan,
            "payment_method": slug(self.gateway),
            "scene": self.scene,
            "metadata": { "cart": self.attempt },
        });
        if ["jsapi", "mini"].contains(&self.scene.as_str()) {
            body["openid"] = OPENID.into();
        }
        if let Some(url) = &self.return_url {
            body["return_url"] = url.as_str().into();
        }
        body
    }
}

/// A buyer's request for a refund.
#[derive(Debug, Clone)]
pub struct RefundRequest {
    /// The amount in yuan; if absent, all that is left.
    pub yuan: Option<String>,
    /// The Idempotency-Key.
    pub attempt: String,
}

impl RefundRequest {
    /// A request for a part of the money.
    #[must_use]
    pub fn of(fen: i64) -> RefundRequest {
        RefundRequest { yuan: Some(yuan(fen)), attempt: unique() }
    }

    /// A request for all that is left.
    #[must_use]
    pub fn of_the_rest() -> RefundRequest {
        RefundRequest { yuan: None, attempt: unique() }
    }
}

impl Shop {
    /// A frontend for the service at `base`.
    #[must_use]
    pub fn new(base: String) -> Shop {
        Shop { base, jwt_secret: format!("jwt-{}{}", unique(), unique()), answers: Mutex::default() }
    }

    /// A token for `user`, valid for five minutes.
    #[must_use]
    pub fn token(&self, user: &str) -> String {
        self.token_with(user, None)
    }

    /// A token for one of the merchant's staff, who may act on all payments.
    #[must_use]
    pub fn staff_token(&self, user: &str) -> String {
        self.token_with(user, Some("payments:admin"))
    }

    fn token_with(&self, user: &str, scope: Option<&str>) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let mut claims = json!({
            "iss": "payment", "aud": "payment-api", "sub": user, "iat": now, "nbf": now, "exp": now + 300,
        });
        if let Some(scope) = scope {
            claims["scope"] = scope.into();
        }
        let key = EncodingKey::from_secret(self.jwt_secret.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token can be signed")
    }

    /// Requests an order; the answer may be anything.
    pub async fn request_order(&self, purchase: &Purchase) -> Result<Answer, reqwest::Error> {
        let request = http_client().post(format!("{}/v1/orders", self.base));
        let request = request.header("Idempotency-Key", &purchase.attempt).json(&purchase.body());
        self.note(&purchase.attempt, answer(request.bearer_auth(self.token(&purchase.user))).await)
    }

    /// Every answer so far to a request that creates something.
    #[must_use]
    pub fn answers(&self) -> Vec<Answered> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, key: &str, answer: Result<Answer, reqwest::Error>) -> Result<Answer, reqwest::Error> {
        let answer = answer?;
        let (key, text) = (key.to_owned(), answer.text.clone());
        let noted = Answered { key, status: answer.status, text, come_again: answer.retry_after.is_some() };
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        Ok(answer)
    }

    /// Creates an order.
    ///
    /// # Panics
    /// Unless it is created.
    pub async fn buy(&self, purchase: &Purchase) -> Order {
        let answer = self.request_order(purchase).await.expect("payment-api answers");
        assert_eq!(answer.status, 201, "{purchase:?}: {}", answer.text);
        order(purchase, &answer)
    }

    /// Closes an order; the answer may be anything.
    pub async fn close(&self, order: &Order) -> Result<Answer, reqwest::Error> {
        let request = http_client().post(format!("{}/v1/orders/{}/close", self.base, order.id));
        answer(request.bearer_auth(self.token(BUYER))).await
    }

    /// The order as the service shows it to its owner.
    pub async fn order(&self, order: &Order) -> Value {
        let request = http_client().get(format!("{}/v1/orders/{}", self.base, order.id));
        let answer = answer(request.bearer_auth(self.token(BUYER))).await.expect("payment-api answers");
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    /// Requests a refund; the answer may be anything.
    pub async fn request_refund(&self, order: &Order, wanted: &RefundRequest) -> Result<Answer, reqwest::Error> {
        let request = http_client().post(format!("{}/v1/orders/{}/refunds", self.base, order.id));
        let body = match &wanted.yuan {
            Some(yuan) => json!({ "amount": yuan, "reason": "不合适" }),
            None => json!({ "reason": "不合适" }),
        };
        let request = request.header("Idempotency-Key", &wanted.attempt).json(&body);
        self.note(&wanted.attempt, answer(request.bearer_auth(self.token(BUYER))).await)
    }

    /// Requests a refund until the answer is final: while the answer says when to retry, it repeats with the same key.
    pub async fn refund_answer(&self, order: &Order, wanted: &RefundRequest) -> Answer {
        let what = format!("a final answer to {wanted:?} of {}", order.order_no);
        eventually(&what, SOON, async || {
            let answer = self.request_refund(order, wanted).await.expect("payment-api answers");
            answer.retry_after.is_none().then_some(answer)
        })
        .await
    }

    /// Requests a refund and returns the refund's id.
    ///
    /// # Panics
    /// Unless it is accepted.
    pub async fn refund(&self, order: &Order, wanted: &RefundRequest) -> String {
        let answer = self.refund_answer(order, wanted).await;
        assert_eq!(answer.status, 202, "{wanted:?} of {}: {}", order.order_no, answer.text);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// The refund as the service shows it to the order's owner.
    pub async fn refund_view(&self, id: &str) -> Value {
        let request = http_client().get(format!("{}/v1/refunds/{id}", self.base));
        let answer = answer(request.bearer_auth(self.token(BUYER))).await.expect("payment-api answers");
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    /// A request to the service as a stranger would make it.
    pub async fn request(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> Answer {
        let request = http_client().request(method, format!("{}{path}", self.base)).body(body);
        answer(request).await.expect("payment-api answers")
    }
}

/// The order in a 201 answer.
#[must_use]
pub fn order(purchase: &Purchase, answer: &Answer) -> Order {
    let made = answer.json();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("not text: {made}")).to_owned();
    Order {
        id: text(&made["order"]["id"]),
        order_no: text(&made["order"]["order_no"]),
        gateway: purchase.gateway,
        scene: purchase.scene.clone(),
        amount_fen: fen(&purchase.yuan),
        payment: made["payment"].clone(),
        view_token: text(&made["view_token"]),
    }
}

/// The fen of an amount that is written with two decimals.
#[must_use]
pub fn fen(yuan: &str) -> i64 {
    let (whole, cents) = yuan.split_once('.').expect("two decimals");
    format!("{whole}{cents:0<2}").parse().expect("an amount")
}

/// Fen, written in yuan with two decimals.
#[must_use]
pub fn yuan(fen: i64) -> String {
    format!("{}.{:02}", fen / 100, fen % 100)
}
