//! `gateway-sim`: creates key sets and serves the two simulated gateways.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use gateway_sim::keys::{self, Existed};
use gateway_sim::{Options, Simulator};
use tracing_subscriber::EnvFilter;

/// Simulates Alipay and WeChat Pay over HTTP. No money moves.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates a key set: gateways.toml for the service, sim.json for the simulator.
    Keygen {
        /// The folder of the key set.
        #[arg(long)]
        dir: PathBuf,
        /// The URL of the simulator.
        #[arg(long, default_value = "http://127.0.0.1:7000")]
        url: String,
        /// Replaces an existing set.
        #[arg(long)]
        force: bool,
    },
    /// Serves both gateways.
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// The folder of the key set.
    #[arg(long)]
    dir: PathBuf,
    /// The address to listen on.
    #[arg(long, env = "LISTEN_ADDR", default_value = "127.0.0.1:7000")]
    listen: String,
    /// The pauses of the callback schedules are divided by this number.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// The seed of the dice that decide on faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The maximum number of trades in memory.
    #[arg(long, default_value_t = 1_000_000)]
    max_trades: usize,
    /// The maximum number of callbacks in flight.
    #[arg(long, default_value_t = 64)]
    max_deliveries: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Keygen { dir, url, force: true } => {
            keys::generate(&dir, &url)?;
            println!("made a new key set in {}", dir.display());
            Ok(())
        }
        Command::Keygen { dir, url, force: false } => keygen(&dir, &url),
        Command::Serve(arguments) => serve(arguments).await,
    }
}

fn keygen(dir: &Path, url: &str) -> Result<()> {
    match keys::generate_if_missing(dir, url)? {
        Existed::No => println!("made a new key set in {}", dir.display()),
        Existed::Yes => {
            keys::point_at(dir, url)?;
            println!("kept the key set in {}, pointed at {url}", dir.display());
        }
    }
    Ok(())
}

async fn serve(Serve { dir, listen, speed, seed, max_trades, max_deliveries }: Serve) -> Result<()> {
    if !dir.join("sim.json").exists() {
        anyhow::bail!("no key set in {0}: make one with `gateway-sim keygen --dir {0}`", dir.display());
    }
    let options = Options { speed, seed, max_trades, max_deliveries };
    let simulator = Simulator::start(&dir, &listen, &options).await?;
    println!("gateway-sim: {}", simulator.url());
    stop_signal().await?;
    simulator.stop().await;
    Ok(())
}

async fn stop_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listening for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}
