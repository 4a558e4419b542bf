//! Load and latency, compared with their limits, measured in one run on one machine: the table of the design's
//! section 13, and scenarios without a known limit.
//!
//! It starts the programs itself, with the servers that it is given and its own database. Every figure is the
//! median of several repeats. Each repeat runs beside a repeat of its limit, so that a slow moment affects both.
//! The load comes from the same machine; the report states how much of the processors it uses.

mod archive;
mod attacks;
mod broker;
mod callbacks;
mod cli;
mod cpu;
mod database;
mod figures;
mod frontend;
mod http;
mod limits;
mod measure;
mod plot;
mod progress;
mod report;
mod service;
mod stage;
mod timeline;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

use cli::Cli;
use progress::Progress;
use report::Report;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
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

/// Waits for Ctrl-C or SIGTERM: the programs that this one started must not outlive it.
async fn stop_requested() -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! { stopped = ctrl_c() => stopped, _ = term.recv() => Ok(()) }
}

/// Attackers have thousands of connections, so this allows as many open files as the system permits.
fn raise_open_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raising the number of open files")
}

/// Whether every target was met. A missed target is a result, not a failure: it has its own exit code.
async fn run(cli: &Cli) -> Result<bool> {
    raise_open_files()?;
    let progress = Progress::new(measure::steps(cli));
    let stage = Stage::set_up(cli, &progress).await?;
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = measure::all(&stage, &progress, &mut report) => measured,
        stopped = stop_requested() => Err(stopped.map_or_else(Into::into, |()| anyhow!("interrupted"))),
    };
    progress.finish();
    let left = stage.tear_down().await;
    // What was measured before a failure is still useful.
    println!("{report}");
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(dir) = &cli.plots {
        report.plots.iter().try_for_each(|plot| plot.write(dir))?;
    }
    measured?;
    left.context("cleaning up")?;
    Ok(report.all_met())
}
