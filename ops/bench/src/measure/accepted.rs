//! Callbacks accepted per second: the ingress alone, the worker stopped.

use anyhow::{Context, Result, ensure};

use super::rate;
use crate::cpu::Usage;
use crate::http::{self, Load};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

const WINDOW: usize = 256;

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let count = stage.cli.callbacks();
    let signed = stage.callbacks.signed(count)?;
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("accepted {repeat}: {count} callbacks, worker stopped"));
        let (accepted, used) = accept(stage, count).await.context("accepting callbacks")?;
        progress.say(&format!("accepted {repeat}: the same bytes published bare"));
        let bare = f64::from(count) / stage.broker.publish_bare(&signed.bodies, WINDOW).await?.as_secs_f64();
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
    let services = stage.start(&["payment-api"]).await?;
    let load = Load { to: stage.api, connections: stage.cli.connections, pace: None };
    let before = Usage::now(&services.pids());
    let sent = http::send(load, &signed.requests).await?;
    let used = Usage::now(&services.pids()).since(&before);
    let queued = stage.broker.callbacks_queued().await?;
    ensure!(queued == count, "{queued} of {count} accepted callbacks are in the queue");
    services.stop().await?;
    stage.broker.empty().await?;
    let rate = f64::from(count) / sent.elapsed.as_secs_f64();
    let answered = crate::figures::sorted(&sent.answered_ms);
    let percentile = |percent| crate::figures::short(crate::figures::percentile(&answered, percent));
    Ok((rate, format!("answered in p50 {} ms, p99 {} ms; {used}", percentile(50.0), percentile(99.0))))
}
