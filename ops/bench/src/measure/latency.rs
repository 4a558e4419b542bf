//! From callback received to event published, at 100 callbacks per second and at 70 % of the maximum rate.

use std::time::Duration;

use anyhow::{Context, Result};

use super::settled;
use super::way::{STILL, Way};
use crate::database::{self, check_settled, until_published};
use crate::figures::{Spread, percentile, short, sorted};
use crate::http::{self, Load, Sent};
use crate::limits;
use crate::plot::Plot;
use crate::progress::Progress;
use crate::report::{Question, Row, Scenario, Target};
use crate::stage::{QUIET, Stage};

const PER_SECOND: u32 = 100;
/// Enough connections that a slow answer never delays the next request.
const CONNECTIONS: u32 = 32;
/// The share of the callbacks that are settled per second when all arrive at once.
const SHARE: f64 = 0.7;

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("latency {repeat}: {} s at {PER_SECOND}/s", stage.cli.seconds()));
        let (_, way) = callbacks(stage, PER_SECOND, CONNECTIONS).await?;
        progress.say(&format!("latency {repeat}: one fsync and two confirmed publishes"));
        let body = stage.callbacks.signed(PER_SECOND * stage.cli.seconds())?;
        let times = 5 * PER_SECOND;
        let bare = limits::fsync_and_two_publishes(&stage.broker, &stage.dir, &body.bodies[0], times).await?;
        let bare = sorted(&bare);
        stage.broker.empty().await?;
        let both = |p50, p99| format!("p50 {} ms, p99 {} ms", short(p50), short(p99));
        let note = format!(
            "callback to event {}; fsync and two publishes {}",
            both(way.percentile(50.0), way.percentile(99.0)),
            both(percentile(&bare, 50.0), percentile(&bare, 99.0))
        );
        progress.done(&note);
        ours.push(way.percentile(99.0));
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

/// At 70 % of the maximum rate: the result of `settled`, or of one repeat of it now.
pub(super) async fn busy(
    stage: &Stage<'_>,
    most: Option<&Spread>,
    progress: &Progress,
) -> Result<(Scenario, Vec<Plot>)> {
    let most = match most {
        Some(most) => most.median,
        None => {
            progress.say("latency: the most callbacks a second");
            database::refill(&stage.db, stage.cli.callbacks()).await?;
            settled::settle(stage, stage.cli.callbacks(), 1).await?.0
        }
    };
    let pace = (SHARE * most) as u32;
    let mut scenario = Scenario::new(&format!("callbacks at {pace}/s, 70 % of {}/s", short(most)));
    let mut plots = Vec::new();
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("latency {repeat}: {} s at {pace}/s", stage.cli.seconds()));
        let (sent, way) = callbacks(stage, pace, stage.cli.connections).await?;
        scenario.figure("answer p50", "ms", sent.percentile(50.0));
        scenario.figure("answer p99", "ms", sent.percentile(99.0));
        scenario.figure("callback to event p50", "ms", way.percentile(50.0));
        scenario.figure("callback to event p99", "ms", way.percentile(99.0));
        progress.done(&format!("{}: {}", scenario.what, scenario.summary()));
        plots = way.plots(&sent, "busy", &scenario.what).to_vec();
    }
    Ok((scenario, plots))
}

/// One repeat: this many callbacks per second, one for each order.
async fn callbacks(stage: &Stage<'_>, per_second: u32, connections: u32) -> Result<(Sent, Way)> {
    let count = per_second * stage.cli.seconds();
    database::refill(&stage.db, count).await?;
    let signed = stage.callbacks.signed(count)?;
    let services = stage.start(&["payment-api", "callback-worker", "relay"]).await?;
    let arrivals = stage.broker.arrivals(count as usize, STILL).await?;
    let pace = Some(Duration::from_secs(1) / per_second);
    let sent = http::send(Load { to: stage.api, connections, pace, from: None }, &signed.requests).await?;
    let arrived = arrivals.await?.context("measuring latency")?;
    until_published(&stage.db, QUIET).await?;
    check_settled(&stage.db, count).await?;
    services.stop().await?;
    stage.broker.empty().await?;
    let way = Way::of(&sent, &(1..=count).collect::<Vec<_>>(), &arrived)?;
    Ok((sent, way))
}
