//! Claims the jobs that the relay published, and runs them concurrently.
//!
//! A message is only a nudge; the row decides whether there is work. The worker that claims the row raises the fence.
//! The job deletes or reschedules its row in the transaction that records its effect. So every message is acknowledged:
//! a job that breaks off is published again when its lease ends.
//!
//! A panic affects only its own job: it costs an attempt, and the job is tried again. After a panic outside the job's
//! own work, the row waits until its lease ends.

use std::time::Duration;

use domain::message::job::{JobKind, JobMessage};
use futures_util::future::join_all;
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught};
use runtime::service::Service;
use sqlx::PgPool;
use store::DbError;
use store::retry::{Collision, retry};
use store::tables::jobs::{self, Cost, Taken};
use tracing::{error, warn};

use crate::consumer::Ack;

/// Longer than a job needs: a query, a close, a query, one call for each refund that people book, and three
/// transactions. A worker that needs longer loses the job by its fence, and changes nothing.
const LEASE: time::Duration = time::Duration::minutes(2);
/// The waits before a failed job is tried again: short at first, then longer. The last wait applies for ever.
pub const RETRY: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1800),
];

/// The error of a job. Its row stays, and the job is tried again.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A database error.
    #[error("a database operation failed")]
    Db(#[from] DbError),
    /// The row that the job is about does not exist, or names an account that is not configured.
    #[error("{0}")]
    Missing(String),
    /// A panic: a defect, or a temporary failure.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// A fault that a test has planted outside a transaction.
pub(crate) fn planted(fault: crash::Planted) -> JobError {
    JobError::Missing(fault.to_string())
}

impl From<sqlx::Error> for JobError {
    fn from(error: sqlx::Error) -> JobError {
        JobError::Db(error.into())
    }
}

impl Collision for JobError {
    fn is_collision(&self) -> bool {
        matches!(self, JobError::Db(error) if error.is_collision())
    }
}

/// The work of a worker on its jobs.
pub trait Job {
    /// The worker. It determines the kinds of jobs, and the name in metrics and logs.
    const WORKER: Service;

    /// Does one step, and deletes or reschedules the row.
    fn run(&self, job: &Taken) -> impl Future<Output = Result<(), JobError>>;
    /// The pool, to claim jobs and to give them back.
    fn db(&self) -> &PgPool;
    /// The clock.
    fn clock(&self) -> &Clock;
}

/// Runs the jobs of a batch of messages; `Err` in `batch` is a message that is no job.
///
/// # Errors
/// Never: the row of a failed job makes it run again. The consumer requires this return type.
pub async fn run_batch<J: Job>(
    job: &J,
    batch: Vec<Result<JobMessage, serde_json::Error>>,
) -> Result<Vec<Ack>, DbError> {
    let runs = batch.into_iter().map(async |message| match message {
        Ok(message) => {
            if let Err(panic) = caught(run_one(job, message)).await {
                // The relay publishes the row again when its lease ends.
                panic.noted(J::WORKER.as_str(), "job", &format_args!("job {}", message.id));
            }
            Ack::Done
        }
        Err(error) => {
            error!(%error, "A message in a job queue cannot be read as a job");
            Ack::Dead
        }
    });
    Ok(join_all(runs).await)
}

async fn run_one<J: Job>(job: &J, message: JobMessage) {
    let kinds = JobKind::of_worker(J::WORKER.as_str());
    let take = || jobs::take(job.db(), &kinds, message, LEASE);
    let taken = match retry(take).await {
        Ok(Some(taken)) => taken,
        Ok(None) => return, // A repeat, a finished job, or a forged message.
        Err(error) => {
            return warn!(%error, job_id = message.id, "A job cannot be claimed now; it will be published again");
        }
    };
    crash::at(Point::JobTaken);
    let _ = crash::met(Point::JobTaken, &taken.ref_id);
    let ended = match caught(Box::pin(job.run(&taken))).await {
        Ok(ended) => ended,
        Err(panic) => {
            let about = format_args!("job {} about {}", taken.id, taken.ref_id);
            Err(panic.noted(J::WORKER.as_str(), "run", &about).into())
        }
    };
    let Err(failed) = ended else { return };
    let reason = chain(&failed);
    warn!(job_id = taken.id, attempts = taken.attempts, error = reason, "A job failed; it will be tried again");
    // The job does not cause a collision, so a collision costs no attempt and does not lengthen the wait.
    let (wait, cost) = match failed.is_collision() {
        true => (pause(job.clock(), &RETRY, 0), Cost::Nothing),
        false => (pause(job.clock(), &RETRY, taken.attempts), Cost::Attempt),
    };
    if let Err(error) = retry(|| give_back(job, &taken, wait, cost, &reason)).await {
        warn!(%error, job_id = taken.id, "A job was not given back; it will be published again when its lease ends");
    }
}

async fn give_back<J: Job>(
    job: &J,
    taken: &Taken,
    wait: time::Duration,
    cost: Cost,
    reason: &str,
) -> Result<(), DbError> {
    let mut tx = job.db().begin().await?;
    jobs::again(&mut tx, taken, wait, cost, reason).await?;
    Ok(tx.commit().await?)
}

/// The `step`-th wait of a schedule, varied by [`spread`]; beyond the end of the schedule the last wait applies.
pub fn pause(clock: &Clock, schedule: &[Duration], step: i32) -> time::Duration {
    let step = usize::try_from(step).unwrap_or(0).min(schedule.len().saturating_sub(1));
    let wait = schedule.get(step).copied().unwrap_or(Duration::from_secs(60));
    spread(clock, wait)
}

/// A wait made longer by up to a tenth, so that jobs that failed together are not tried again together.
pub fn spread(clock: &Clock, wait: Duration) -> time::Duration {
    let share = f64::from(u8::try_from(clock.fresh_bits() % 256).unwrap_or(0)) / 2560.0;
    time::Duration::seconds_f64(wait.mul_f64(1.0 + share).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_ends_in_its_last_wait() {
        let clock = Clock::system();
        for (step, seconds) in [(-1, 2.0), (0, 2.0), (1, 10.0), (5, 1800.0), (6, 1800.0), (i32::MAX, 1800.0)] {
            let wait = pause(&clock, &RETRY, step).as_seconds_f64();
            assert!((seconds..=seconds * 1.1).contains(&wait), "{step}: {wait}");
        }
    }
}
