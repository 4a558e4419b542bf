//! Asks the gateways about orders, and ends them. See `--help`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use broker::{Missing, topology};
use clap::Parser;
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::service::Service;
use tikv_jemallocator::Jemalloc;
use tracing::error;
use worker::checks::CheckWorker;
use worker::consumer::{self, BatchOptions};
use worker::jobs;
use worker::start::{Process, Worker};

/// See ops/decisions/0015.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Takes check jobs from the queue payment.checks: asks the gateway about orders that are not paid, settles payments whose
/// callback was lost, closes what expired or was given up, and looks back after the end. Run as many as the queue's depth
/// asks for.
///
/// Configuration is read from the environment: DATABASE_URL, DATABASE_MAX_CONNECTIONS, AMQP_URL, GATEWAYS_FILE, REDIS_URL,
/// REDIS_KEY_PREFIX, COPIES_KEY, OPS_ADDR, RUST_LOG (see .env.example). SIGTERM stops it within 30 s.
#[derive(Parser)]
#[command(version)]
struct Cli {}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    let worker =
        Worker { service: Service::CheckWorker, connections: 8, ops_port: 9103, missing: Missing::StopsTheStart };
    worker.run(Gateways::from_env, work).await
}

async fn work(process: Process, gateways: Gateways) {
    let db = process.db.clone();
    tokio::spawn(gateways.clone().tend(Clock::system(), process.stop.clone()));
    let worker = CheckWorker { db: process.db, gateways, clock: Clock::system(), copies: process.copies };
    let worker = Arc::new(worker);
    let batch = BatchOptions::in_order(16, Duration::from_millis(5));
    let supervised = broker::supervise("check-worker", &process.amqp_url, process.stop, async |connection, stop| {
        consumer::database_answers(&db, &stop).await;
        consumer::run(&connection, topology::CHECKS, batch, stop, async |batch| {
            jobs::run_batch(&*worker, batch.iter().map(|nudge| serde_json::from_slice(&nudge.data)).collect()).await
        })
        .await
    });
    if let Err(error) = supervised.await {
        error!(%error, "The worker cannot consume");
    }
}
