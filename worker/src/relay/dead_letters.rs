//! Turns dead letters into cases. A case shows the reason and the origin of its dead letter; the bytes are stored apart
//! from the case.
//!
//! If the database refuses a dead letter, or its case panics, only its bytes are filed. It does not stop the others.
//!
//! A callback that came as a job ends with its dead letter. A check or refund does not: its dead letter is only a nudge
//! that no worker could process, so the row stays and is published again (ops/decisions/0002).

use broker::Delivery;
use broker::consume::{DeadLetter, LetterOf};
use domain::message::callback::digest;
use domain::{CaseId, CaseKind};
use gateway::essence;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught, caught_now};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::connect::in_time;
use store::settle::opening;
use store::tables::cases::NewCase;
use store::tables::dead_letters::{self, Letter};
use store::tables::{events as outbox, jobs, panicked};
use store::{DbError, NotDone};
use time::format_description::well_known::Rfc3339;
use tracing::{error, warn};

use super::limits::WORKER;
use super::setup::Relay;
use crate::consumer::Ack;

/// Reads a dead letter. If its headers cannot be read, the result holds only its bytes.
pub(super) fn read(delivery: &Delivery) -> DeadLetter {
    caught_now(|| DeadLetter::from_delivery(delivery)).unwrap_or_else(|panic| {
        panic.noted(WORKER, "dead_letters", &"a dead letter's headers");
        DeadLetter {
            message_id: None,
            queue: None,
            reason: None,
            origin: None,
            headers: Vec::new(),
            body: delivery.data.clone().into(),
        }
    })
}

/// Opens a case for each dead letter. A dead letter that arrives again finds its case.
///
/// # Errors
/// [`DbError`]; the dead letters stay in their queue then. If the database refuses one, only its bytes are filed, and
/// the others are not affected.
pub(super) async fn file(relay: &Relay, letters: Vec<DeadLetter>) -> Result<Vec<Ack>, DbError> {
    let acks = vec![Ack::Done; letters.len()];
    let Err(not_done) = opened(relay, &letters, Evidence::Whole).await else { return Ok(acks) };
    let refused = not_done.refusal()?;
    warn!(
        error = chain(&refused),
        dead_letters = letters.len(),
        "Dead letters were refused; they are filed one by one"
    );
    for letter in letters.chunks(1) {
        if let Err(not_done) = opened(relay, letter, Evidence::Whole).await {
            let refused = not_done.refusal()?;
            error!(error = chain(&refused), "A dead letter was refused; only its bytes are filed");
            in_time(Box::pin(open(relay, letter, Evidence::Bytes))).await?;
        }
    }
    Ok(acks)
}

/// The error when dead letters did not become cases and a repeat would not help.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Opens cases. [`NotDone::Db`] is temporary; [`NotDone::Refused`] refuses the content.
async fn opened(relay: &Relay, letters: &[DeadLetter], evidence: Evidence) -> Result<(), NotDone<Refused>> {
    match caught(in_time(Box::pin(open(relay, letters, evidence)))).await {
        Ok(Err(error @ (DbError::Unavailable(_) | DbError::Again(_)))) => Err(NotDone::Db(error)),
        Ok(outcome) => outcome.map_err(|error| NotDone::Refused(Refused::Db(error))),
        Err(panic) => {
            let first = letters.first().and_then(|letter| letter.message_id.as_deref()).unwrap_or("none");
            let panicked = panic.noted(WORKER, "dead_letters", &format_args!("dead letter {first} and those with it"));
            Err(NotDone::Refused(panicked.into()))
        }
    }
}

/// How much of a dead letter its case shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// Everything.
    Whole,
    /// Only the bytes, which the database cannot refuse.
    Bytes,
}

/// Opens cases in one transaction.
async fn open(relay: &Relay, letters: &[DeadLetter], evidence: Evidence) -> Result<(), DbError> {
    let now = relay.clock.now();
    let mut tx = relay.db.begin().await?;
    let (mut cases, mut stored) = (Vec::with_capacity(letters.len()), Vec::with_capacity(letters.len()));
    for letter in letters {
        let (case, bytes) = match evidence {
            Evidence::Whole => case(relay, &mut tx, letter).await?,
            Evidence::Bytes => bare_case(relay, letter),
        };
        cases.push(case);
        stored.push(bytes);
    }
    let opened = opening::open_cases(&mut tx, &cases, now).await?;
    dead_letters::store(&mut tx, &stored, now).await?;
    outbox::append(&mut tx, &opened, now).await?;
    crash::at(Point::LetterOpened);
    if evidence == Evidence::Whole {
        for letter in letters {
            store::connect::met(&mut tx, Point::LetterOpened, letter.message_id.as_deref().unwrap_or_default()).await?;
        }
    }
    tx.commit().await?;
    crash::at(Point::LetterFiled);
    metrics::counter!("dead_letters_total").increment(cases.len() as u64);
    warn!(dead_letters = cases.len(), new_cases = opened.len(), "Dead letters became cases");
    Ok(())
}

