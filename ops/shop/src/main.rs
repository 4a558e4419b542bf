//! The demo's shop: a minimal version of what a merchant builds around the payment service.
//!
//! It plays the merchant's backend in both directions: it creates orders for a shopper, and delivers when a
//! fulfilment event arrives. `serve` shows that on a page; `once` plays one purchase and one refund at each gateway
//! without a browser. Like any other merchant, it uses only the HTTP interface and the events of the payment
//! service, and none of its crates.

mod api;
mod cli;
mod desk;
mod event;
mod fulfilment;
mod offer;
mod once;
mod qr;
mod stop;
mod token;
mod web;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};
use stop::Stop;

fn main() -> ExitCode {
    // Otherwise the first library that connects would choose one. This fails only if one was chosen before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    // The broker library logs the errors that it also returns, and the shop reports them itself.
    let level = match cli.command {
        Command::Serve(_) => "shop=info,warn,lapin=off",
        Command::Once(_) => "warn,lapin=off",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let stop = Stop::on_signal().context("listening for signals")?;
    match cli.command {
        Command::Serve(serve) => web::serve(serve, stop).await.map(|()| ExitCode::SUCCESS),
        Command::Once(settings) => once::run(&settings, stop).await,
    }
}
