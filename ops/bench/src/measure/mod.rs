//! The measurements, one file each.

mod accepted;
mod admin;
mod attackers;
mod flood;
mod growth;
mod latency;
mod memory;
mod mix;
mod orders;
mod polling;
mod settled;
mod soak;
mod storm;
mod way;
mod workers;

use anyhow::Result;
use clap::ValueEnum;

use crate::attacks::Attack;
use crate::cli::{Cli, What};
use crate::database;
use crate::progress::Progress;
use crate::report::Report;
use crate::stage::{self, Stage};

/// The number of steps of the progress bar.
pub(crate) fn steps(cli: &Cli) -> u64 {
    let repeats = u64::from(cli.repeats());
    let each = |what: What| match what {
        What::Memory => 1,
        What::Latency => 2 * repeats,
        What::Attackers => Attack::ALL.len() as u64 * repeats,
        What::Workers => workers::MOST as u64 * repeats,
        _ => repeats,
    };
    let wanted = What::value_variants().iter().filter(|what| cli.wants(**what)).map(|what| each(*what));
    let growth = cli.growth.map_or(0, |orders| growth::sizes(orders).len() as u64 * repeats);
    let admin = cli.admin.map_or(0, |_| 2 * repeats);
    wanted.sum::<u64>() + growth + admin + u64::from(cli.backlog) + u64::from(cli.soak.is_some())
}

/// Runs every requested measurement, and adds each result to the report at once.
pub(crate) async fn all(stage: &Stage<'_>, progress: &Progress, report: &mut Report) -> Result<()> {
    report.conditions = conditions(stage).await?;
    limited(stage, progress, report).await?;
    scenarios(stage, progress, report).await?;
    long(stage, progress, report).await
}

/// The measurements with a limit beside them.
async fn limited(stage: &Stage<'_>, progress: &Progress, report: &mut Report) -> Result<()> {
    let wants = |what| stage.cli.wants(what);
    let mut most = None;
    if wants(What::Settled) {
        let row = settled::measure(stage, progress).await?;
        most = Some(row.measured.clone());
        report.rows.push(row);
    }
    if wants(What::Accepted) {
        report.rows.push(accepted::measure(stage, progress).await?);
    }
    if wants(What::Orders) {
        report.rows.push(orders::measure(stage, progress).await?);
    }
    if wants(What::Latency) {
        report.rows.push(latency::measure(stage, progress).await?);
        let (scenario, plots) = latency::busy(stage, most.as_ref(), progress).await?;
        report.scenarios.push(scenario);
        report.plots.extend(plots);
    }
    if wants(What::Flood) {
        report.rows.push(flood::measure(stage, progress).await?);
    }
    if wants(What::Attackers) {
        report.rows.extend(attackers::measure(stage, progress).await?);
    }
    if wants(What::Memory) {
        report.rows.extend(memory::idle(stage, progress).await?);
    }
    Ok(())
}

/// The measurements without a limit.
async fn scenarios(stage: &Stage<'_>, progress: &Progress, report: &mut Report) -> Result<()> {
    let wants = |what| stage.cli.wants(what);
    if wants(What::Storm) {
        let (scenario, plots) = storm::measure(stage, progress).await?;
        report.scenarios.push(scenario);
        report.plots.extend(plots);
    }
    if wants(What::Mix) {
        let (scenario, plot) = mix::measure(stage, progress).await?;
        report.scenarios.push(scenario);
        report.plots.push(plot);
    }
    if wants(What::Gateways) {
        report.scenarios.push(orders::by_gateway(stage, progress).await?);
    }
    if wants(What::Polling) {
        report.scenarios.push(polling::measure(stage, progress).await?);
    }
    if wants(What::Workers) {
        let (scenario, plots) = workers::measure(stage, progress).await?;
        report.scenarios.push(scenario);
        report.plots.extend(plots);
    }
    Ok(())
}

/// The measurements that take so long that they only run on request.
async fn long(stage: &Stage<'_>, progress: &Progress, report: &mut Report) -> Result<()> {
    if stage.cli.backlog {
        let (rows, scenario, plot) = memory::backlog(stage, progress).await?;
        report.rows.extend(rows);
        report.scenarios.push(scenario);
        report.plots.push(plot);
    }
    if let Some(orders) = stage.cli.growth {
        let (row, plot) = growth::measure(stage, orders, progress).await?;
        report.rows.push(row);
        report.plots.push(plot);
    }
    if let Some(orders) = stage.cli.admin {
        report.rows.extend(admin::measure(stage, orders, progress).await?);
    }
    if let Some(minutes) = stage.cli.soak {
        let (rows, plots) = soak::measure(stage, minutes, progress).await?;
        report.rows.extend(rows);
        report.plots.extend(plots);
    }
    Ok(())
}

/// The conditions on which the figures depend.
async fn conditions(stage: &Stage<'_>) -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    let postgres = database::settings(&stage.db).await?;
    Ok(vec![
        format!(
            "{cores} processors for everything ({}), load before the run {load}",
            processor.trim_start_matches([' ', '\t', ':'])
        ),
        format!("PostgreSQL {postgres}; RabbitMQ and the load generator on the same machine"),
        format!("the programs log at `{}` (RUST_LOG)", stage::log_level()),
        format!(
            "{} callbacks, {} orders, {} s at 100/s, {} repeats; the table shows medians",
            stage.cli.callbacks(),
            stage.cli.orders(),
            stage.cli.seconds(),
            stage.cli.repeats()
        ),
    ])
}
