//! Orders in later states, people with rights, and what is logged.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use domain::{Money, OrderId, PaymentMethod, Policies, RefundId, RefundReport, RefundState, TradeNo, TransactionId};
use runtime::clock::Clock;
use serde_json::{Value, json};
use store::settle::refunds as settling;
use store::tables::{refunds, transactions};
use time::{Duration, OffsetDateTime};
use tracing::subscriber::{DefaultGuard, set_default};

use crate::world::{Answer, SECRET, STAFF_SECRET, World, minted, wechat_order};

/// The sender of a request: a user, an admin, or a client without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    User(&'static str),
    Admin(&'static str),
    Nobody,
}

/// What this thread logs while the guard lives.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn kept() -> (Log, DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, set_default(subscriber))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines that hold this text.
    pub fn lines(&self, with: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl World {
    pub async fn request(&self, who: Who, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.send(request(who, method, path, body).body(content(body)).unwrap()).await
    }

    /// The same, without reading the body.
    pub async fn opened(&self, who: Who, method: Method, path: &str, body: Option<&Value>) -> Response<Body> {
        self.open(request(who, method, path, body).body(content(body)).unwrap()).await
    }

    pub async fn post(&self, who: Who, path: &str, body: &Value) -> Answer {
        self.request(who, Method::POST, path, Some(body)).await
    }

    /// A POST with these bytes as its JSON, under a fresh key.
    pub async fn raw(&self, who: Who, path: &str, body: String) -> Answer {
        let request = request(who, Method::POST, path, Some(&Value::Null));
        let request = request.header("idempotency-key", uuid::Uuid::now_v7().to_string());
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    pub async fn refund(&self, user: &'static str, id: &str, key: &str, body: &Value) -> Answer {
        let request = request(Who::User(user), Method::POST, &format!("/v1/orders/{id}/refunds"), Some(body));
        self.send(request.header("idempotency-key", key).body(content(Some(body))).unwrap()).await
    }

    /// A new WeChat Pay order of 12.34 yuan.
    pub async fn placed(&self, user: &str) -> String {
        let key = uuid::Uuid::now_v7().to_string();
        let answer = self.create(user, &key, &wechat_order()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.json()["order"]["id"].as_str().unwrap().to_owned()
    }

    pub async fn paid(&self, user: &str) -> String {
        let id = self.placed(user).await;
        self.pay(&id).await;
        id
    }

    /// Settles a payment, as a callback would.
    pub async fn pay(&self, id: &str) {
        self.pay_at(id, Clock::system().now()).await;
    }

    /// Settles a payment of that moment.
    pub async fn pay_at(&self, id: &str, now: OffsetDateTime) {
        let id = OrderId::parse(id).unwrap();
        let trade_no = TradeNo::parse(format!("42{}", &id.to_string()[2..])).unwrap();
        let mut tx = self.db.begin().await.unwrap();
        let paid = store::tables::orders::Paid { id, trade_no, paid_at: now };
        store::tables::orders::mark_paid(&mut tx, &[paid], now).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn close_locally(&self, id: &str) {
        let mut tx = self.db.begin().await.unwrap();
        let (id, now) = (OrderId::parse(id).unwrap(), Clock::system().now());
        store::tables::orders::mark_closed(&mut tx, &[id], now).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// A payment beside the order's own, made an hour ago, and the case about it.
    pub async fn late_payment(&self, id: &str, trade_no: &str) -> String {
        let extra = transactions::ExtraPayment {
            id: TransactionId::from_u128(Clock::system().fresh_bits()),
            order_id: OrderId::parse(id).unwrap(),
            payment_method: PaymentMethod::Wechat,
            gateway_no: TradeNo::parse(trade_no).unwrap(),
            amount: Money::from_fen(1234).unwrap(),
            paid_at: Clock::system().now() - Duration::hours(1),
            account: None,
        };
        let mut tx = self.db.begin().await.unwrap();
        transactions::note_extra(&mut tx, &[extra], Clock::system().now()).await.unwrap();
        tx.commit().await.unwrap();
        self.case("late_payment", Some(id), trade_no).await
    }

    pub async fn case(&self, kind: &str, order: Option<&str>, number: &str) -> String {
        let id = format!("{:032x}", Clock::system().fresh_bits());
        sqlx::query(
            "insert into cases (id, kind, order_id, subject_ref, evidence, created_at, updated_at) \
             values ($1, $2, $3, $4, '{\"amount\": \"12.34\"}', now(), now())",
        )
        .bind(&id)
        .bind(kind)
        .bind(order)
        .bind(number)
        .execute(&self.db)
        .await
        .unwrap();
        id
    }

    /// Makes the gateway state the result of a refund.
    pub async fn tell(&self, refund_id: &str, fact: &RefundReport) {
        self.tell_under(&Policies::default(), refund_id, fact).await;
    }

    /// The same, under these policies.
    pub async fn tell_under(&self, policies: &Policies, refund_id: &str, fact: &RefundReport) {
        let refund = refunds::get(&self.db, RefundId::parse(refund_id).unwrap()).await.unwrap().unwrap();
        let mut tx = self.db.begin().await.unwrap();
        settling::settle(&mut tx, &refund, fact, policies, &Clock::system()).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn one<T>(&self, query: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    /// Lets the relay count until it has caught up.
    pub async fn counted(&self, now: OffsetDateTime) {
        loop {
            let mut tx = self.db.begin().await.unwrap();
            let done = store::upkeep::statistics::round(&mut tx, now, store::upkeep::statistics::ROUND).await.unwrap();
            tx.commit().await.unwrap();
            if done {
                return;
            }
        }
    }
}

pub fn returned() -> RefundReport {
    RefundReport {
        state: RefundState::Succeeded,
        amount: None,
        returned: None,
        gateway_refund_no: Some("5030".to_owned()),
        at: None,
    }
}

fn request(who: Who, method: Method, path: &str, body: Option<&Value>) -> axum::http::request::Builder {
    let mut request = Request::builder().method(method).uri(path);
    let (user, scope) = match who {
        Who::User(user) => (Some(user), "orders payments"),
        Who::Admin(user) => (Some(user), "orders payments:admin"),
        Who::Nobody => (None, ""),
    };
    if let Some(user) = user {
        let now = Clock::system().now().unix_timestamp();
        let (iss, secret) = if matches!(who, Who::Admin(_)) { ("staff", STAFF_SECRET) } else { ("payment", SECRET) };
        let claims = json!({
            "sub": user, "iss": iss, "aud": "payment-api", "iat": now, "exp": now + 300, "auth_time": now, "scope": scope,
        });
        request = request.header("authorization", format!("Bearer {}", minted(&claims, secret)));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    request
}

fn content(body: Option<&Value>) -> Body {
    body.map_or_else(Body::empty, |body| Body::from(body.to_string()))
}
