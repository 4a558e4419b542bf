//! The three servers, PostgreSQL, RabbitMQ and Redis, as private instances in a folder of their own.
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
}

impl Kind {
    /// All of them, in the order of every listing.
    pub const ALL: [Kind; 3] = [Kind::Postgres, Kind::Rabbitmq, Kind::Redis];

    /// What it listens on; the first is the one its clients use.
    pub fn port_names(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres | Kind::Redis => &["main"],
            Kind::Rabbitmq => &["main", "management", "distribution", "epmd"],
        }
    }

    /// Who may log in.
    pub fn users(self) -> &'static [&'static str] {
        match self {
            Kind::Postgres => &[
                postgres::USER,
                LOGINS[0].role,
                LOGINS[1].role,
                LOGINS[2].role,
                LOGINS[3].role,
                LOGINS[4].role,
                LOGINS[5].role,
            ],
            Kind::Rabbitmq => &[
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
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Postgres => "postgres",
            Kind::Rabbitmq => "rabbitmq",
            Kind::Redis => "redis",
        })
    }
}
