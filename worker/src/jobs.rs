//! Takes jobs that the relay published and runs them side by side.
//!
//! A message is only the nudge. The row says whether there is work: whoever takes it raises the fence, and the job ends or
//! re-dates its row in the transaction that records its effect. So a message is always done with; a job that broke off is
//! published again when its lease ends.
//!
//! A panic concerns its own job: it costs an attempt, and the job is tried again. A panic outside the job's own work leaves
//! the row to its lease.

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
use store::retry::{Collision, anew};
use store::tables::jobs::{self, Cost, Taken};
use tracing::{error, warn};

use crate::consumer::Ack;

/// Longer than a job takes: a query, a close, a query, one call for each refund that people book, and three transactions. A
/// worker that takes longer loses the job by its fence, and changes nothing.
const LEASE: time::Duration = time::Duration::minutes(2);
/// When a job that failed is tried again: the first few soon, then slower, for ever.
pub const RETRY: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1800),
];

/// What a job did not manage; its row stays, and it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The database.
    #[error("the database did not do it")]
    Db(#[from] DbError),
    /// The row that the job is about is not there, or names what is not configured.
    #[error("{0}")]
    Missing(String),
    /// A defect, or trouble that passes.
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

/// What a worker does with its jobs.
pub trait Job {
    /// Its worker: which kinds of jobs it takes, and its name in metrics and logs.
    const WORKER: Service;

    /// Does one step and ends or re-dates the row.
    fn run(&self, job: &Taken) -> impl Future<Output = Result<(), JobError>>;
    /// The pool, for taking and giving back.
    fn db(&self) -> &PgPool;
    /// The clock.
    fn clock(&self) -> &Clock;
}

/// Runs the jobs of a batch of messages; `Err` in `batch` is a message that is none.
///
/// # Errors
/// Never: what fails is tried again by its row. The type is the consumer's.
pub async fn run_batch<J: Job>(
    job: &J,
    batch: Vec<Result<JobMessage, serde_json::Error>>,
) -> Result<Vec<Ack>, DbError> {
    let runs = batch.into_iter().map(async |message| match message {
        Ok(message) => {
            if let Err(panic) = caught(run_one(job, message)).await {
                // The row comes again when its lease ends.
                panic.noted(J::WORKER.as_str(), "job", &format_args!("job {}", message.id));
            }
            Ack::Done
        }
        Err(error) => {
            error!(%error, "A message in a job queue is no job");
            Ack::Dead
        }
    });
    Ok(join_all(runs).await)
}

async fn run_one<J: Job>(job: &J, message: JobMessage) {
    let kinds = JobKind::of_worker(J::WORKER.as_str());
    let take = || jobs::take(job.db(), &kinds, message, LEASE);
    let taken = match anew(take).await {
        Ok(Some(taken)) => taken,
        Ok(None) => return, // A repeat, done, or forged.
        Err(error) => return warn!(%error, job = message.id, "A job cannot be taken now; it comes again"),
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
    warn!(job = taken.id, attempts = taken.attempts, error = reason, "A job failed; it is tried again");
    // Collisions are no fault of the job, and say nothing about the next time.
    let (wait, cost) = match failed.is_collision() {
        true => (pause(job.clock(), &RETRY, 0), Cost::Nothing),
        false => (pause(job.clock(), &RETRY, taken.attempts), Cost::Attempt),
    };
    if let Err(error) = anew(|| give_back(job, &taken, wait, cost, &reason)).await {
        warn!(%error, job = taken.id, "A job was not given back; it comes again when its lease ends");
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

/// The `step`-th wait of a schedule, spread; beyond its end the last wait counts.
pub fn pause(clock: &Clock, schedule: &[Duration], step: i32) -> time::Duration {
    let step = usize::try_from(step).unwrap_or(0).min(schedule.len().saturating_sub(1));
    let wait = schedule.get(step).copied().unwrap_or(Duration::from_secs(60));
    spread(clock, wait)
}

/// A wait made longer by up to a tenth, so that what failed together does not come together.
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
