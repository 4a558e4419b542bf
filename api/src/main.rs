//! The binary: `payment-api serve`, `migrate`, `database-roles`, `broker-setup`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use payment_api::broker_setup::{self, BrokerSetup, BrokerSetupConfig};
use payment_api::database_roles::{self, DatabaseRoles};
use payment_api::start;
use runtime::env::Env;
use runtime::service::Service;
use runtime::telemetry;
use store::DatabaseConfig;
use store::MIGRATOR;
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
    /// Bring the database to the schema of this build, then exit. Run it once before a roll-out.
    Migrate,
    /// Give the database role of each process its rights, then exit. Run it after each `migrate`, as the same user.
    DatabaseRoles(DatabaseRoles),
    /// Declare exchanges, queues and policies at the broker, give the user of each process its rights, then exit. Run it
    /// once before a roll-out.
    BrokerSetup(BrokerSetup),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::install_crypto();
    let done = match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => return runtime::start::run(Service::PaymentApi, start::prepare).await,
        Command::Migrate => migrate().await,
        Command::DatabaseRoles(options) => set_up_roles(&options).await,
        Command::BrokerSetup(options) => set_up_broker(&options).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn migrate() -> anyhow::Result<()> {
    let mut env = Env::process();
    let config = DatabaseConfig::from_env(&mut env, 1);
    env.finish()?;
    if let Some(config) = config {
        let newer = store::upkeep::schema::migrate(&config.url).await?;
        println!("The database has the {} migrations of this build.", MIGRATOR.iter().count());
        if newer > 0 {
            println!("It has {newer} of a newer release, which leave this build alone.");
        }
    }
    Ok(())
}

async fn set_up_roles(options: &DatabaseRoles) -> anyhow::Result<()> {
    let mut env = Env::process();
    let config = DatabaseConfig::from_env(&mut env, 1);
    env.finish()?;
    match config {
        Some(config) => database_roles::run(&config, options).await,
        None => Ok(()),
    }
}

async fn set_up_broker(options: &BrokerSetup) -> anyhow::Result<()> {
    let mut env = Env::process();
    let config = BrokerSetupConfig::from_env(&mut env);
    env.finish()?;
    match config {
        Some(config) => broker_setup::run(config, options).await,
        None => Ok(()),
    }
}
