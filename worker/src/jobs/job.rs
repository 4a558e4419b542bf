//! What a worker implements for its jobs, and how a step of a job ends.

use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::panics::Panicked;
use runtime::service::Service;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::retry::Collision;
use store::tables::jobs::Taken;

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

/// A fault that a test has planted outside a transaction.
pub(crate) fn planted(fault: crash::Planted) -> JobError {
    JobError::Missing(fault.to_string())
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
    pub requests: Option<Value>,
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
        Recorded { end, requests: None, stands: true, subject: None, outcome }
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
