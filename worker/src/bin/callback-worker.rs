//! Settles callbacks. See `--help`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use broker::{callback_from, topology};
use clap::Parser;
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::env::Env;
use runtime::error_chain::chain;
use runtime::service::Service;
use tikv_jemallocator::Jemalloc;
use tracing::error;
use worker::callbacks::CallbackWorker;
use worker::consumer::{self, BatchOptions};
use worker::start::{Own, Process, Worker};

/// See ops/decisions/0015.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Takes gateway callbacks from the queue payment.callbacks, verifies them again, and settles them in batches: one
/// transaction each, with order, transaction, event and evidence. Run as many as the queue's depth asks for.
///
/// Configuration is read from the environment: DATABASE_URL, DATABASE_MAX_CONNECTIONS, AMQP_URL, GATEWAYS_FILE,
/// CALLBACK_BATCH, REDIS_URL, REDIS_KEY_PREFIX, COPIES_KEY, OPS_ADDR, RUST_LOG (see .env.example). SIGTERM stops it within 30 s.
#[derive(Parser)]
#[command(version)]
struct Cli {}

/// While one batch waits for the database, the signatures of the other are verified.
const LANES: usize = 2;

/// What only this worker needs.
struct Config {
    gateways: Gateways,
    batch: BatchOptions,
}

impl Own for Config {
    fn accounts(&self) -> Option<&Gateways> {
        Some(&self.gateways)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    let worker = Worker { service: Service::CallbackWorker, connections: 4, ops_port: 9101 };
    worker.run(configure, work).await
}

fn configure(env: &mut Env) -> Option<Config> {
    let gateways = Gateways::from_env(env);
    let max = env.parse_or("CALLBACK_BATCH", 400, "set it to a number of callbacks from 1 to 1000").filter(|max| {
        let fits = (1..=1000).contains(max);
        if !fits {
            env.fault("CALLBACK_BATCH", format!("{max} is out of range"), "set it to a number from 1 to 1000");
        }
        fits
    });
    Some(Config {
        gateways: gateways?,
        batch: BatchOptions {
            lanes: LANES,
            max: max?,
            gap: Duration::from_millis(3),
            linger: Duration::from_millis(20),
        },
    })
}

async fn work(process: Process, config: Config) {
    let db = process.db.clone();
    let Config { gateways, batch } = config;
    tokio::spawn(gateways.clone().tend(Clock::system(), process.stop.clone()));
    let worker = CallbackWorker { db: process.db, gateways, clock: Clock::system(), copies: process.copies };
    let worker = Arc::new(worker);
    let supervised = broker::supervise("callback-worker", &process.amqp_url, process.stop, async |connection, stop| {
        consumer::database_answers(&db, &stop).await;
        consumer::run(&connection, topology::CALLBACKS, batch, stop, async |batch| {
            worker.settle(batch.iter().map(callback_from).collect()).await
        })
        .await
    });
    if let Err(error) = supervised.await {
        error!(error = chain(&error), "The worker cannot consume");
    }
}
