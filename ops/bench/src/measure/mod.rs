//! The measurements, one file each.

mod accepted;
mod flood;
mod growth;
mod latency;
mod memory;
mod orders;
mod settled;

use std::time::Duration;

use anyhow::Result;

use crate::cli::{Cli, What};
use crate::progress::Progress;
use crate::report::Report;
use crate::stage::Stage;
use crate::{database, figures};

/// How long everything in hand may take to come to an end.
pub(crate) const QUIET: Duration = Duration::from_secs(180);

/// How many steps the progress bar has.
pub(crate) fn steps(cli: &Cli) -> u64 {
    let repeated = [What::Settled, What::Accepted, What::Orders, What::Latency, What::Flood];
    let repeated = repeated.iter().filter(|what| cli.wants(**what)).count() as u64;
    let growth = if cli.growth.is_some() { 2 } else { 0 };
    (repeated + growth) * u64::from(cli.repeats()) + u64::from(cli.wants(What::Memory)) + u64::from(cli.backlog)
}

/// Everything that was asked for.
pub(crate) async fn all(stage: &Stage<'_>, progress: &Progress) -> Result<Report> {
    let mut report = Report { conditions: conditions(stage).await?, ..Report::default() };
    let cli = stage.cli;
    if cli.wants(What::Settled) {
        report.rows.push(settled::measure(stage, progress).await?);
    }
    if cli.wants(What::Accepted) {
        report.rows.push(accepted::measure(stage, progress).await?);
    }
    if cli.wants(What::Orders) {
        report.rows.push(orders::measure(stage, progress).await?);
    }
    if cli.wants(What::Latency) {
        report.rows.push(latency::measure(stage, progress).await?);
    }
    if cli.wants(What::Flood) {
        report.rows.push(flood::measure(stage, progress).await?);
    }
    if cli.wants(What::Memory) {
        report.rows.extend(memory::idle(stage, progress).await?);
    }
    if cli.backlog {
        report.rows.extend(memory::backlog(stage, progress).await?);
    }
    if let Some(orders) = cli.growth {
        report.rows.push(growth::measure(stage, orders, progress).await?);
    }
    Ok(report)
}

/// What the figures depend on.
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
        format!(
            "{} callbacks, {} orders, {} s at 100/s, {} repeats; the table shows medians",
            stage.cli.callbacks(),
            stage.cli.orders(),
            stage.cli.seconds(),
            stage.cli.repeats()
        ),
    ])
}

/// A rate for the progress bar.
fn rate(what: &str, measured: f64, against: &str, limit: f64) -> String {
    let (a, b) = (figures::short(measured), figures::short(limit));
    format!("{what} {a}/s, {against} {b}/s, ratio {}", figures::short(measured / limit))
}
