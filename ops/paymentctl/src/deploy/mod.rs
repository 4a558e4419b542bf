//! The commands of a roll-out: they prepare the servers before a new release starts.
//!
//! Each may run any number of times and changes only what differs. They need other users than the rest of this tool: the
//! owner of the tables (`DATABASE_URL`), and a user of the broker that may declare (`AMQP_ADMIN_URL`).

pub mod broker_setup;
pub mod database_roles;

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

/// Runs a command and prints what it did.
///
/// # Errors
/// What is missing or wrong, everything at once, and what to do.
pub async fn run(command: &Command) -> anyhow::Result<()> {
    let mut env = Env::process();
    match command {
        Command::BrokerSetup(options) => {
            let config = BrokerSetupConfig::from_env(&mut env);
            env.finish()?;
            let Some(config) = config else { return Ok(()) };
            broker_setup::run(config, options).await
        }
        Command::Migrate | Command::DatabaseRoles(_) => {
            let config = DatabaseConfig::from_env(&mut env, 1);
            env.finish()?;
            let Some(config) = config else { return Ok(()) };
            match command {
                Command::DatabaseRoles(options) => database_roles::run(&config, options).await,
                _ => bring_up_to_date(&config).await,
            }
        }
    }
}

async fn bring_up_to_date(config: &DatabaseConfig) -> anyhow::Result<()> {
    let newer = migrate(&config.url).await?;
    println!("The database has the {} migrations of this build.", MIGRATOR.iter().count());
    if newer > 0 {
        println!("It has {newer} of a newer release, which leave this build alone.");
    }
    Ok(())
}
