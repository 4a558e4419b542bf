//! Dead letters become cases: the bytes, why they were given up, and where they came from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use shared::db::cases::NewCase;
use shared::db::{DbError, events};
use shared::domain::{CaseId, CaseKind};
use shared::mq::consume::DeadLetter;
use shared::settle;
use tracing::warn;

use super::Relay;
use crate::consumer::Ack;

/// Opens a case for each letter. A letter met again finds its case.
///
/// # Errors
/// [`DbError`]; the letters stay in their queue then.
pub(super) async fn file(relay: &Relay, letters: Vec<DeadLetter>) -> Result<Vec<Ack>, DbError> {
    let now = relay.clock.now();
    let acks = vec![Ack::Done; letters.len()];
    let cases: Vec<NewCase> = letters.into_iter().map(|letter| case(relay, letter)).collect();
    let mut tx = relay.db.begin().await?;
    let opened = settle::open_cases(&mut tx, &cases, now).await?;
    events::append(&mut tx, &opened, now).await?;
    tx.commit().await?;
    metrics::counter!("dead_letters_total").increment(cases.len() as u64);
    warn!(letters = cases.len(), new_cases = opened.len(), "Dead letters became cases");
    Ok(acks)
}

fn case(relay: &Relay, letter: DeadLetter) -> NewCase {
    let id = CaseId::from_u128(relay.clock.fresh_bits());
    NewCase {
        id,
        kind: CaseKind::DeadLetter,
        order_id: None,
        // Without an id of its own a letter is always new.
        gateway_no: letter.message_id.unwrap_or_else(|| id.to_string()).chars().take(128).collect(),
        evidence: json!({
            "queue": letter.queue,
            "reason": letter.reason,
            "origin": letter.origin,
            "headers": letter.headers,
            "body": STANDARD.encode(&letter.body),
        }),
    }
}
