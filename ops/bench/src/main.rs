//! Load and latency beside their limits, measured in one run on one machine: the table of the design's section 13.
//!
//! It starts the programs itself, against servers that are given to it, in a database of its own. Every figure is the
//! median of several repeats, each beside a repeat of what bounds it, so that a slow moment meets both. The load comes
//! from the same machine; what it takes of the processors is told.

mod broker;
mod callbacks;
mod cli;
mod cpu;
mod database;
mod figures;
mod http;
mod limits;
mod measure;
mod progress;
mod report;
mod service;
mod stage;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::Cli;
use progress::Progress;
use report::Report;
use stage::Stage;

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met. A missed target is a result, not a failure: it has an exit code of its own.
async fn run(cli: &Cli) -> Result<bool> {
    let progress = Progress::new(measure::steps(cli));
    let stage = Stage::set_up(cli, &progress).await?;
    let measured = tokio::select! {
        measured = measure::all(&stage, &progress) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    progress.finish();
    let left = stage.tear_down().await;
    let report: Report = measured?;
    left.context("cleaning up")?;
    println!("{report}");
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report.all_met())
}
