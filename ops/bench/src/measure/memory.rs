//! Memory of each process, idle and with a backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::database::{self, check_settled, until_published};
use crate::figures::short;
use crate::http::{self, Load};
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::report::{Question, Row, Scenario, Target};
use crate::service::{Memory, Service};
use crate::stage::{PROGRAMS, QUIET, Stage};
use crate::timeline::watched;

const IDLE_MIB: f64 = 32.0;
const BACKLOG_MIB: f64 = 96.0;
const BACKLOG: u32 = 100_000;
/// Each callback is queued this many times: signing all of them would take longer than the rest.
const REPEATS: u32 = 5;
/// After this time the start is over, and memory that it needed may have been freed.
const SETTLE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(250);

/// All programs without work.
pub(super) async fn idle(stage: &Stage<'_>, progress: &Progress) -> Result<Vec<Row>> {
    progress.say("memory: idle");
    database::refill(&stage.db, 0).await?;
    let services = stage.start(&PROGRAMS).await?;
    sleep(SETTLE).await;
    let rows: Vec<Row> = services.iter().map(|service| row(service, "idle", IDLE_MIB)).collect::<Result<_>>()?;
    services.stop().await?;
    progress.done(&format!("memory, idle: {}", summary(&rows)));
    Ok(rows)
}

/// A hundred thousand callbacks are queued while the worker is stopped, then consumed. Reports the rate, and the
/// maximum memory of each process.
pub(super) async fn backlog(stage: &Stage<'_>, progress: &Progress) -> Result<(Vec<Row>, Scenario, Plot)> {
    progress.say("memory: signing callbacks for a backlog");
    let orders = BACKLOG / REPEATS;
    database::refill(&stage.db, orders).await?;
    let signed = stage.callbacks.signed(orders)?;
    let ingress = stage.start(&["payment-api", "relay"]).await?;
    progress.say(&format!("memory: queueing {BACKLOG} callbacks"));
    let requests = Arc::new(signed.requests.iter().cycle().take(BACKLOG as usize).cloned().collect::<Vec<_>>());
    http::send(Load { to: stage.api, connections: stage.cli.connections, pace: None, from: None }, &requests).await?;
    let held = |service: &Service| row(service, "100 000 queued", BACKLOG_MIB);
    progress.say("memory: working the backlog off");
    let began = Instant::now();
    let worker = stage.start(&["callback-worker"]).await?;
    let depth = async || Ok(f64::from(stage.broker.callbacks_queued().await?));
    let ((), queued) = watched(LOOK, depth, stage.broker.until_callbacks_consumed(QUIET)).await?;
    let consumed = began.elapsed();
    database::until_paid(&stage.db, QUIET).await?;
    until_published(&stage.db, QUIET).await?;
    let rows: Vec<Row> = ingress.iter().chain(worker.iter()).map(held).collect::<Result<_>>()?;
    ingress.stop().await?;
    worker.stop().await?;
    check_settled(&stage.db, orders).await.context("after the backlog")?;
    progress.done(&format!("memory, 100 000 queued: {}", summary(&rows)));
    let mut scenario = Scenario::new("100 000 callbacks queued, then one worker started");
    scenario.figure("consumed", "/s", f64::from(BACKLOG) / consumed.as_secs_f64());
    scenario.note(format!("{orders} orders, each callback {REPEATS} times"));
    let lines = vec![Line { label: "payment.callbacks".to_owned(), points: queued }];
    let plot = Plot::over_time("backlog-queue", &scenario.what, "messages ready", lines);
    Ok((rows, scenario, plot))
}

fn row(service: &Service, when: &str, most: f64) -> Result<Row> {
    let Memory { resident, proportional, peak } = service.memory()?;
    let note =
        format!("resident {} MiB, proportional {} MiB, peak {} MiB", short(resident), short(proportional), short(peak));
    let question = Question {
        what: format!("memory of {}, {when}", service.name),
        unit: "MiB",
        against: "a bound".to_owned(),
        target: Target::AtMost(1.0),
    };
    Ok(question.answer(&[if most == IDLE_MIB { resident } else { peak }], &[most], vec![note]))
}

fn summary(rows: &[Row]) -> String {
    let one = |row: &Row| format!("{} {} MiB", row.what.replace("memory of ", ""), short(row.measured.median));
    rows.iter().map(one).collect::<Vec<_>>().join(", ")
}
