//! The demo's shop: what a merchant builds around the payment service, as small as it can be.
//!
//! It plays the merchant's backend in both directions: it creates orders in the name of a shopper, and delivers when a
//! fulfilment event arrives. `serve` shows that on a page, `once` plays one purchase and one refund at each gateway
//! without a browser. Of the payment service it knows the HTTP interface and the events, like any other merchant: no crate
//! of it is used.

mod api;
mod cli;
mod desk;
mod event;
mod fulfilment;
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
    // The first library to connect would choose otherwise; it fails only when one was chosen before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    // The broker library logs what it also returns, and the shop says that in its own words.
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
