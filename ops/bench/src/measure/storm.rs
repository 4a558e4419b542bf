//! A storm: every callback arrives twice, as fast as answers arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::way::{STILL, Way};
use crate::database::{self, check_settled, until_paid, until_published};
use crate::http::{self, Load};
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::report::Scenario;
use crate::stage::{QUIET, Stage};
use crate::timeline::watched;

const CONNECTIONS: u32 = 128;
/// The second delivery comes this many requests after the first.
const LAG: u32 = 500;
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<(Scenario, Vec<Plot>)> {
    let count = stage.cli.callbacks();
    let mut scenario = Scenario::new(&format!("a storm of {count} callbacks, each twice"));
    let mut plots = Vec::new();
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("storm {repeat}: {count} callbacks, each twice"));
        plots = once(stage, count, &mut scenario).await?;
        progress.done(&format!("storm: {}", scenario.summary()));
    }
    Ok((scenario, plots))
}

async fn once(stage: &Stage<'_>, count: u32, scenario: &mut Scenario) -> Result<Vec<Plot>> {
    database::refill(&stage.db, count).await?;
    let signed = stage.callbacks.signed(count)?;
    let orders = twice(count);
    let requests = Arc::new(orders.iter().map(|order| signed.requests[*order as usize - 1].clone()).collect());
    let services = stage.start(&["payment-api", "callback-worker", "relay"]).await?;
    let arrivals = stage.broker.arrivals(count as usize, STILL).await?;
    let depth = async || Ok(f64::from(stage.broker.callbacks_queued().await?));
    let work = async {
        let began = Instant::now();
        let sent =
            http::send(Load { to: stage.api, connections: CONNECTIONS, pace: None, from: None }, &requests).await?;
        until_paid(&stage.db, QUIET).await?;
        let settled = began.elapsed();
        Ok((sent, settled, arrivals.await??))
    };
    let ((sent, settled, arrived), depth) = watched(LOOK, depth, work).await?;
    stage.broker.until_callbacks_consumed(QUIET).await?;
    until_published(&stage.db, QUIET).await?;
    services.stop().await?;
    check_settled(&stage.db, count).await?;
    stage.broker.empty().await?;
    let way = Way::of(&sent, &orders, &arrived)?;
    scenario.figure("deliveries answered", "/s", sent.rate());
    scenario.figure("answer p99", "ms", sent.percentile(99.0));
    scenario.figure("orders settled", "/s", f64::from(count) / settled.as_secs_f64());
    scenario.figure("events published", "/s", way.rate());
    scenario.figure("callback to event p50", "ms", way.percentile(50.0));
    scenario.figure("callback to event p99", "ms", way.percentile(99.0));
    let mut plots = way.plots(&sent, "storm", &scenario.what).to_vec();
    let queued = vec![Line { label: "payment.callbacks".to_owned(), points: depth }];
    plots.push(Plot::over_time("storm-queue", &scenario.what, "messages ready", queued));
    Ok(plots)
}

/// The orders 1 to `count`, each of them a second time after `LAG` more requests.
fn twice(count: u32) -> Vec<u32> {
    let both = |n: u32| [(n < count).then(|| n + 1), (n >= LAG).then(|| n - LAG + 1)];
    (0..count + LAG).flat_map(both).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_comes_twice() {
        let mut orders = twice(1000);
        assert_eq!(orders[..3], [1, 2, 3]);
        orders.sort_unstable();
        assert_eq!(orders, (1..=1000).flat_map(|order| [order, order]).collect::<Vec<_>>());
    }
}
