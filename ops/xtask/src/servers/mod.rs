//! The three servers, PostgreSQL, RabbitMQ and Redis, as private instances in a folder of their own; where it is asked for,
//! RabbitMQ as a cluster of three nodes and PostgreSQL with a standby.
//!
//! [`find`] looks for the programs, [`install`] gets them, [`release`] gets those of another release,
//! [`compose`] is the other way when there is a Docker engine; [`native`] starts and stops the programs, and one file per server knows how
//! that one wants to be run. [`set`] is the whole: what the commands use.

pub mod compose;
pub mod find;
pub mod install;
pub mod logins;
pub mod native;
pub mod postgres;
pub mod rabbitmq;
pub mod record;
pub mod redis;
pub mod release;
pub mod set;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use logins::LOGINS;
pub use native::Stop;
pub use release::Source;
pub use set::{Action, Set, Start};

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The database.
    Postgres,
    /// The broker.
    Rabbitmq,
    /// The cache.
    Redis,
    /// The port mapper of a cluster, through which its nodes find each other; a single node has its own.
    Epmd,
    /// The second node of a cluster.
    #[serde(rename = "rabbitmq-2")]
    #[value(name = "rabbitmq-2")]
    Rabbitmq2,
    /// The third node of a cluster.
    #[serde(rename = "rabbitmq-3")]
    #[value(name = "rabbitmq-3")]
    Rabbitmq3,
    /// A copy of the database that follows it.
    Standby,
}

impl Kind {
    /// What every set has, in the order of every listing.
    pub const ALL: [Kind; 3] = [Kind::Postgres, Kind::Rabbitmq, Kind::Redis];
    /// What makes a cluster of the broker.
    pub const CLUSTER: [Kind; 3] = [Kind::Epmd, Kind::Rabbitmq2, Kind::Rabbitmq3];
    /// The nodes of the broker that there can be.
    pub const NODES: [Kind; 3] = [Kind::Rabbitmq, Kind::Rabbitmq2, Kind::Rabbitmq3];
    /// Whatever a set can have, in the order of starting: each group needs the ones before it.
    pub const GROUPS: [&'static [Kind]; 3] =
        [&[Kind::Epmd], &Kind::ALL, &[Kind::Rabbitmq2, Kind::Rabbitmq3, Kind::Standby]];

    /// Whatever a set can have.
    pub fn every() -> impl Iterator<Item = Kind> {
        Kind::GROUPS.into_iter().flatten().copied()
    }

    /// Whose programs it is run by.
    pub fn program(self) -> Kind {
        match self {
            Kind::Postgres | Kind::Standby => Kind::Postgres,
            Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 | Kind::Epmd => Kind::Rabbitmq,
            Kind::Redis => Kind::Redis,
        }
    }

    /// What it listens on; the first is the one its clients use.
    pub fn port_names(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres | Kind::Standby | Kind::Redis | Kind::Epmd => &["main"],
            Kind::Rabbitmq => &["main", "management", "distribution", "epmd"],
            Kind::Rabbitmq2 | Kind::Rabbitmq3 => &["main", "management", "distribution"],
        }
    }

    /// Who may log in.
    pub fn users(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres | Kind::Standby => &[
                postgres::USER,
                LOGINS[0].role,
                LOGINS[1].role,
                LOGINS[2].role,
                LOGINS[3].role,
                LOGINS[4].role,
                LOGINS[5].role,
            ],
            Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 => &[
                rabbitmq::DEPLOY,
                rabbitmq::SERVICE,
                rabbitmq::DOWNSTREAM,
                rabbitmq::COOKIE,
                LOGINS[0].user,
                LOGINS[1].user,
                LOGINS[2].user,
                LOGINS[3].user,
                LOGINS[4].user,
                LOGINS[5].user,
            ],
            Kind::Redis => &[redis::USER],
            Kind::Epmd => &[],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Postgres => "postgres",
            Kind::Rabbitmq => "rabbitmq",
            Kind::Redis => "redis",
            Kind::Epmd => "epmd",
            Kind::Rabbitmq2 => "rabbitmq-2",
            Kind::Rabbitmq3 => "rabbitmq-3",
            Kind::Standby => "standby",
        })
    }
}
