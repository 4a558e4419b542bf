//! The commands of a roll-out: they prepare the servers before a new release starts.
//!
//! Each may run any number of times and changes only what differs. They need other users than the rest of this tool: the
//! owner of the tables (`DATABASE_URL`), and a user of the broker that may declare (`AMQP_ADMIN_URL`).

pub mod broker_setup;
pub mod database_roles;

use std::process::ExitCode;

use anyhow::Context as _;
use broker_setup::{BrokerSetup, BrokerSetupConfig};
use clap::Subcommand;
use database_roles::DatabaseRoles;
use runtime::env::Env;
use store::upkeep::schema::migrate;
use store::{DatabaseConfig, MIGRATOR};

/// The commands, in the order in which a roll-out runs them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the database to the schema of this build, then exit. Run it once before a roll-out.
    Migrate,
    /// Grant the database role of each process its rights, then exit. Run it after each `migrate`, as the same user.
    DatabaseRoles(DatabaseRoles),
    /// Declare exchanges, queues and policies at the broker, grant the user of each process its rights, then exit. Run
    /// it once before a roll-out.
    BrokerSetup(BrokerSetup),
}

/// Runs a command, prints what it did, or every fault at once with what to do, and returns the exit code.
pub async fn run(command: &Command) -> ExitCode {
    match carry_out(command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(command: &Command) -> anyhow::Result<()> {
    let owner = |env: &mut Env| DatabaseConfig::from_env(env, 1);
    match command {
        Command::Migrate => bring_up_to_date(&configured(owner)?).await,
        Command::DatabaseRoles(options) => database_roles::run(&configured(owner)?, options).await,
        Command::BrokerSetup(options) => broker_setup::run(configured(BrokerSetupConfig::from_env)?, options).await,
    }
}

/// Reads what a command needs from the environment.
fn configured<C>(read: impl FnOnce(&mut Env) -> Option<C>) -> anyhow::Result<C> {
    let mut env = Env::process();
    let config = read(&mut env);
    env.finish()?;
    config.context("a part of the configuration is missing, and no fault says which: a defect")
}

async fn bring_up_to_date(config: &DatabaseConfig) -> anyhow::Result<()> {
    let newer = migrate(&config.url).await?;
    println!("The database has the {} migrations of this build.", MIGRATOR.iter().count());
    if newer > 0 {
        println!("It has {newer} of a newer release, which leave this build alone.");
    }
    Ok(())
}
