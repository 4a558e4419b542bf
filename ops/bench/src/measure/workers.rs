//! One to four workers of each kind, each with a backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{mix, settled};
use crate::database::{self, check_events, check_refunded, until_paid, until_published, until_refunded};
use crate::http::{self, Load};
use crate::plot::{Axis, Line, Plot};
use crate::progress::Progress;
use crate::report::Scenario;
use crate::stage::{QUIET, Stage};
use crate::timeline::watched;

pub(super) const MOST: usize = 4;
const LOOK: Duration = Duration::from_millis(250);

/// The size of each backlog: calls to a gateway take their time, so there are fewer of them.
struct Backlog {
    callbacks: u32,
    checks: u32,
    refunds: u32,
}

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<(Scenario, Vec<Plot>)> {
    let callbacks = stage.cli.callbacks();
    let backlog = Backlog { callbacks, checks: callbacks / 10, refunds: callbacks / 20 };
    let mut scenario = Scenario::new("a backlog of each kind");
    scenario.note(format!(
        "{} callbacks, {} checks of orders that were paid unheard, {} refunds; a gateway answers after {} ms",
        backlog.callbacks,
        backlog.checks,
        backlog.refunds,
        mix::ANSWER_MS
    ));
    let mut rates = Vec::new();
    let mut queues = Vec::new();
    for repeat in 1..=stage.cli.repeats() {
        rates = ["callbacks settled", "checks done", "refunds done"].map(|label| (label, Vec::new())).to_vec();
        queues.clear();
        for workers in 1..=MOST {
            progress.say(&format!("workers {repeat}: {workers} of each kind"));
            database::refill(&stage.db, backlog.callbacks).await?;
            let (settled, used) = settled::settle(stage, backlog.callbacks, workers).await?;
            scenario.note(format!("{workers} callback-workers: {used}"));
            let checked = check(stage, backlog.checks, workers).await.context("checking orders")?;
            let (refunded, queue) = refund(stage, backlog.refunds, workers).await.context("refunding orders")?;
            queues.push(Line { label: format!("{workers} refund-workers"), points: queue });
            for ((label, points), rate) in rates.iter_mut().zip([settled, checked, refunded]) {
                scenario.figure(&format!("{label}, workers: {workers}"), "/s", rate);
                points.push((workers as f64, rate));
            }
            progress.done(&format!(
                "{workers} workers: {settled:.0} callbacks/s, {checked:.0} checks/s, {refunded:.0} refunds/s"
            ));
        }
    }
    let lines = rates.into_iter().map(|(label, points)| Line { label: label.to_owned(), points });
    let over = |name: &str, lines| Plot {
        name: name.to_owned(),
        title: "What one to four workers get done".to_owned(),
        x: Axis::Processes,
        y: "per second",
        lines,
    };
    // There are many more callbacks: in the same plot, the other lines would be flat at the bottom.
    let (callbacks, calls): (Vec<Line>, Vec<Line>) = lines.partition(|line| line.label.starts_with("callbacks"));
    let queues = Plot::over_time("refund-backlog", "A backlog of refunds", "refunds that wait", queues);
    Ok((scenario, vec![over("workers-callbacks", callbacks), over("workers-calls", calls), queues]))
}

/// Checks per second: the orders were paid, but no callback reported it.
async fn check(stage: &Stage<'_>, count: u32, workers: usize) -> Result<f64> {
    stage.reset_gateways(mix::ANSWER_MS).await?;
    database::refill(&stage.db, count).await?;
    stage.book(1, count)?;
    database::check_now(&stage.db).await?;
    let began = Instant::now();
    let services = stage.start(&[&["relay"], &["check-worker"; MOST][..workers]].concat()).await?;
    until_paid(&stage.db, QUIET).await?;
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    until_published(&stage.db, QUIET).await?;
    services.stop().await?;
    check_events(&stage.db, "order.paid", count).await?;
    stage.broker.empty().await?;
    Ok(rate)
}

/// Refunds per second, and how many waited at each time. The refunds are requested while no refund worker runs.
async fn refund(stage: &Stage<'_>, count: u32, workers: usize) -> Result<(f64, Vec<(f64, f64)>)> {
    stage.reset_gateways(mix::ANSWER_MS).await?;
    database::refill(&stage.db, count).await?;
    database::pay(&stage.db, 1, count).await?;
    stage.book(1, count)?;
    let ingress = stage.start(&["payment-api", "callback-worker", "relay"]).await?;
    let requests = Arc::new((1..=count).map(|order| stage.frontend.refund(order)).collect());
    http::send(Load { to: stage.api, connections: stage.cli.connections, pace: None, from: None }, &requests).await?;
    let began = Instant::now();
    let services = stage.start(&["refund-worker"; MOST][..workers]).await?;
    let waiting = async || database::jobs(&stage.db, "refund").await;
    let ((), queue) = watched(LOOK, waiting, until_refunded(&stage.db, QUIET)).await?;
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    until_published(&stage.db, QUIET).await?;
    services.stop().await?;
    ingress.stop().await?;
    check_refunded(&stage.db, count).await?;
    check_events(&stage.db, "order.refunded", count).await?;
    stage.broker.empty().await?;
    Ok((rate, queue))
}
