//! Links the actions of people into the hash chain of the audit log, concurrently with the publishing and on its own
//! connection. Once a day the relay writes the root of the chain to the log.

use std::time::Duration;

use runtime::error_chain::chain;
use runtime::panics::caught;
use store::DbError;
use store::connect::in_time;
use store::tables::audit;
use time::Date;
use time::macros::offset;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::limits::WORKER;
use super::setup::Relay;

const EVERY: Duration = Duration::from_millis(500);
const BATCH: usize = 1000;
/// How far back each round searches for rows without a link.
const RECENT: time::Duration = time::Duration::hours(1);
/// How many numbers the full scan covers in one round.
const SLICE: i64 = 20_000;

/// Links until `stop`. A failed round is repeated with the next one.
pub(super) async fn link(relay: &Relay, stop: &CancellationToken) {
    let work = async {
        let mut look = Look::default();
        loop {
            match caught(in_time(round(relay, &mut look))).await {
                // There may be more.
                Ok(Ok(linked)) if linked >= BATCH => continue,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    metrics::counter!("relay_steps_failed_total", "step" => "audit").increment(1);
                    error!(error = chain(&error), "Audit rows were not linked; the next round will link them");
                }
                Err(panic) => drop(panic.noted(WORKER, "audit", &"the links of the audit log")),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! { () = work => {}, () = stop.cancelled() => {} }
}

/// A scan over all rows, at the start and once a day. It finds rows that the recent search missed, because a
/// transaction took long or no relay was active.
#[derive(Default)]
struct Look {
    /// The day on which the last scan finished.
    done: Option<Date>,
    /// The number from which the present scan continues.
    from: i64,
}

/// Links new rows, and continues the full scan. Returns how many rows were linked.
async fn round(relay: &Relay, look: &mut Look) -> Result<usize, DbError> {
    let mut tx = relay.db.begin().await?;
    let new = audit::recent(&mut *tx, RECENT, BATCH as i64).await?;
    let mut root = audit::link(&mut tx, &new).await?;
    let mut linked = new.len();
    let today = relay.clock.now().to_offset(offset!(+8)).date();
    let looks = look.done != Some(today);
    let mut goes_on = false;
    if looks {
        let to = look.from + SLICE;
        let old = audit::numbered(&mut *tx, look.from, to).await?;
        root = audit::link(&mut tx, &old).await?;
        linked += old.len();
        goes_on = audit::largest(&mut *tx).await? >= to;
    }
    tx.commit().await?;
    metrics::counter!("audit_rows_linked_total").increment(linked as u64);
    if goes_on {
        look.from += SLICE;
    } else if looks {
        *look = Look { done: Some(today), from: 0 };
        if root.n > 0 {
            info!(n = root.n, %root, "The root of the audit log is {root}");
        }
    }
    Ok(linked)
}
