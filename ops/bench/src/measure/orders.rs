//! Orders created per second: Alipay page, where the credential is a signature of ours and no gateway is asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use uuid::Uuid;

use super::rate;
use crate::cpu::Usage;
use crate::database;
use crate::http::{self, Load, Requests};
use crate::limits;
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

const USERS: u32 = 100;
const TOKEN: Duration = Duration::from_secs(3600);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let count = stage.cli.orders();
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("orders {repeat}: {count} orders, Alipay page"));
        let (created, used) = create(stage, count).await.context("creating orders")?;
        progress.say(&format!("orders {repeat}: openssl speed rsa2048"));
        let signatures = limits::signatures_per_second().await?;
        progress.done(&rate("orders", created, "RSA-2048 signatures", signatures));
        ours.push(created);
        limit.push(signatures);
        notes.push(used);
    }
    let question = Question {
        what: "orders created (Alipay page)".to_owned(),
        unit: "/s",
        against: "RSA-2048 signatures of openssl speed, every processor".to_owned(),
        target: Target::AtLeast(0.5),
    };
    Ok(question.answer(&ours, &limit, notes))
}

async fn create(stage: &Stage<'_>, count: u32) -> Result<(f64, String)> {
    database::refill(&stage.db, 0).await?;
    let requests = requests(&stage.jwt_secret, count)?;
    let services = stage.start(&["payment-api"]).await?;
    let load = Load { to: stage.api, connections: stage.cli.connections, pace: None };
    let before = Usage::now(&services.pids());
    let sent = http::send(load, &requests).await?;
    let used = Usage::now(&services.pids()).since(&before);
    services.stop().await?;
    let answered = crate::figures::sorted(&sent.answered_ms);
    let percentile = |percent| crate::figures::short(crate::figures::percentile(&answered, percent));
    let note = format!("answered in p50 {} ms, p99 {} ms; {used}", percentile(50.0), percentile(99.0));
    Ok((f64::from(count) / sent.elapsed.as_secs_f64(), note))
}

/// Every order is another purchase, made by one of a hundred users.
fn requests(secret: &str, count: u32) -> Result<Requests> {
    let users: Vec<String> = (0..USERS).map(|user| token(secret, user)).collect::<Result<_>>()?;
    let order = json!({ "product_type": "membership", "subject": "bench", "amount": "12.34", "payment_method": "alipay",
        "scene": "page", "metadata": { "shop": "bench" } });
    let order = order.to_string();
    let request = |n: u32| {
        let key = Uuid::now_v7().to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key.as_str()),
            ("Authorization", users[(n % USERS) as usize].as_str()),
        ];
        http::render("/v1/orders", &headers, order.as_bytes())
    };
    Ok(Arc::new((0..count).map(request).collect()))
}

fn token(secret: &str, user: u32) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let claims = json!({ "iss": "payment", "aud": "payment-api", "sub": format!("bench-{user}"),
        "iat": now.as_secs(), "nbf": now.as_secs(), "exp": (now + TOKEN).as_secs() });
    let key = EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("signing a token")?;
    Ok(format!("Bearer {token}"))
}
