//! `payment_config`: what buyers may choose just now, asked by every creation.

use std::sync::Arc;
use std::time::Duration;

use domain::PaymentConfig;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::cache::copies::{Bounds, Copied, Copies, Trust};
use crate::cache::shelf::Shelf;
use crate::error::DbError;
use crate::tables::payment_config;

/// The only key.
const KEY: &str = "payment_config";
/// How long a reader waits for the one who is asking already.
const TURN: Duration = Duration::from_secs(1);

impl Copied for PaymentConfig {
    fn key(&self) -> String {
        KEY.to_owned()
    }

    fn version(&self) -> i64 {
        PaymentConfig::version(self)
    }
}

/// See the module and [`super`].
pub struct Config {
    copies: Copies<PaymentConfig>,
    /// Everybody misses it in the same moment, once a second; one asks for all.
    turn: Mutex<()>,
}

impl Config {
    /// In memory, and behind it on the shelf if there is one.
    pub(super) fn new(shelf: Option<Shelf>) -> Config {
        let bounds = Bounds { name: "config", keep: Duration::from_secs(24 * 3600), memory: 1 << 20, floors: 1 };
        Config { copies: Copies::new(bounds, shelf), turn: Mutex::new(()) }
    }

    /// What was in force at some moment of the last second.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn get(&self, db: &PgPool) -> Result<Arc<PaymentConfig>, DbError> {
        if let Some(config) = self.copies.fresh(KEY) {
            return Ok(config);
        }
        // Who waits in vain asks by himself: a database that hangs must not be asked by one after the other.
        let _turn = timeout(TURN, self.turn.lock()).await;
        if let (_, Some(config)) = self.copies.look(KEY) {
            return Ok(config);
        }
        // A copy that passes its check was read from PostgreSQL by a process of ours less than a second ago.
        let found = self.copies.fetch(KEY, |_| Trust::Shown, async { payment_config::all(db).await.map(Some) }).await?;
        found.ok_or(DbError::Moved)
    }

    /// Rules were shown as the database had them: nothing older is in force here from now on.
    pub fn saw(&self, config: &PaymentConfig) {
        self.copies.saw(KEY, config.version());
    }

    /// Takes over what the database holds now, for the one who has just changed it.
    pub async fn renew(&self, db: &PgPool) {
        let load = async { Ok(vec![payment_config::all(db).await?]) };
        if let Err(error) = self.copies.renew(load).await {
            warn!(%error, "The copy of the configuration was not renewed; it is read again within a second");
        }
    }
}
