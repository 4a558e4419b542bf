//! Claims the jobs that the relay published, and runs them concurrently.
//!
//! A message is only a nudge; the row decides whether there is work. The worker that claims the row raises the fence.
//! The job deletes or reschedules its row in the transaction that records its effect. So every message is acknowledged:
//! a job that breaks off is published again when its lease ends.
//!
//! A panic affects only its own job: it costs an attempt, and the job is tried again. After a panic outside the job's
//! own work, the row waits until its lease ends.
//!
//! [`consume`] takes the messages, [`run_batch`] runs the jobs of a batch, and `run_one` runs one of them. What a job
//! does is in its worker's [`Job`]: `learn`, `record`, `report`.

use std::time::Duration;

use domain::message::job::{JobKind, JobMessage};
use domain::message::schedule::RETRY;
use futures_util::future::join_all;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::caught;
use secrecy::SecretString;
use sqlx::PgConnection;
use store::DbError;
use store::retry::{Collision, retry};
use store::tables::jobs::{self, Cost, Taken};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub mod job;
pub(crate) mod wait;

use job::{End, Job, JobError, Recorded, planted};
use wait::pause;

use crate::consumer::{self, Ack, BatchOptions};

/// Longer than a job needs: a query, a close, a query, one call for each refund that people book, and three
/// transactions. A worker that needs longer loses the job by its fence, and changes nothing.
const LEASE: time::Duration = time::Duration::minutes(2);

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
        error!(error = chain(&error), "The worker cannot consume");
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
            error!(error = chain(&error), "A message in a job queue cannot be read as a job");
            Ack::Dead
        }
    });
    Ok(join_all(runs).await)
}

/// Runs the job of one message: claims its row by the fence that the message names (`jobs::take` compares it), so a
/// repeat finds nothing; then runs one step. A job that fails is given back and tried again after a wait.
async fn run_one<J: Job>(job: &J, message: JobMessage) {
    let kinds = JobKind::of_worker(J::WORKER.as_str());
    let take = || jobs::take(job.db(), &kinds, message, LEASE);
    let taken = match retry(take).await {
        Ok(Some(taken)) => taken,
        Ok(None) => return, // A repeat, a finished job, or a forged message.
        Err(error) => {
            return warn!(
                error = chain(&error),
                job_id = message.id,
                "A job cannot be claimed now; it will be published again"
            );
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
        warn!(
            error = chain(&error),
            job_id = taken.id,
            "A job was not given back; it will be published again when its lease ends"
        );
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
    let Recorded { end, requests, stands, subject, outcome } = job.record(&mut tx, taken, learnt).await?;
    let held = match requests {
        Some(payload) => write(&mut tx, &taken.requesting(payload), &end).await?,
        None => write(&mut tx, taken, &end).await?,
    };
    // Not held: another worker has claimed the job, or settling has just deleted or rescheduled it. Then only a result
    // that `stands` counts, which is a fact.
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
