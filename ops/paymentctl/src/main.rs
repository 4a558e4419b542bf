//! The binary. See `--help`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paymentctl::answer::{Answer, Problem};
use paymentctl::place::{Place, operator};
use paymentctl::{audit, cases, deploy, doctor, events, explain, export, keys, token};
use runtime::clock::Clock;
use runtime::env::Env;
use runtime::seal::SealKeys;
use runtime::telemetry;

/// Operates a running payment service: cases and dead letters, events, API keys, the timeline of one order, the log
/// of people's actions, and a doctor.
///
/// Nothing is changed without --yes: without it a command shows exactly what it would do. Money is moved only
/// through the API, by two people, and never here. The commands of a roll-out (migrate, database-roles, broker-setup)
/// take no --yes: each may run any number of times. `export` takes none either: it changes no order and no refund.
///
/// It works on the database of DATABASE_URL, with its own role (payment_ctl; `paymentctl database-roles` grants its
/// rights). Only the doctor reads GATEWAYS_FILE, AMQP_URL, REDIS_URL and RABBITMQ_MANAGEMENT_URL. The command `token`
/// reads JWT_HS256_SECRET, JWT_ISSUER, JWT_AUDIENCE and MAX_TOKEN_AGE, and no database; `keys offer-secret` reads SEAL_KEY
/// as well (see .env.example).
///
/// Exit status: 0 when everything is done; 1 when something failed, is left over, or the doctor found a fault; 2
/// when the command line is wrong.
#[derive(Debug, Parser)]
#[command(name = "paymentctl", version, disable_help_subcommand = true)]
struct Cli {
    /// Answer in JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
    /// The operator's name. It is recorded with each case that is resolved, each event that is published again, and
    /// each change of an API key. The default is the value of PAYMENT_OPERATOR.
    #[arg(long, visible_alias = "by", global = true, value_name = "NAME", value_parser = operator)]
    operator: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Operate(Operate),
    #[command(flatten)]
    Deploy(deploy::Command),
}

#[derive(Debug, Subcommand)]
enum Operate {
    /// What a person must look at, including dead letters: list, show, replay, discard.
    #[command(subcommand)]
    Cases(cases::Command),
    /// The events for downstream systems: list, show, publish again.
    #[command(subcommand)]
    Events(events::Command),
    /// Show the timeline of one order from every source, and what is expected next.
    Explain {
        /// Any number that leads to it: the id or number of the order, of a refund or of a payment, ours or the
        /// gateway's, the id of a case or of an event; or the first 8 characters or more of a number.
        number: String,
    },
    /// Write orders or refunds to a file for the finance department: csv or xlsx.
    #[command(subcommand)]
    Export(export::Command),
    /// The log of people's actions: list it, and verify that it was not changed afterwards.
    #[command(subcommand)]
    Audit(audit::Command),
    /// The API keys of the merchant's backend: make, confirm, list, rotate, revoke.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Print a token of a buyer, signed with JWT_HS256_SECRET, for trying things out.
    Token(token::Token),
    /// Check configuration, database, broker, Redis, keys and gateways. Each finding says what to do.
    Doctor,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::install_crypto();
    let command = match &cli.command {
        Command::Deploy(_) if cli.json || cli.operator.is_some() => {
            eprintln!("migrate, database-roles and broker-setup take neither --json nor --operator");
            return ExitCode::from(2);
        }
        Command::Deploy(command) => return deploy::run(command).await,
        Command::Operate(command) => command,
    };
    match run(&cli, command).await {
        Ok(answer) => {
            // The reader may close the pipe early (`| head`).
            let _ = writeln!(std::io::stdout(), "{}", answer.printed(cli.json));
            if answer.done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(if problem.usage { 2 } else { 1 })
        }
    }
}

async fn run(cli: &Cli, command: &Operate) -> Result<Answer, Problem> {
    let mut env = Env::process();
    match command {
        Operate::Doctor => Ok(doctor::run(env).await),
        Operate::Cases(command) => {
            let operator = who(cli, &mut env)?;
            cases::run(&Place::open(&mut env).await?, command, operator.as_deref()).await
        }
        Operate::Events(command) => {
            let operator = who(cli, &mut env)?;
            events::run(&Place::open(&mut env).await?, command, operator.as_deref()).await
        }
        Operate::Keys(command) => {
            let operator = who(cli, &mut env)?;
            let place = Place::open(&mut env).await?;
            // Only this one needs it, and it must not stop the others.
            let makes_offers = matches!(command, keys::Command::OfferSecret(_));
            let seal = if makes_offers { seal_keys(&mut env)? } else { None };
            keys::run(&place, command, operator.as_deref(), seal.as_ref()).await
        }
        Operate::Export(command) => {
            let operator = who(cli, &mut env)?;
            export::run(&Place::open(&mut env).await?, command, operator.as_deref()).await
        }
        Operate::Token(token) => token::run(env, token, Clock::system().now()),
        Operate::Audit(command) => audit::run(&Place::open(&mut env).await?, command).await,
        Operate::Explain { number } => explain::run(&Place::open(&mut env).await?, number).await,
    }
}

/// `SEAL_KEY`, if it is set.
fn seal_keys(env: &mut Env) -> Result<Option<SealKeys>, Problem> {
    SealKeys::from_env(env).ok_or_else(|| {
        let faults = std::mem::replace(env, Env::of([])).into_faults();
        let said: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        Problem::usage(said.join("\n       "), "every variable is in .env.example")
    })
}

/// The operator's name, if one is given.
fn who(cli: &Cli, env: &mut Env) -> Result<Option<String>, Problem> {
    let named = env.optional("PAYMENT_OPERATOR").filter(|_| cli.operator.is_none());
    let named = named.map(|name| operator(&name)).transpose();
    let named = named.map_err(|form| Problem::usage("PAYMENT_OPERATOR is no name", form))?;
    Ok(cli.operator.clone().or(named))
}
