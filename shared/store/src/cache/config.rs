//! `payment_config`: what buyers can choose at present. Every order creation reads it.

use runtime::error_chain::chain;
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
/// How long a reader waits for another reader that is querying the database already.
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
    /// All readers miss the copy at the same moment, once a second. One of them queries for all.
    turn: Mutex<()>,
}

impl Config {
    /// Copies in memory, and behind them in Redis if there is a [`Shelf`].
    pub(super) fn new(shelf: Option<Shelf>) -> Config {
        let bounds = Bounds { name: "config", stored_for: Duration::from_secs(24 * 3600), memory: 1 << 20, floors: 1 };
        Config { copies: Copies::new(bounds, shelf), turn: Mutex::new(()) }
    }

    /// The rules that were in force at some moment of the last second.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn get(&self, db: &PgPool) -> Result<Arc<PaymentConfig>, DbError> {
        if let Some(config) = self.copies.fresh(KEY) {
            return Ok(config);
        }
        // A reader whose wait times out queries the database itself. If the database hangs, readers must not queue up
        // to query it one after the other.
        let _turn = timeout(TURN, self.turn.lock()).await;
        if let (_, Some(config)) = self.copies.look(KEY) {
            return Ok(config);
        }
        // A copy that passes its check was read from PostgreSQL by one of our processes less than a second ago.
        let found = self.copies.fetch(KEY, |_| Trust::Shown, async { payment_config::all(db).await.map(Some) }).await?;
        found.ok_or(DbError::Moved)
    }

    /// Records that these rules were shown as the database had them. This process shows no older ones from now on.
    pub fn saw(&self, config: &PaymentConfig) {
        self.copies.saw(KEY, config.version());
    }

    /// Reads what the database holds now. The process that has just changed it calls this.
    pub async fn renew(&self, db: &PgPool) {
        let load = async { Ok(vec![payment_config::all(db).await?]) };
        if let Err(error) = self.copies.renew(load).await {
            warn!(
                error = chain(&error),
                "The copy of the configuration was not renewed; it is read again within a second"
            );
        }
    }
}
