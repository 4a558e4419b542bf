//! Callbacks whose examination or settling panicked. A panic can be temporary, for example when memory was short, so
//! each such callback comes again as a job a few times. If it panics each time, it becomes a dead letter, and its case
//! says so.
//!
//! The job counts the panics of its own callback, so a panic does not use up the deliveries of other callbacks.

use domain::message::callback::Callback;
use domain::message::schedule::AFTER_PANICS;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught};
use sqlx::PgPool;
use store::DbError;
use store::retry::retry;
use store::tables::panicked::{self, Left};
use tracing::{error, warn};

use crate::consumer::Ack;

/// The name in metrics and logs.
pub(crate) const WORKER: &str = "callback-worker";

/// Stores these callbacks for another try, and returns what to do with each message.
///
/// # Errors
/// [`DbError`] when the database cannot store them now; every message then returns to the queue.
pub(crate) async fn defer(db: &PgPool, those: &[(&Callback, &Panicked)]) -> Result<Vec<Ack>, DbError> {
    // Together if possible: a release that panics at each callback causes whole batches of them.
    if those.len() > 1
        && let Ok(Ok(acks)) = caught(store(db, those)).await
    {
        return Ok(acks);
    }
    let mut acks = Vec::with_capacity(those.len());
    for one in those.chunks(1) {
        acks.extend(match caught(store(db, one)).await {
            Ok(Err(error)) if error.blames_the_rows() => {
                error!(error = chain(&error), "The database refuses a callback permanently");
                vec![Ack::Dead]
            }
            Ok(Err(error @ DbError::Again(_))) if one[0].0.job_id.is_some() => {
                warn!(error = chain(&error), "A job was not postponed; it comes again when its lease ends");
                vec![Ack::Done]
            }
            Ok(stored) => stored?,
            Err(panic) => {
                panic.noted(WORKER, "defer", &one[0].0.account);
                error!("A callback can be neither settled nor stored; its dead letter holds it");
                vec![Ack::Dead]
            }
        });
    }
    Ok(acks)
}

async fn store(db: &PgPool, those: &[(&Callback, &Panicked)]) -> Result<Vec<Ack>, DbError> {
    let left = retry(|| commit(db, those)).await?;
    crash::at(Point::CallbackStored);
    Ok(left
        .into_iter()
        .map(|left| match left {
            Left::Tries => Ack::Done,
            Left::None => Ack::Dead,
        })
        .collect())
}

async fn commit(db: &PgPool, those: &[(&Callback, &Panicked)]) -> Result<Vec<Left>, DbError> {
    let mut tx = db.begin().await?;
    store::connect::hardly_wait_for_locks(&mut tx).await?;
    let mut left = Vec::with_capacity(those.len());
    for (callback, panic) in those {
        left.push(panicked::defer(&mut tx, callback, &AFTER_PANICS, &format!("settling {panic}")).await?);
    }
    tx.commit().await?;
    Ok(left)
}
