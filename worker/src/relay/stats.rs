//! Updates the statistics about once a minute, concurrently with the publishing and on its own connection.

use std::time::Duration;

use runtime::error_chain::chain;
use runtime::panics::caught;
use store::DbError;
use store::connect::in_time;
use store::upkeep::statistics as stats;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::limits::WORKER;
use super::setup::Relay;

/// The pause between two rounds: how old the statistics may be.
const EVERY: Duration = Duration::from_secs(60);
/// The pause between two rounds while the statistics are behind.
const BREATH: Duration = Duration::from_millis(200);

/// Counts until `stop`. A failed round is repeated with the next one.
pub(super) async fn count(relay: &Relay, stop: &CancellationToken) {
    let work = async {
        let mut hours = stats::ROUND;
        loop {
            let caught_up = match caught(in_time(round(relay, hours))).await {
                Ok(Ok(caught_up)) => {
                    hours = stats::ROUND;
                    caught_up
                }
                Err(panic) => {
                    panic.noted(WORKER, "stats", &"the statistics");
                    true
                }
                Ok(Err(error)) => {
                    if matches!(error, DbError::Again(_)) {
                        // Hours with many rows: fewer of them fit into the time limit of a statement.
                        hours = (hours / 2).max(1);
                    }
                    warn!(error = chain(&error), "The statistics were not updated; the next round will update them");
                    true
                }
            };
            tokio::time::sleep(if caught_up { EVERY } else { BREATH }).await;
        }
    };
    tokio::select! { () = work => {}, () = stop.cancelled() => {} }
}

async fn round(relay: &Relay, hours: i64) -> Result<bool, DbError> {
    let mut tx = relay.db.begin().await?;
    let caught_up = stats::round(&mut tx, relay.clock.now(), hours).await?;
    tx.commit().await?;
    Ok(caught_up)
}
