//! Carries refunds to their end. See `--help`.

use std::process::ExitCode;

use broker::topology;
use clap::Parser;
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::env::{Env, PublicUrl};
use runtime::service::Service;
use tikv_jemallocator::Jemalloc;
use worker::jobs;
use worker::refunds::{Budget, RefundWorker};
use worker::start::{Own, Process, Worker};

/// See ops/decisions/0015.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Takes refund jobs from the queue payment.refunds, asks the gateway for each refund and then how it went, until the
/// result is final. Run as many as the queue's depth asks for.
///
/// Configuration is read from the environment: DATABASE_URL, DATABASE_MAX_CONNECTIONS, AMQP_URL, GATEWAYS_FILE, PUBLIC_URL,
/// REFUND_CALLS, REDIS_URL, REDIS_KEY_PREFIX, COPIES_KEY, OPS_ADDR, RUST_LOG (see .env.example). SIGTERM stops it within 30 s.
#[derive(Parser)]
#[command(version)]
struct Cli {}

/// What only this worker needs.
struct Config {
    gateways: Gateways,
    public_url: String,
    budget: Budget,
}

impl Own for Config {
    fn accounts(&self) -> Option<&Gateways> {
        Some(&self.gateways)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    let worker = Worker { service: Service::RefundWorker, connections: 8, ops_port: 9104 };
    worker.run(configure, work).await
}

fn configure(env: &mut Env) -> Option<Config> {
    let public_url = PublicUrl::from_env(env);
    let calls = env.parse_or("REFUND_CALLS", 2, "a number of requests at once, such as 2");
    let gateways = Gateways::from_env(env);
    Some(Config { gateways: gateways?, public_url: public_url?.into_text(), budget: Budget::new(calls?) })
}

async fn work(process: Process, config: Config) {
    tokio::spawn(config.gateways.clone().tend(Clock::system(), process.stop.clone()));
    let worker = RefundWorker {
        db: process.db,
        gateways: config.gateways,
        public_url: config.public_url,
        clock: Clock::system(),
        budget: config.budget,
        copies: process.copies,
    };
    jobs::consume(worker, topology::REFUNDS, &process.amqp_url, process.stop).await;
}
