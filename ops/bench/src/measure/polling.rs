//! Many pages that poll their orders.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cpu::Usage;
use crate::database;
use crate::http::{self, Load};
use crate::progress::Progress;
use crate::report::Scenario;
use crate::stage::Stage;

/// The number of orders that are read again and again.
const WATCHED: u32 = 500;
/// The number of reads in a repeat, as a multiple of the callbacks.
const LOOKS: u32 = 2;

/// Which cached copies can serve a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    /// Each read is of another order, so no copy can serve it.
    None,
    Memory,
    MemoryAndRedis,
}

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Scenario> {
    let looks = LOOKS * stage.cli.callbacks();
    let mut scenario = Scenario::new(&format!("{looks} looks at orders"));
    for repeat in 1..=stage.cli.repeats() {
        for copies in [Copies::None, Copies::Memory, Copies::MemoryAndRedis] {
            let name = match copies {
                Copies::None => format!("each at another of {looks} orders"),
                Copies::Memory => format!("at {WATCHED} orders, copies in memory"),
                Copies::MemoryAndRedis => format!("at {WATCHED} orders, copies in memory and Redis"),
            };
            progress.say(&format!("polling {repeat}: {looks} looks, {name}"));
            look(stage, looks, copies, &name, &mut scenario).await.context("looking at orders")?;
        }
        progress.done(&format!("polling: {}", scenario.summary()));
    }
    Ok(scenario)
}

async fn look(stage: &Stage<'_>, looks: u32, copies: Copies, name: &str, scenario: &mut Scenario) -> Result<()> {
    let orders = if copies == Copies::None { looks } else { WATCHED };
    database::refill(&stage.db, orders).await?;
    let requests = Arc::new((0..looks).map(|n| stage.frontend.look(1 + n % orders)).collect());
    let redis = [("REDIS_URL", stage.cli.redis_url.as_str())];
    let with = if copies == Copies::MemoryAndRedis { &redis[..] } else { &[] };
    let services = stage.start_with(&["payment-api"], with).await?;
    let before = Usage::now(&services.pids());
    let sent =
        http::send(Load { to: stage.api, connections: stage.cli.connections, pace: None, from: None }, &requests)
            .await?;
    let used = Usage::now(&services.pids()).since(&before);
    services.stop().await?;
    scenario.figure(name, "/s", sent.rate());
    scenario.figure(&format!("{name}, p99"), "ms", sent.percentile(99.0));
    scenario.note(format!("{name}: {used}"));
    Ok(())
}
