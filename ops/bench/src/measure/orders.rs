//! Orders created per second. First Alipay page compared with its limit: there the credential is our own signature,
//! and no gateway is called; each price stands in an offer. Then each kind of credential.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cpu::Usage;
use crate::database;
use crate::figures::{rate, short};
use crate::http::{self, Load, Sent};
use crate::limits;
use crate::progress::Progress;
use crate::report::{Question, Row, Scenario, Target};
use crate::stage::Stage;

/// The kinds of credential: signed here, or created by a call to a gateway.
const SCENES: [(&str, &str); 4] = [("alipay", "page"), ("alipay", "qr"), ("wechat", "native"), ("wechat", "jsapi")];

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let count = stage.cli.orders();
    let vouching = stage.vouching()?;
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("orders {repeat}: {count} orders of offers, Alipay page"));
        let requests = (0..count).map(|n| stage.frontend.purchase(n, &vouching)).collect::<Result<_>>()?;
        let (created, used) = create(stage, requests).await.context("creating orders of offers")?;
        progress.say(&format!("orders {repeat}: openssl speed rsa2048"));
        let signatures = limits::signatures_per_second().await?;
        progress.done(&rate("orders", created.rate(), "RSA-2048 signatures", signatures));
        ours.push(created.rate());
        limit.push(signatures);
        let (median, worst) = (short(created.percentile(50.0)), short(created.percentile(99.0)));
        notes.push(format!("answered in p50 {median} ms, p99 {worst} ms; {used}"));
    }
    let question = Question {
        what: "orders created (Alipay page, offer checked)".to_owned(),
        unit: "/s",
        against: "RSA-2048 signatures of openssl speed, every processor".to_owned(),
        target: Target::AtLeast(0.48),
    };
    Ok(question.answer(&ours, &limit, notes))
}

/// The same for each kind of credential. The simulator answers at once, and uses its share of the processors.
pub(super) async fn by_gateway(stage: &Stage<'_>, progress: &Progress) -> Result<Scenario> {
    let count = stage.cli.orders();
    let mut scenario = Scenario::new(&format!("order creation, {count} orders of each kind"));
    for repeat in 1..=stage.cli.repeats() {
        for (method, scene) in SCENES {
            progress.say(&format!("gateways {repeat}: {count} orders, {method} {scene}"));
            stage.reset_gateways(0).await?;
            let requests = (0..count).map(|n| stage.frontend.order(n, method, scene)).collect();
            let created = create(stage, requests).await;
            let (created, used) = created.with_context(|| format!("creating orders, {method} {scene}"))?;
            scenario.figure(&format!("{method} {scene}"), "/s", created.rate());
            scenario.figure(&format!("{method} {scene}, answer p99"), "ms", created.percentile(99.0));
            scenario.note(format!("{method} {scene}: {used}"));
        }
        progress.done(&format!("gateways: {}", scenario.summary()));
    }
    Ok(scenario)
}

/// Every order is a separate purchase of one of a thousand users.
async fn create(stage: &Stage<'_>, requests: Vec<Vec<u8>>) -> Result<(Sent, String)> {
    database::refill(&stage.db, 0).await?;
    let requests = Arc::new(requests);
    let services = stage.start(&["payment-api"]).await?;
    let load = Load { to: stage.api, connections: stage.cli.connections, pace: None, from: None };
    let before = Usage::now(&services.pids());
    let sent = http::send(load, &requests).await?;
    let used = Usage::now(&services.pids()).since(&before);
    services.stop().await?;
    Ok((sent, used))
}
