//! Links what people did into its chain, beside the carrying and on a connection of its own; once a day its root goes to the log.

use std::time::Duration;

use shared::db::audit::{self, Root};
use shared::db::{DbError, in_time};
use shared::panics::caught;
use shared::telemetry::chain;
use time::Date;
use time::macros::offset;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Relay, WORKER};

const EVERY: Duration = Duration::from_millis(500);
const BATCH: i64 = 1000;
/// How far back a round looks for rows without a link.
const RECENT: time::Duration = time::Duration::hours(1);
/// How far back the first round and the first of each day look: a transaction may have been long, and a relay away.
const EVER: time::Duration = time::Duration::days(36_500);

/// Links until `stop`. A round that fails is tried again with the next.
pub(super) async fn keep(relay: &Relay, stop: &CancellationToken) {
    let work = async {
        let mut noted: Option<Date> = None;
        loop {
            let today = relay.clock.now().to_offset(offset!(+8)).date();
            let within = if noted == Some(today) { RECENT } else { EVER };
            let more = match caught(in_time(round(relay, within))).await {
                Ok(Ok((linked, _))) if linked as i64 == BATCH => true,
                Ok(Ok((_, root))) => {
                    if noted.replace(today) != Some(today) {
                        info!(n = root.n, root = %root, "The root of the audit log is {root}");
                    }
                    false
                }
                Ok(Err(error)) => {
                    warn!(error = chain(&error), "Acts of people are not linked; the next round does it");
                    false
                }
                Err(panic) => {
                    panic.noted(WORKER, "audit", &"the links of the audit log");
                    false
                }
            };
            if !more {
                tokio::time::sleep(EVERY).await;
            }
        }
    };
    tokio::select! { () = work => {}, () = stop.cancelled() => {} }
}

async fn round(relay: &Relay, within: time::Duration) -> Result<(usize, Root), DbError> {
    let mut tx = relay.db.begin().await?;
    let (linked, root) = audit::link(&mut tx, within, BATCH).await?;
    tx.commit().await?;
    metrics::counter!("audit_rows_linked_total").increment(linked as u64);
    Ok((linked, root))
}
