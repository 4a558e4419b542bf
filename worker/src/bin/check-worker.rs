//! Asks the gateways about orders, and ends them. See `--help`.

use std::process::ExitCode;

use broker::topology;
use clap::Parser;
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::service::Service;
use tikv_jemallocator::Jemalloc;
use worker::checks::CheckWorker;
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
    let worker = Worker { service: Service::CheckWorker, connections: 8, ops_port: 9103 };
    worker.run(Gateways::from_env, work).await
}

async fn work(process: Process, gateways: Gateways) {
    tokio::spawn(gateways.clone().tend(Clock::system(), process.stop.clone()));
    let worker = CheckWorker { db: process.db, gateways, clock: Clock::system(), copies: process.copies };
    jobs::consume(worker, topology::CHECKS, &process.amqp_url, process.stop).await;
}
