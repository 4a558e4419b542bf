//! The binary: `payment-api serve`, `migrate`, `database-roles`, `broker-setup`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use payment_api::start;
use paymentctl::deploy;
use runtime::service::Service;
use runtime::telemetry;
use tikv_jemallocator::Jemalloc;

/// A sixth of the time went into the system's (ops/decisions/0015).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The HTTP ingress of the payment service: takes orders from frontends and callbacks from Alipay and WeChat Pay.
///
/// Everything is set by environment variables; a start that lacks some names all of them at once. `.env.example` in the
/// repository lists every variable with its meaning.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP until SIGTERM (the default).
    Serve,
    /// The commands of `paymentctl` under their names of before, for one release.
    #[command(flatten)]
    Deploy(deploy::Command),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::install_crypto();
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => runtime::start::run(Service::PaymentApi, start::prepare).await,
        Command::Deploy(command) => deploy::run(&command).await,
    }
}
