//! Publishes due jobs to the queue of their kind. A callback that could not be published when it arrived is published
//! with its bytes; a check or refund is published as a nudge that names the row.
//!
//! A job that panics here, or whose case the database refuses, waits until its lease ends; the others are published.

use broker::{Message, callback_message};
use domain::message::callback::Callback;
use domain::message::job::{JobKind, JobMessage, Pace};
use domain::{CaseId, CaseKind};
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::caught_now;
use sqlx::{Connection, PgConnection};
use store::DbError;
use store::settle::opening;
use store::tables::cases::NewCase;
use store::tables::events as outbox;
use store::tables::jobs::{self, Due, Lease};
use tracing::{error, warn};

use super::dead_letters::named;
use super::limits::{BATCH, CONFIRM, LONG_QUEUE, WORKER};
use super::setup::Relay;

/// Publishes due jobs of a kind; `depth` is the number of messages in its queue. Returns how many were published.
pub(super) async fn publish_due(
    relay: &Relay,
    connection: &mut PgConnection,
    kind: JobKind,
    depth: u32,
) -> Result<usize, DbError> {
    let (which, limit) = match kind.spec().pace {
        Pace::WhenDue if depth > LONG_QUEUE => (Lease::Fresh, BATCH),
        Pace::WhenDue => (Lease::All, BATCH),
        Pace::WhenIdle(limit) => (Lease::All, limit),
    };
    let due = jobs::lease_due(connection, kind, which, limit).await?;
    let (mut leases, mut messages) = (Vec::new(), Vec::new());
    let mut failed = Ok(());
    for job in due {
        match caught_now(|| {
            let _ = crash::met(Point::RelayLeased, &job.id.to_string());
            message(kind, &job)
        }) {
            Ok(Ok(message)) => {
                leases.push((job.id, job.fence));
                messages.push(message);
            }
            Ok(Err(error)) => match give_up(relay, connection, &job, &error).await {
                Err(refused) if refused.blames_the_rows() => {
                    error!(job_id = job.id, error = chain(&refused), "Job {} cannot be a case; its lease ends", job.id);
                }
                // The other jobs are leased, so they are published before this error is returned.
                outcome => failed = outcome.and(failed),
            },
            Err(panic) => drop(panic.noted(WORKER, "due_jobs", &format_args!("job {}", job.id))),
        }
    }
    if messages.is_empty() {
        return failed.map(|()| 0);
    }
    crash::at(Point::RelayLeased);
    let carried = publish(relay, connection, &leases, messages).await?;
    crash::at(Point::RelayCarried);
    failed.map(|()| carried)
}

async fn publish(
    relay: &Relay,
    connection: &mut PgConnection,
    leases: &[(i64, i64)],
    messages: Vec<Message>,
) -> Result<usize, DbError> {
    let outcomes = relay.publisher.publish_all(messages, CONFIRM).await;
    let refused: Vec<(i64, i64)> =
        leases.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_err()).map(|(lease, _)| *lease).collect();
    if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
        warn!(error = chain(&error), jobs = refused.len(), "Jobs stay in the database for now");
        jobs::release(connection, &refused, time::Duration::seconds(1)).await?;
    }
    Ok(leases.len() - refused.len())
}

fn message(kind: JobKind, job: &Due) -> Result<Message, serde_json::Error> {
    let spec = kind.spec();
    if !spec.is_nudged {
        let callback: Callback = serde_json::from_value(job.payload.clone())?;
        return Ok(callback_message(&Callback { job_id: Some(job.id), ..callback }, format!("job:{}", job.id)));
    }
    let nudge = JobMessage { id: job.id, fence: job.fence };
    Ok(Message {
        exchange: spec.exchange.to_owned(),
        routing_key: spec.queue.to_owned(),
        id: format!("job:{}:{}", job.id, job.fence),
        kind: Some(kind.to_string()),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        body: serde_json::to_vec(&nudge)?.into(),
    })
}

/// Turns a row whose payload is no callback into a case, in one transaction.
async fn give_up(
    relay: &Relay,
    connection: &mut PgConnection,
    job: &Due,
    error: &serde_json::Error,
) -> Result<(), DbError> {
    error!(job_id = job.id, error = chain(&error), "Job {} cannot be read; it becomes a case", job.id);
    let case = NewCase {
        id: CaseId::from_u128(relay.clock.fresh_bits()),
        kind: CaseKind::DeadLetter,
        order_id: None,
        subject_ref: named(&format!("job:{}", job.id), job.payload.to_string().as_bytes()),
        evidence: job.payload.clone(),
    };
    let now = relay.clock.now();
    let mut tx = connection.begin().await?;
    let opened = opening::open_cases(&mut tx, &[case], now).await?;
    outbox::append(&mut tx, &opened, now).await?;
    jobs::delete_unreadable(&mut tx, job).await?;
    tx.commit().await?;
    Ok(())
}
