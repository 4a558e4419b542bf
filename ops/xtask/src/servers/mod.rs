//! The three servers, PostgreSQL, RabbitMQ and Redis, as private instances in their own folder. On request,
//! RabbitMQ is a cluster of three nodes and PostgreSQL has a standby.
//!
//! [`find`] searches for the programs, [`install`] installs them, [`release`] fetches those of another release, and
//! [`compose`] is the alternative if there is a Docker engine. [`native`] starts and stops the programs; [`server`]
//! says what is the same for all of them, and one file per server knows how to run that server. [`set`] combines all
//! of this: it is what the commands use.

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
pub mod server;
pub mod set;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use logins::{COOKIE, DEPLOY, DOWNSTREAM, LOGINS, OWNER, REDIS_USER, SERVICE};
pub use release::Source;
pub use server::Stop;
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
    /// A synchronous copy of the database.
    Standby,
}

impl Kind {
    /// The servers that every set has, in the order of every listing.
    pub const ALL: [Kind; 3] = [Kind::Postgres, Kind::Rabbitmq, Kind::Redis];
    /// The servers that turn the broker into a cluster.
    pub const CLUSTER: [Kind; 3] = [Kind::Epmd, Kind::Rabbitmq2, Kind::Rabbitmq3];
    /// All possible nodes of the broker.
    pub const NODES: [Kind; 3] = [Kind::Rabbitmq, Kind::Rabbitmq2, Kind::Rabbitmq3];
    /// All servers that a set can have, in the order of starting: each group needs the ones before it.
    pub const GROUPS: [&'static [Kind]; 3] =
        [&[Kind::Epmd], &Kind::ALL, &[Kind::Rabbitmq2, Kind::Rabbitmq3, Kind::Standby]];

    /// All servers that a set can have.
    pub fn every() -> impl Iterator<Item = Kind> {
        Kind::GROUPS.into_iter().flatten().copied()
    }

    /// The kind whose programs run it.
    pub fn program(self) -> Kind {
        match self {
            Kind::Postgres | Kind::Standby => Kind::Postgres,
            Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 | Kind::Epmd => Kind::Rabbitmq,
            Kind::Redis => Kind::Redis,
        }
    }

    /// The ports it listens on; clients use the first one.
    pub fn port_names(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres | Kind::Standby | Kind::Redis | Kind::Epmd => &["main"],
            Kind::Rabbitmq => &["main", "management", "distribution", "epmd"],
            Kind::Rabbitmq2 | Kind::Rabbitmq3 => &["main", "management", "distribution"],
        }
    }

    /// The users who may log in.
    pub fn users(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres | Kind::Standby => {
                &[OWNER, LOGINS[0].role, LOGINS[1].role, LOGINS[2].role, LOGINS[3].role, LOGINS[4].role, LOGINS[5].role]
            }
            Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 => &[
                DEPLOY,
                SERVICE,
                DOWNSTREAM,
                COOKIE,
                LOGINS[0].user,
                LOGINS[1].user,
                LOGINS[2].user,
                LOGINS[3].user,
                LOGINS[4].user,
                LOGINS[5].user,
            ],
            Kind::Redis => &[REDIS_USER],
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
