//! Callbacks settled per second: from the first request until every order is paid in the database.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::cpu::Usage;
use crate::database::{self, check_settled, until_paid, until_published};
use crate::figures::rate;
use crate::http::{self, Load};
use crate::limits::Pgbench;
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::{QUIET, Stage};

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let pgbench = Pgbench::find(stage.cli.clients)?;
    // Every client of pgbench gets the same share.
    let orders = stage.cli.callbacks() / stage.cli.clients * stage.cli.clients;
    let (mut ours, mut limit, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        progress.say(&format!("settled {repeat}: {orders} callbacks through ingress, broker and worker"));
        database::refill(&stage.db, orders).await?;
        let (settled, used) = settle(stage, orders, 1).await.context("settling callbacks")?;
        progress.say(&format!("settled {repeat}: the same rows by pgbench"));
        database::refill(&stage.db, orders).await?;
        let bounded = pgbench.settle(stage.database_url(), &stage.dir, orders).await?;
        check_settled(&stage.db, orders).await.context("pgbench left something undone")?;
        progress.done(&rate("settled", settled, "pgbench", bounded));
        ours.push(settled);
        limit.push(bounded);
        notes.push(used);
    }
    notes.push("relay and event publishing included; generator on the same processors".to_owned());
    let question = Question {
        what: "callbacks settled".to_owned(),
        unit: "/s",
        against: format!("one transaction each, pgbench with {} clients, prepared", stage.cli.clients),
        target: Target::AtLeast(1.5),
    };
    Ok(question.answer(&ours, &limit, notes))
}

/// One repeat with this many workers, after the orders were inserted: returns the rate, and which processes used
/// the processors.
pub(super) async fn settle(stage: &Stage<'_>, orders: u32, workers: usize) -> Result<(f64, String)> {
    let signed = stage.callbacks.signed(orders)?;
    let services = stage.start(&[&["payment-api", "relay"], &vec!["callback-worker"; workers][..]].concat()).await?;
    let load = Load { to: stage.api, connections: stage.cli.connections, pace: None, from: None };
    let before = Usage::now(&services.pids());
    let began = Instant::now();
    let sent = http::send(load, &signed.requests).await?;
    until_paid(&stage.db, QUIET).await?;
    let took = began.elapsed();
    let used = Usage::now(&services.pids()).since(&before);
    until_published(&stage.db, QUIET).await?;
    let published = began.elapsed();
    check_settled(&stage.db, orders).await?;
    services.stop().await?;
    stage.broker.empty().await?;
    let note = format!(
        "all accepted after {:.1} s, all settled after {:.1} s, all events published after {:.1} s; {used}",
        sent.elapsed.as_secs_f64(),
        took.as_secs_f64(),
        published.as_secs_f64()
    );
    Ok((f64::from(orders) / took.as_secs_f64(), note))
}
