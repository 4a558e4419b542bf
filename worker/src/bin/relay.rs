//! Publishes due jobs and new events. See `--help`.

use std::process::ExitCode;

use broker::Publisher;
use clap::Parser;
use runtime::clock::Clock;
use runtime::env::Env;
use runtime::error_chain::chain;
use runtime::service::Service;
use tikv_jemallocator::Jemalloc;
use tokio_util::sync::CancellationToken;
use tracing::error;
use worker::relay::retention::Periods;
use worker::relay::{PUBLISHING, Relay, Settings};
use worker::start::{Process, Worker};

/// See ops/decisions/0015.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Publishes due jobs and new events from the database to the broker, each with a confirm, those of one order in order;
/// turns dead letters into cases; rebuilds the topology when the broker was wiped; counts the statistics, and removes what has
/// had its time. One relay is active, others stand by.
///
/// Configuration is read from the environment: DATABASE_URL, DATABASE_MAX_CONNECTIONS, AMQP_URL, OPTIONAL_EVENTS,
/// KEEP_EVENTS_DAYS, KEEP_CALLBACKS_DAYS, KEEP_CASES_DAYS, REDIS_URL, REDIS_KEY_PREFIX, COPIES_KEY, OPS_ADDR, RUST_LOG (see
/// .env.example). SIGTERM stops it within 30 s.
#[derive(Parser)]
#[command(version)]
struct Cli {}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    let worker = Worker { service: Service::Relay, connections: 4, ops_port: 9102 };
    worker.run(configure, work).await
}

fn configure(env: &mut Env) -> Option<Settings> {
    let (periods, optional) = (Periods::from_env(env), worker::start::optional_events(env));
    let mut settings = Settings { periods: periods?, ..Settings::default() };
    if let Some(optional) = optional {
        settings.optional_events = optional;
    }
    Some(settings)
}

async fn work(process: Process, settings: Settings) {
    // The publisher outlives the work, so that what is in hand still goes out.
    let done = CancellationToken::new();
    let publisher = match Publisher::start(&process.amqp_url, "relay-publisher", PUBLISHING, done.clone()) {
        Ok(publisher) => publisher,
        Err(error) => return error!(error = chain(&error), "The relay cannot publish"),
    };
    let relay = Relay {
        db: process.db,
        publisher: publisher.clone(),
        amqp_url: process.amqp_url,
        clock: Clock::system(),
        settings,
        copies: process.copies,
    };
    relay.run(&process.stop).await;
    done.cancel();
    publisher.finished().await;
}
