//! Callbacks accepted per second: only the ingress, with the worker stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use crate::cpu::Usage;
use crate::database;
use crate::figures::rate;
use crate::http::{self, Load};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// How many are under way at the same time, on both sides.
const WINDOW: u32 = 256;
const COUNTED: Duration = Duration::from_secs(15);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let count = stage.cli.callbacks();
    let signed = stage.callbacks.signed(count)?;
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("accepted {repeat}: {count} callbacks, worker stopped"));
        let (accepted, used) = accept(stage, count).await.context("accepting callbacks")?;
        progress.say(&format!("accepted {repeat}: the same bytes published bare"));
        let bare = f64::from(count) / stage.broker.publish_bare(&signed.bodies, WINDOW as usize).await?.as_secs_f64();
        stage.broker.empty().await?;
        progress.done(&rate("accepted", accepted, "bare publishes", bare));
        ours.push(accepted);
        limit.push(bare);
        notes.push(used);
    }
    let question = Question {
        what: "callbacks accepted".to_owned(),
        unit: "/s",
        against: format!("bare confirmed publishes of the same bytes, one channel, window {WINDOW}"),
        target: Target::AtLeast(0.5),
    };
    Ok(question.answer(&ours, &limit, notes))
}

async fn accept(stage: &Stage<'_>, count: u32) -> Result<(f64, String)> {
    let signed = stage.callbacks.signed(count)?;
    database::refill(&stage.db, 0).await?;
    let services = stage.start(&["payment-api"]).await?;
    let load = Load { to: stage.api, connections: WINDOW, pace: None, from: None };
    let before = Usage::now(&services.pids());
    let sent = http::send(load, &signed.requests).await?;
    let used = Usage::now(&services.pids()).since(&before);
    let stored = every_one_is_stored(stage, count).await?;
    services.stop().await?;
    stage.broker.empty().await?;
    let rate = f64::from(count) / sent.elapsed.as_secs_f64();
    let percentile = |percent| crate::figures::short(sent.percentile(percent));
    let detour =
        if stored > 0 { format!("{stored} kept in the database instead of the broker; ") } else { String::new() };
    Ok((rate, format!("{detour}answered in p50 {} ms, p99 {} ms; {used}", percentile(50.0), percentile(99.0))))
}

/// A success answer promises that the callback is in the queue or, if the broker was too slow, in the database.
/// Returns how many are in the database. The broker's count follows its queue with a little delay.
pub(super) async fn every_one_is_stored(stage: &Stage<'_>, count: u32) -> Result<u32> {
    let since = Instant::now();
    loop {
        let (queued, stored) = (stage.broker.callbacks_queued().await?, database::callbacks_stored(&stage.db).await?);
        if queued + stored == count {
            return Ok(stored);
        }
        ensure!(since.elapsed() < COUNTED, "of {count} accepted callbacks {queued} are queued and {stored} stored");
        sleep(Duration::from_millis(200)).await;
    }
}
