//! From callback received to event published, at 100 callbacks per second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::QUIET;
use crate::broker::Arrival;
use crate::database::{self, check_settled, order_no, until_published};
use crate::figures::{percentile, short, sorted};
use crate::http::{self, Load, Sent};
use crate::limits;
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

const PER_SECOND: u32 = 100;
/// So many that a slow answer never delays the next request.
const CONNECTIONS: u32 = 32;

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("latency {repeat}: {} s at {PER_SECOND}/s", stage.cli.seconds()));
        let way = sorted(&callbacks(stage).await.context("measuring latency")?);
        progress.say(&format!("latency {repeat}: one fsync and two confirmed publishes"));
        let body = stage.callbacks.signed(PER_SECOND * stage.cli.seconds())?;
        let times = 5 * PER_SECOND;
        let bare = limits::fsync_and_two_publishes(&stage.broker, &stage.dir, &body.bodies[0], times).await?;
        let bare = sorted(&bare);
        stage.broker.empty().await?;
        let both = |figures: &[f64]| {
            format!("p50 {} ms, p99 {} ms", short(percentile(figures, 50.0)), short(percentile(figures, 99.0)))
        };
        let note = format!("callback to event {}; fsync and two publishes {}", both(&way), both(&bare));
        progress.done(&note);
        ours.push(percentile(&way, 99.0));
        limit.push(percentile(&bare, 99.0));
        notes.push(note);
    }
    let question = Question {
        what: format!("p99 from callback received to event published, {PER_SECOND}/s"),
        unit: "ms",
        against: "one fsync and two confirmed publishes, p99".to_owned(),
        target: Target::AtMost(10.0),
    };
    Ok(question.answer(&ours, &limit, notes))
}

/// One repeat: how long each callback's way took, in milliseconds.
async fn callbacks(stage: &Stage<'_>) -> Result<Vec<f64>> {
    let count = PER_SECOND * stage.cli.seconds();
    database::refill(&stage.db, count).await?;
    let signed = stage.callbacks.signed(count)?;
    let services = stage.start(&["payment-api", "callback-worker", "relay"]).await?;
    let arrivals = stage.broker.arrivals(count as usize, Duration::from_secs(30)).await?;
    let pace = Some(Duration::from_secs(1) / PER_SECOND);
    let sent = http::send(Load { to: stage.api, connections: CONNECTIONS, pace }, &signed.requests).await?;
    let arrived = arrivals.await??;
    until_published(&stage.db, QUIET).await?;
    check_settled(&stage.db, count).await?;
    services.stop().await?;
    stage.broker.empty().await?;
    pair(&sent, &arrived)
}

/// The first arrival of each order's event, from the moment in which its callback was sent.
fn pair(sent: &Sent, arrived: &[Arrival]) -> Result<Vec<f64>> {
    let mut first: HashMap<String, Instant> = HashMap::new();
    for Arrival { at, data } in arrived {
        let data: Value = serde_json::from_slice(data).context("an event that is not JSON")?;
        let order_no = data["order_no"].as_str().context("an event without order_no")?;
        first.entry(order_no.to_owned()).or_insert(*at);
    }
    let way = |(n, at): (usize, &Instant)| {
        let order_no = order_no(u32::try_from(n + 1)?);
        let arrived = first.get(&order_no).with_context(|| format!("no event for {order_no}"))?;
        Ok(arrived.saturating_duration_since(*at).as_secs_f64() * 1000.0)
    };
    sent.at.iter().enumerate().map(way).collect()
}
