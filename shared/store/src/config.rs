//! The address of the database.

use runtime::env::Env;
use secrecy::{ExposeSecret, SecretString};

use crate::connect::clear_host;

const DATABASE_TLS: &str = "add ?sslmode=verify-full, and &sslrootcert=… for an authority of your own";

/// The address of the database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`.
    pub url: SecretString,
    /// `DATABASE_MAX_CONNECTIONS`: the size limit of the pool. The sum over all processes must stay below the server's
    /// own limit.
    pub max_connections: u32,
}

impl DatabaseConfig {
    /// Reads the settings from the environment; `max_connections` is this process's default.
    pub fn from_env(env: &mut Env, max_connections: u32) -> Option<DatabaseConfig> {
        let hint = "set it to postgres://user:password@host:5432/database";
        let url = env.address("DATABASE_URL", hint).filter(|url| {
            let fits =
                url::Url::parse(url.expose_secret()).is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
            let clear = fits.then(|| clear_host(url).ok()).flatten();
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
