//! Due jobs go out: today the callbacks that could not be published when they came. Checks and refunds are kept until
//! there is a worker that takes them.

use shared::db::cases::NewCase;
use shared::db::jobs::{self, Due, Lease};
use shared::db::{DbError, events};
use shared::domain::{CaseId, CaseKind};
use shared::job::{Callback, kind};
use shared::mq::callback_message;
use shared::settle;
use sqlx::{Connection, PgConnection};
use tracing::{error, warn};

use super::{BATCH, CONFIRM, Relay};

/// Publishes due callbacks. Returns how many went out.
pub(super) async fn carry(relay: &Relay, connection: &mut PgConnection, which: Lease) -> Result<usize, DbError> {
    let due = jobs::lease_due(connection, kind::CALLBACK, which, BATCH, relay.clock.now()).await?;
    let (mut ids, mut messages) = (Vec::new(), Vec::new());
    for job in due {
        match read(&job) {
            Ok(callback) => {
                ids.push(job.id);
                messages.push(callback_message(&callback, format!("job:{}", job.id)));
            }
            Err(error) => give_up(relay, connection, &job, &error).await?,
        }
    }
    if messages.is_empty() {
        return Ok(0);
    }
    let outcomes = relay.publisher.publish_all(messages, CONFIRM).await;
    let refused: Vec<i64> =
        ids.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_err()).map(|(id, _)| *id).collect();
    if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
        warn!(%error, jobs = refused.len(), "Callbacks stay in the database for now");
        jobs::release(connection, &refused, relay.clock.now() + time::Duration::seconds(1)).await?;
    }
    Ok(ids.len() - refused.len())
}

fn read(job: &Due) -> Result<Callback, serde_json::Error> {
    let callback: Callback = serde_json::from_value(job.payload.clone())?;
    Ok(Callback { job_id: Some(job.id), ..callback })
}

/// A payload that is no callback: the row becomes a case, in one transaction.
async fn give_up(
    relay: &Relay,
    connection: &mut PgConnection,
    job: &Due,
    error: &serde_json::Error,
) -> Result<(), DbError> {
    error!(job = job.id, %error, "Job {} cannot be read; it becomes a case", job.id);
    let case = NewCase {
        id: CaseId::from_u128(relay.clock.fresh_bits()),
        kind: CaseKind::DeadLetter,
        order_id: None,
        gateway_no: format!("job:{}", job.id),
        evidence: job.payload.clone(),
    };
    let now = relay.clock.now();
    let mut tx = connection.begin().await?;
    let opened = settle::open_cases(&mut tx, &[case], now).await?;
    events::append(&mut tx, &opened, now).await?;
    jobs::delete_callbacks(&mut tx, &[job.id]).await?;
    tx.commit().await?;
    Ok(())
}
