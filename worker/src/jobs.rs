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
use domain::message::schedule::RETRY;
use futures_util::future::join_all;
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught};
use runtime::service::Service;
use secrecy::SecretString;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::retry::{Collision, retry};
use store::tables::jobs::{self, Cost, Taken};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::consumer::{self, Ack, BatchOptions};

/// Longer than a job needs: a query, a close, a query, one call for each refund that people book, and three
/// transactions. A worker that needs longer loses the job by its fence, and changes nothing.
const LEASE: time::Duration = time::Duration::minutes(2);

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

/// How a step of a job ended. One function writes it, in the transaction of what the step has recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing is left to do: the row is deleted.
    Done,
    /// The step failed with this error: it is tried again after the wait, and costs an attempt.
    Retry(time::Duration, String),
    /// The job is due again after the wait, which is no failure; the text says what it waits for.
    Snooze(time::Duration, String),
}

/// The result of a step that was recorded.
pub struct Recorded<O> {
    /// How the step ended.
    pub end: End,
    /// What stays requested in the job's payload; `None`: all of it.
    pub asking: Option<Value>,
    /// Whether this counts even if another worker has claimed the job meanwhile. Facts do.
    pub stands: bool,
    /// The order number at the test points around the commit; `None`: this step has none.
    pub subject: Option<String>,
    /// What the report needs.
    pub outcome: O,
}

impl<O> Recorded<O> {
    /// A result that counts in any case, and has no test points.
    pub fn new(end: End, outcome: O) -> Recorded<O> {
        Recorded { end, asking: None, stands: true, subject: None, outcome }
    }
}

/// The work of a worker on its jobs. A step learns from the gateway, outside any transaction, and then records what it
/// learnt in one transaction, which may be repeated after a collision.
pub trait Job {
    /// The worker. It determines the kinds of jobs, and the name in metrics and logs.
    const WORKER: Service;
    /// The test points just before and just after the commit.
    const POINTS: (Point, Point);
    /// What a step has learnt.
    type Learnt;
    /// What is reported after the commit.
    type Outcome;

    /// Learns what the job's row and the gateway say.
    fn learn(&self, job: &Taken) -> impl Future<Output = Result<Self::Learnt, JobError>>;
    /// Records it in the caller's transaction, and says how the job goes on.
    fn record(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        learnt: &Self::Learnt,
    ) -> impl Future<Output = Result<Recorded<Self::Outcome>, JobError>>;
    /// Updates metrics, log and copies after the commit.
    fn report(&self, learnt: &Self::Learnt, outcome: Self::Outcome) -> impl Future<Output = ()>;
    /// The pool, to claim jobs and to give them back.
    fn db(&self) -> &PgPool;
    /// The clock.
    fn clock(&self) -> &Clock;
}

/// Takes the messages of a queue and runs their jobs, until `stop`.
pub async fn consume<J: Job>(job: J, queue: &'static str, amqp_url: &SecretString, stop: CancellationToken) {
    let batch = BatchOptions::in_order(16, Duration::from_millis(5));
    let supervised = broker::supervise(J::WORKER.as_str(), amqp_url, stop, async |connection, stop| {
        consumer::database_answers(job.db(), &stop).await;
        consumer::run(&connection, queue, batch, stop, async |batch| {
            run_batch(&job, batch.iter().map(|nudge| serde_json::from_slice(&nudge.data)).collect()).await
        })
        .await
    });
    if let Err(error) = supervised.await {
        error!(%error, "The worker cannot consume");
    }
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
    let ended = match caught(Box::pin(run(job, &taken))).await {
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
    let end = match failed.is_collision() {
        true => End::Snooze(pause(job.clock(), &RETRY, 0), reason),
        false => End::Retry(pause(job.clock(), &RETRY, taken.attempts), reason),
    };
    if let Err(error) = retry(|| give_back(job, &taken, &end)).await {
        warn!(%error, job_id = taken.id, "A job was not given back; it will be published again when its lease ends");
    }
}

/// One step: learn, record, report.
async fn run<J: Job>(job: &J, taken: &Taken) -> Result<(), JobError> {
    let learnt = job.learn(taken).await?;
    let Some((subject, outcome)) = retry(|| commit(job, taken, &learnt)).await? else { return Ok(()) };
    if let Some(subject) = subject {
        crash::at(J::POINTS.1);
        crash::met(J::POINTS.1, &subject).map_err(planted)?;
    }
    job.report(&learnt, outcome).await;
    Ok(())
}

/// Records what was learnt and how the job goes on, in one transaction. `None`: another worker has claimed the job, and
/// nothing of this counts.
async fn commit<J: Job>(
    job: &J,
    taken: &Taken,
    learnt: &J::Learnt,
) -> Result<Option<(Option<String>, J::Outcome)>, JobError> {
    let mut tx = job.db().begin().await?;
    let Recorded { end, asking, stands, subject, outcome } = job.record(&mut tx, taken, learnt).await?;
    let held = match asking {
        Some(payload) => write(&mut tx, &taken.asking(payload), &end).await?,
        None => write(&mut tx, taken, &end).await?,
    };
    if !held && !stands {
        tx.rollback().await?;
        return Ok(None);
    }
    if let Some(subject) = &subject {
        crash::at(J::POINTS.0);
        store::connect::met(&mut tx, J::POINTS.0, subject).await?;
    }
    tx.commit().await?;
    Ok(Some((subject, outcome)))
}

/// Writes how a job goes on. False: another worker has claimed it, and its row stays as it is.
async fn write(tx: &mut PgConnection, job: &Taken, end: &End) -> Result<bool, DbError> {
    match end {
        End::Done => jobs::finish(tx, job).await.map(|()| true),
        End::Retry(wait, error) => jobs::again(tx, job, *wait, Cost::Attempt, error).await,
        End::Snooze(wait, reason) => jobs::again(tx, job, *wait, Cost::Nothing, reason).await,
    }
}

async fn give_back<J: Job>(job: &J, taken: &Taken, end: &End) -> Result<(), DbError> {
    let mut tx = job.db().begin().await?;
    write(&mut tx, taken, end).await?;
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
