//! Reads the waiting events, and leaves out those that cannot be read.

use std::collections::HashSet;

use runtime::error_chain::chain;
use runtime::panics::caught;
use sqlx::PgConnection;
use store::DbError;
use store::tables::events::{self as outbox, Place, Waiting};
use tracing::{error, warn};

use crate::relay::limits::{BATCH, WORKER};

/// The waiting events, and the numbers of those that cannot be read. The later events of such an order wait too.
pub(super) async fn read(connection: &mut PgConnection) -> Result<(Vec<Waiting>, Vec<i64>), DbError> {
    match caught(outbox::waiting(&mut *connection, BATCH)).await {
        Ok(Err(error)) if error.blames_the_rows() => {
            warn!(error = chain(&error), "An event cannot be read; they are read one by one")
        }
        Ok(outcome) => return outcome.map(|waiting| (waiting, Vec::new())),
        Err(panic) => drop(panic.noted(WORKER, "outbox.read", &"the events that wait")),
    }
    let (mut waiting, mut unreadable, mut held) = (Vec::new(), Vec::new(), HashSet::new());
    for Place { seq, order } in outbox::waiting_places(&mut *connection, BATCH).await? {
        if order.as_ref().is_some_and(|order| held.contains(order)) {
            continue;
        }
        let reason = match caught(outbox::waiting_one(&mut *connection, seq)).await {
            Ok(Ok(event)) => {
                waiting.extend(event);
                continue;
            }
            Ok(Err(error)) if error.blames_the_rows() => chain(&error),
            Ok(Err(error)) => return Err(error),
            Err(panic) => panic.noted(WORKER, "outbox.read", &seq).to_string(),
        };
        error!(seq, error = reason, "Event {seq} cannot be read; it waits, and so do the later events of its order");
        unreadable.push(seq);
        held.extend(order);
    }
    Ok((waiting, unreadable))
}
