//! Dead letters become cases: the bytes, why they were given up, and where they came from.
//!
//! A callback that came as a job ends with its letter. A check or refund does not: its letter is only a nudge that nobody
//! could take, so the row stays and is published again (ops/decisions/0002).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use shared::db::cases::NewCase;
use shared::db::{DbError, dead_letters, events};
use shared::domain::{CaseId, CaseKind};
use shared::mq::consume::{DeadLetter, LetterOf};
use shared::settle;
use sqlx::PgConnection;
use tracing::warn;

use super::Relay;
use crate::consumer::Ack;

/// Opens a case for each letter. A letter met again finds its case.
///
/// # Errors
/// [`DbError`]; the letters stay in their queue then.
pub(super) async fn file(relay: &Relay, letters: Vec<DeadLetter>) -> Result<Vec<Ack>, DbError> {
    let now = relay.clock.now();
    let mut tx = relay.db.begin().await?;
    let mut cases = Vec::with_capacity(letters.len());
    for letter in &letters {
        cases.push(case(relay, &mut tx, letter).await?);
    }
    let opened = settle::open_cases(&mut tx, &cases, now).await?;
    events::append(&mut tx, &opened, now).await?;
    tx.commit().await?;
    metrics::counter!("dead_letters_total").increment(cases.len() as u64);
    warn!(letters = cases.len(), new_cases = opened.len(), "Dead letters became cases");
    Ok(vec![Ack::Done; letters.len()])
}

/// The case of a letter. Of the job that the letter was published for, a callback's is deleted here, since the case has
/// its bytes; another's is only named.
async fn case(relay: &Relay, tx: &mut PgConnection, letter: &DeadLetter) -> Result<NewCase, DbError> {
    let id = CaseId::from_u128(relay.clock.fresh_bits());
    let body = STANDARD.encode(&letter.body);
    let mut evidence = json!({
        "queue": letter.queue,
        "reason": letter.reason,
        "origin": letter.origin,
        "headers": letter.headers,
        "body": body,
    });
    // Without an id of its own a letter is always new.
    let mut number = letter.message_id.clone().unwrap_or_else(|| id.to_string());
    match letter.of() {
        Some(LetterOf::Callback(job)) => dead_letters::delete_callback(tx, job, &body).await?,
        Some(LetterOf::Work(nudge)) => {
            // Not the fence: however often the job is published, it is one case.
            number = format!("job:{}", nudge.id);
            if let Some(work) = dead_letters::work(tx, nudge.id).await? {
                evidence["job"] = json!({ "id": nudge.id, "kind": work.kind, "ref_id": work.ref_id });
            }
        }
        None => {}
    }
    Ok(NewCase {
        id,
        kind: CaseKind::DeadLetter,
        order_id: None,
        gateway_no: number.chars().take(128).collect(),
        evidence,
    })
}
