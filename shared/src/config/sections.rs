//! What every process reads: where the database, the broker and the address for operations are.

use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};

use super::Env;
use crate::db;
use crate::mq::{Addresses, MqError};

pub(super) const AMQP_HINT: &str = "set it to amqp://user:password@host:5672/vhost (several with commas between them)";

const AMQP_TLS: &str = "write amqps://, with ?cacertfile=… for an authority of your own";
const DATABASE_TLS: &str = "add ?sslmode=verify-full, and &sslrootcert=… for an authority of your own";

/// Where the database is.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`.
    pub url: SecretString,
    /// `DATABASE_MAX_CONNECTIONS`: the pool's bound. All processes together stay below the server's own limit.
    pub max_connections: u32,
}

impl DatabaseConfig {
    /// Reads the section; `max_connections` is the default of this process.
    pub fn from_env(env: &mut Env, max_connections: u32) -> Option<DatabaseConfig> {
        let hint = "set it to postgres://user:password@host:5432/database";
        let url = env.address("DATABASE_URL", hint).filter(|url| {
            let fits =
                url::Url::parse(url.expose_secret()).is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
            let clear = fits.then(|| db::clear_host(url).ok()).flatten();
            match clear {
                None => {
                    env.fault("DATABASE_URL", "it is not a postgres URL", hint);
                    false
                }
                Some(clear) => env.may_go("DATABASE_URL", clear.into_iter().collect(), DATABASE_TLS),
            }
        });
        let hint = "set it to a number of connections from 1 to 1000, or leave it out";
        let most = env.parse_or("DATABASE_MAX_CONNECTIONS", max_connections, hint).filter(|most| {
            let fits = (1..=1000).contains(most);
            if !fits {
                env.fault("DATABASE_MAX_CONNECTIONS", format!("{most} is out of range"), hint);
            }
            fits
        });
        Some(DatabaseConfig { url: url?, max_connections: most? })
    }
}

/// Where the broker is.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// One address, or several with commas between them; checked to be well formed.
    pub url: SecretString,
}

impl AmqpConfig {
    /// Reads `AMQP_URL`.
    pub fn from_env(env: &mut Env) -> Option<AmqpConfig> {
        AmqpConfig::from_variable(env, "AMQP_URL")
    }

    /// Reads `AMQP_ADMIN_URL`, the user who may declare.
    pub fn admin_from_env(env: &mut Env) -> Option<AmqpConfig> {
        AmqpConfig::from_variable(env, "AMQP_ADMIN_URL")
    }

    fn from_variable(env: &mut Env, name: &'static str) -> Option<AmqpConfig> {
        let url = env.address(name, AMQP_HINT)?;
        match Addresses::parse(&url) {
            Ok(addresses) => match addresses.check_files() {
                Ok(()) => env.may_go(name, addresses.clear_hosts(), AMQP_TLS).then_some(AmqpConfig { url }),
                Err(wrong) => {
                    env.fault(name, wrong, "name files in PEM that this process may read, or leave them out");
                    None
                }
            },
            Err(MqError::Address(wrong)) => {
                env.fault(name, wrong, AMQP_HINT);
                None
            }
            Err(error) => {
                env.fault(name, error.to_string(), AMQP_HINT);
                None
            }
        }
    }
}

/// Where operations look in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpsConfig {
    /// `OPS_ADDR`: the address of `/metrics`, `/healthz` and `/readyz`.
    pub addr: SocketAddr,
}

impl OpsConfig {
    /// Reads `OPS_ADDR`; without it the process listens on `port` of the loopback interface.
    pub fn from_env(env: &mut Env, port: u16) -> Option<OpsConfig> {
        let hint = "set it to an address and port, such as 127.0.0.1:9100";
        let addr = env.parse_or("OPS_ADDR", SocketAddr::from(([127, 0, 0, 1], port)), hint)?;
        Some(OpsConfig { addr })
    }
}