/// The case of a dead letter, and the dead letter to store for it. The job of a callback is deleted here, because its
/// bytes are stored; a check or refund job is only named.
async fn case(relay: &Relay, tx: &mut PgConnection, letter: &DeadLetter) -> Result<(NewCase, Letter), DbError> {
    let id = CaseId::from_u128(relay.clock.fresh_bits());
    let plain_or_none = |text: &Option<String>| text.as_deref().map(plain);
    let headers = letter.headers.iter().map(|(name, value)| (plain(name), plain(value)));
    let mut evidence = json!({
        "queue": plain_or_none(&letter.queue),
        "reason": plain_or_none(&letter.reason),
        "origin": plain_or_none(&letter.origin),
        "headers": headers.collect::<Vec<_>>(),
    });
    summarize(&mut evidence, &letter.body);
    let mut replayable = None;
    // A dead letter without an id is always new.
    let mut number = plain_or_none(&letter.message_id).unwrap_or_else(|| id.to_string());
    match letter.of() {
        Some(LetterOf::Callback(callback)) => {
            // Not the message id: signed content has one case, however often and in whatever form it arrives.
            number = essence(&callback);
            // Only the row holds the errors of settling it, above all a panic.
            if let Some(met) = panicked::met(tx, &callback).await? {
                evidence["job"] =
                    json!({ "id": callback.job_id, "attempts": met.attempts, "last_error": met.last_error });
            }
            jobs::delete_callbacks(tx, &[&callback]).await?;
            let headers = callback.headers.iter().map(|(name, value)| (plain(name), plain(value)));
            evidence["callback"] = json!({
                "method": callback.method,
                "account": callback.account,
                "received_at": callback.received_at.format(&Rfc3339).ok(),
                "headers": headers.collect::<Vec<_>>(),
            });
            replayable = Some(callback);
        }
        Some(LetterOf::Work(nudge)) => {
            // Without the fence: a job has one case, however often it is published.
            number = format!("job:{}", nudge.id);
            if let Some(work) = jobs::work(tx, nudge.id).await? {
                evidence["job"] = json!({ "id": nudge.id, "kind": work.kind, "ref_id": work.ref_id });
            }
        }
        None => {}
    }
    let subject_ref: String = number.chars().take(128).collect();
    let stored = Letter::new(subject_ref.clone(), &letter.body, replayable.as_ref());
    Ok((NewCase { id, kind: CaseKind::DeadLetter, order_id: None, subject_ref, evidence }, stored))
}

/// Adds the size and digest of the bytes. The bytes themselves name the payer, so they are not in the case.
fn summarize(evidence: &mut Value, bytes: &[u8]) {
    if let Some(members) = evidence.as_object_mut() {
        members.extend(dead_letters::summary(bytes));
    }
}

/// A number that differs for other bytes: the given number, and a part of the digest.
pub(super) fn named(number: &str, bytes: &[u8]) -> String {
    let digest = digest(bytes);
    let part: String = digest.chars().skip_while(|c| *c != ':').skip(1).take(16).collect();
    format!("{}:{part}", number.chars().take(100).collect::<String>())
}

/// The case of a dead letter that the database refused. It is always a new case, and the job stays as it is.
fn bare_case(relay: &Relay, letter: &DeadLetter) -> (NewCase, Letter) {
    let id = CaseId::from_u128(relay.clock.fresh_bits());
    let mut evidence = json!({});
    summarize(&mut evidence, &letter.body);
    let stored = Letter::new(id.to_string(), &letter.body, None);
    (NewCase { id, kind: CaseKind::DeadLetter, order_id: None, subject_ref: id.to_string(), evidence }, stored)
}

/// Text that PostgreSQL can store: each NUL is replaced by U+FFFD.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}
