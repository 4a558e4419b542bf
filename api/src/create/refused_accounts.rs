//! Alerts people when a gateway refuses one of our accounts: its contract, its configuration or its keys. The order is
//! not at fault, and the buyer cannot correct it.

use std::time::Duration;

use moka::sync::Cache;
use runtime::clock::Clock;
use runtime::error_chain::chain;
use sqlx::PgPool;
use store::DbError;
use store::connect::in_time;
use store::settle::accounts::{Misconfigured, misconfigured};
use store::tables::orders::Order;
use tracing::{error, warn};

/// How often this process reports the same refusal of the same account to the database.
const EVERY: Duration = Duration::from_secs(60);
/// How many pairs of account and code are remembered.
const REMEMBERED: u64 = 1000;

/// The refusals that were reported recently.
pub struct RefusedAccounts(Cache<String, ()>);

impl Default for RefusedAccounts {
    fn default() -> RefusedAccounts {
        RefusedAccounts(Cache::builder().max_capacity(REMEMBERED).time_to_live(EVERY).build())
    }
}

impl RefusedAccounts {
    /// Logs each refusal, and opens one case for each account and code. The case is opened in the background, so that
    /// the answer does not wait.
    pub fn report(&self, db: &PgPool, clock: Clock, order: &Order, (code, message): (&str, &str)) {
        let (gateway, account) = (order.payment_method, order.account.clone());
        let (order_no, order_id) = (order.order_no.clone(), order.id);
        error!(%gateway, %account, code, detail = message, order_id = %order_id, "The gateway refuses our account {account}: {code}; correct it in GATEWAYS_FILE (appid, merchant, key and serial belong together) or at the gateway");
        let labels = [("gateway", gateway.as_str().to_owned()), ("account", account.to_string())];
        metrics::counter!("account_refusals_total", &labels).increment(1);
        if self.0.entry(format!("{gateway}/{account}:{code}")).or_insert(()).is_fresh() {
            let (db, code, message) = (db.clone(), code.to_owned(), message.to_owned());
            tokio::spawn(async move {
                let work = async {
                    let mut tx = db.begin().await?;
                    let (code, message) = (code.as_str(), message.as_str());
                    let misconfiguration =
                        Misconfigured { method: gateway, account: &account, code, message, order_no: &order_no };
                    misconfigured(&mut tx, &misconfiguration, &clock).await?;
                    Ok::<_, DbError>(tx.commit().await?)
                };
                if let Err(error) = in_time(work).await {
                    warn!(error = chain(&error), %account, "No case was opened for an account that its gateway refuses");
                }
            });
        }
    }
}
