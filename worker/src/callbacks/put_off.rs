//! Stores callbacks that cannot be settled now as jobs, and postpones the jobs that they came as.

use domain::message::callback::Callback;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use sqlx::PgConnection;
use store::DbError;
use store::retry::retry;
use store::tables::jobs;
use tracing::warn;

use crate::callbacks::examined::Examined;
use crate::callbacks::worker::CallbackWorker;

/// How long a callback waits if its key is unknown here, or if the database refuses it without showing that the row is
/// at fault.
pub(super) const LONG_WAIT: time::Duration = time::Duration::minutes(1);
/// How long a delayed callback waits.
pub(super) const SHORT_WAIT: time::Duration = time::Duration::seconds(10);

impl CallbackWorker {
    /// Stores callbacks as jobs that are due after `wait`. The cause of the delay does not affect this: it only adds
    /// rows, and the rows that exist already are published again in any case.
    pub(super) async fn put_off(
        &self,
        examined: &[Examined],
        wait: time::Duration,
        reason: &str,
    ) -> Result<(), DbError> {
        let (rows, fresh): (Vec<_>, Vec<_>) = examined.iter().partition(|item| item.callback.job_id.is_some());
        retry(|| self.store_all(&fresh, reason, wait)).await?;
        match retry(|| self.store_all(&rows, reason, wait)).await {
            Err(DbError::Again(error)) => {
                warn!(
                    error = chain(&error),
                    jobs = rows.len(),
                    "Jobs were not postponed; they come again when their lease ends"
                );
                // A job number whose row does not exist counts for nothing: such a callback is stored as a new job.
                let mut lost = Vec::new();
                for item in rows {
                    if !store::connect::in_time(jobs::has_row(&self.db, &item.callback)).await? {
                        lost.push(item);
                    }
                }
                retry(|| self.store_all(&lost, reason, wait)).await?;
            }
            outcome => outcome?,
        }
        for item in examined {
            metrics::counter!("callbacks_put_off_total", "gateway" => item.callback.method.as_str()).increment(1);
        }
        warn!(callbacks = examined.len(), error = reason, "Callbacks were delayed; they will come again as jobs");
        Ok(())
    }

    async fn store_all(&self, items: &[&Examined], reason: &str, wait: time::Duration) -> Result<(), DbError> {
        if items.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        store::connect::hardly_wait_for_locks(&mut tx).await?;
        let mut rows = Vec::new();
        for item in items {
            if store_as_job(&mut tx, &item.callback, reason, wait).await?.is_some() {
                rows.extend(item.callback.job_id);
            }
            store::connect::met(&mut tx, Point::CallbackStored, &item.subject()).await?;
        }
        if !rows.is_empty() {
            jobs::slow_down(&mut tx, &rows).await?;
        }
        tx.commit().await?;
        crash::at(Point::CallbackStored);
        Ok(())
    }
}

/// Stores a callback that cannot be settled yet as a new job, or postpones the job that it came as. A job number counts
/// only if the row holds the same bytes. A callback that names the row of another one is stored as a new job, so
/// neither is lost. Returns how long it has been a job, if it came as one.
pub(super) async fn store_as_job(
    tx: &mut PgConnection,
    callback: &Callback,
    reason: &str,
    wait: time::Duration,
) -> Result<Option<time::Duration>, DbError> {
    let age = jobs::postpone(tx, callback, wait, reason).await?;
    if age.is_none() {
        jobs::insert_callback(tx, callback, wait).await?;
    }
    Ok(age)
}
