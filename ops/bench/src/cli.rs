//! The command line and the environment variables.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use url::Url;

/// Measure the payment service and compare it with its limits. `cargo xtask bench` starts the servers and passes
/// the environment.
///
/// Exit code: 0 if every target was met, 3 if one was missed, 1 if something failed.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// Measure only these, instead of everything
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<What>,
    /// Callbacks in each repeat
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) callbacks: u32,
    /// Orders created in each repeat
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) orders: u32,
    /// Seconds of each repeat at a steady pace: latency, mix, flood, attackers
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) seconds: u32,
    /// Repeats; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) repeats: u32,
    /// Keep-alive connections of the load generator
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(crate) connections: u32,
    /// Clients of pgbench; each gets the same share of the callbacks
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) clients: u32,
    /// One short repeat of everything: checks that it works, not how fast it is
    #[arg(long)]
    pub(crate) quick: bool,
    /// Queue 100 000 callbacks while the worker is stopped, then start it: measures the rate and the memory of each
    /// process
    #[arg(long)]
    pub(crate) backlog: bool,
    /// Measure the cost of a callback with 10 000 orders in the table, ten times as many, and so on up to this
    /// number; 10 million need about 15 GB and 15 minutes
    #[arg(long, value_name = "ORDERS", value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    pub(crate) growth: Option<u32>,
    /// Measure search and lists of the admin API among 10 000 orders of a year, and among this number; 10 million need
    /// about 20 GB and half an hour
    #[arg(long, value_name = "ORDERS", value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    pub(crate) admin: Option<u32>,
    /// Run the steady mix for this long, and check whether the memory of any process grows
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub(crate) soak: Option<u32>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write plots over time and over size to this folder, as SVG
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// A PostgreSQL server on which this user may create a database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Url,
    /// The deploy user at the broker, who may declare objects
    #[arg(long, env = "AMQP_ADMIN_URL", hide_env_values = true)]
    pub(crate) amqp_admin_url: String,
    /// The broker's management plugin, with user and password
    #[arg(long, env = "RABBITMQ_MANAGEMENT_URL", hide_env_values = true)]
    pub(crate) rabbitmq_management_url: String,
    /// Redis, for the reads of orders whose copies it stores
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub(crate) redis_url: String,
    /// The folder with the built programs, built with --release
    #[arg(long, env = "PAYMENT_BIN_DIR")]
    pub(crate) bin_dir: PathBuf,
    /// The folder for keys and logs during the run; the cost of an fsync is measured there
    #[arg(long, env = "PAYMENT_SERVERS_DIR", value_name = "DIR")]
    pub(crate) work_dir: Option<PathBuf>,
}

/// The possible measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Callbacks settled per second, compared with pgbench
    Settled,
    /// Callbacks accepted per second, compared with bare publishes
    Accepted,
    /// Orders created per second, compared with RSA signatures
    Orders,
    /// From callback received to event published: at 100 per second, and at 70 % of the maximum rate
    Latency,
    /// Genuine callbacks under a flood of forged ones
    Flood,
    /// Genuine callbacks and other users during one attack of each kind
    Attackers,
    /// Memory of each process, idle
    Memory,
    /// Every callback twice, as fast as answers arrive
    Storm,
    /// Callbacks, orders, reads and refunds, at a steady pace
    Mix,
    /// Orders created, by gateway and kind of credential
    Gateways,
    /// Pages that poll their orders
    Polling,
    /// One to four workers of each kind, each with a backlog
    Workers,
}

impl Cli {
    /// Everything, unless some are named. The measurements that have their own option run only with that option.
    pub(crate) fn wants(&self, what: What) -> bool {
        self.only.is_empty() || self.only.contains(&what)
    }

    /// Callbacks in each repeat.
    pub(crate) fn callbacks(&self) -> u32 {
        if self.quick { self.callbacks.min(2_000) } else { self.callbacks }
    }

    /// Orders in each repeat.
    pub(crate) fn orders(&self) -> u32 {
        if self.quick { self.orders.min(500) } else { self.orders }
    }

    /// Seconds of each repeat at a steady pace.
    pub(crate) fn seconds(&self) -> u32 {
        if self.quick { self.seconds.min(3) } else { self.seconds }
    }

    /// Repeats of everything.
    pub(crate) fn repeats(&self) -> u32 {
        if self.quick { 1 } else { self.repeats }
    }
}
