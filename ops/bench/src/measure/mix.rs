//! A steady mix of all requests that a shop makes during a day.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::way::{STILL, Way};
use crate::database::{self, check_events, check_refunded, until_published, until_refunded};
use crate::http::{self, Load, Requests, Sent};
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::report::Scenario;
use crate::stage::{QUIET, Services, Stage};
use crate::timeline::Timeline;

/// Per second.
const CALLBACKS: u32 = 50;
const LOOKS: u32 = 200;
const ORDERS: u32 = 20;
const REFUNDS: u32 = 5;
/// How long a gateway takes for an answer, in milliseconds.
pub(super) const ANSWER_MS: u64 = 50;
/// For each kind of request, so that no kind delays another.
const CONNECTIONS: u32 = 16;
const STEP: Duration = Duration::from_secs(1);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<(Scenario, Plot)> {
    let seconds = stage.cli.seconds();
    let mut scenario = Scenario::new(&format!(
        "{CALLBACKS} callbacks, {LOOKS} looks, {ORDERS} orders and {REFUNDS} refunds a second, for {seconds} s"
    ));
    scenario.note(format!("a gateway answers after {ANSWER_MS} ms"));
    let mut lines = Vec::new();
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("mix {repeat}: {seconds} s"));
        place(stage, seconds).await?;
        let services = start(stage).await?;
        let round = round(stage, 1, seconds).await?;
        services.stop().await?;
        let refunds = refunds(seconds);
        check_refunded(&stage.db, refunds).await?;
        check_events(&stage.db, "order.paid", CALLBACKS * seconds).await?;
        check_events(&stage.db, "order.refunded", refunds).await?;
        stage.broker.empty().await?;
        for (name, sent) in round.kinds() {
            scenario.figure(&format!("{name}, answer p50"), "ms", sent.percentile(50.0));
            scenario.figure(&format!("{name}, answer p99"), "ms", sent.percentile(99.0));
        }
        scenario.figure("callback to event p50", "ms", round.way.percentile(50.0));
        scenario.figure("callback to event p99", "ms", round.way.percentile(99.0));
        progress.done(&format!("mix: {}", scenario.summary()));
        let line = |(name, sent): (&str, &Sent)| {
            let points = Timeline::of(sent.began, STEP, sent.answers()).percentile(99.0);
            Line { label: format!("{name}, answer p99"), points }
        };
        lines = round.kinds().into_iter().map(line).collect();
    }
    let plot = Plot::over_time("mix-latency", &scenario.what, "ms", lines);
    Ok((scenario, plot))
}

/// The result of some seconds of the mix.
pub(super) struct Round {
    callbacks: Sent,
    looks: Sent,
    orders: Sent,
    refunds: Sent,
    pub(super) way: Way,
}

impl Round {
    pub(super) fn kinds(&self) -> [(&'static str, &Sent); 4] {
        [("callbacks", &self.callbacks), ("looks", &self.looks), ("orders", &self.orders), ("refunds", &self.refunds)]
    }
}

/// How many inserted orders this many seconds need.
pub(super) fn orders(seconds: u32) -> u32 {
    (CALLBACKS + REFUNDS) * seconds
}

/// How many of them are refunded.
pub(super) fn refunds(seconds: u32) -> u32 {
    REFUNDS * seconds
}

/// Inserts the orders that this many seconds need: pending ones for callbacks, then those for refunds.
pub(super) async fn place(stage: &Stage<'_>, seconds: u32) -> Result<()> {
    stage.reset_gateways(ANSWER_MS).await?;
    database::refill(&stage.db, orders(seconds)).await
}

/// Starts every program that the mix needs.
pub(super) async fn start(stage: &Stage<'_>) -> Result<Services> {
    let redis = [("REDIS_URL", stage.cli.redis_url.as_str())];
    stage.start_with(&["payment-api", "callback-worker", "refund-worker", "relay"], &redis).await
}

/// Runs this many seconds of the mix with the inserted orders from `first` on; returns once everything is done.
pub(super) async fn round(stage: &Stage<'_>, first: u32, seconds: u32) -> Result<Round> {
    let (callbacks, refunds) = (CALLBACKS * seconds, refunds(seconds));
    let paid = first + callbacks;
    database::pay(&stage.db, paid, paid + refunds - 1).await?;
    stage.book(paid, paid + refunds - 1)?;
    let signed = stage.callbacks.fresh(first, callbacks)?;
    let looks = (0..LOOKS * seconds).map(|n| stage.frontend.look(first + n % callbacks)).collect();
    let orders = (0..ORDERS * seconds).map(|n| stage.frontend.order(n, "alipay", "page")).collect();
    let refunded = (0..refunds).map(|n| stage.frontend.refund(paid + n)).collect();
    let arrivals = stage.broker.arrivals(callbacks as usize, STILL).await?;
    let (callbacks_sent, looks, orders, refunds) = tokio::try_join!(
        send(stage, CALLBACKS, signed.requests),
        send(stage, LOOKS, Arc::new(looks)),
        send(stage, ORDERS, Arc::new(orders)),
        send(stage, REFUNDS, Arc::new(refunded)),
    )
    .context("sending the mix")?;
    let arrived = arrivals.await??;
    until_refunded(&stage.db, QUIET).await?;
    until_published(&stage.db, QUIET).await?;
    let way = Way::of(&callbacks_sent, &(first..paid).collect::<Vec<_>>(), &arrived)?;
    Ok(Round { callbacks: callbacks_sent, looks, orders, refunds, way })
}

async fn send(stage: &Stage<'_>, per_second: u32, requests: Requests) -> Result<Sent> {
    let pace = Some(Duration::from_secs(1) / per_second);
    http::send(Load { to: stage.api, connections: CONNECTIONS, pace, from: None }, &requests).await
}
