//! The bytes of dead letters. They name payers, so a case holds only their digest, and neither `payment-api` nor
//! `paymentctl` can read this table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::message::callback::{Callback, digest};
use domain::{CaseId, CaseKind};
use serde_json::{Map, Value};
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::upkeep::retention::{Step, until_fewer};

/// The member of the evidence in which an older release stored the bytes.
const BYTES: &str = "body";

/// A dead letter that is stored for its case.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The `subject_ref` of its case.
    pub number: String,
    body: Option<Vec<u8>>,
    job: Option<Value>,
}

impl Letter {
    /// The dead letter of the case with this number. A callback is stored in the form of a job's payload, if a row can
    /// hold that.
    pub fn new(number: String, body: &[u8], callback: Option<&Callback>) -> Letter {
        let job = callback.and_then(Callback::payload);
        Letter { number, body: job.is_none().then(|| body.to_vec()), job }
    }
}

/// What a case states about the bytes: their length and their digest.
pub fn summary(bytes: &[u8]) -> Map<String, Value> {
    Map::from_iter([("size".to_owned(), bytes.len().into()), ("digest".to_owned(), digest(bytes).into())])
}

/// The evidence without the bytes that an older release stored in it.
#[must_use]
pub fn without_bytes(mut evidence: Value) -> Value {
    let Some(members) = evidence.as_object_mut() else { return evidence };
    if let Some(Value::String(text)) = members.remove(BYTES) {
        members.extend(summary(&decoded(&text)));
    }
    evidence
}

/// The bytes in the evidence. Text that is not base64 counts as the bytes themselves.
fn decoded(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// Stores dead letters for the cases that were opened with their numbers. If a case has a stored dead letter, that one
/// stays: the same number always means the same content.
///
/// # Errors
/// [`DbError`].
pub async fn store(tx: &mut PgConnection, letters: &[Letter], now: OffsetDateTime) -> Result<(), DbError> {
    let numbers: Vec<&str> = letters.iter().map(|letter| letter.number.as_str()).collect();
    let bodies: Vec<Option<&[u8]>> = letters.iter().map(|letter| letter.body.as_deref()).collect();
    let jobs: Vec<Option<&Value>> = letters.iter().map(|letter| letter.job.as_ref()).collect();
    sqlx::query!(
        r#"
        insert into dead_letters (case_id, body, job, filed_at)
        select c.id, letter.body, letter.job, $4
        from unnest($1::text[], $2::bytea[], $3::jsonb[]) as letter (number, body, job)
        join cases c on c.kind = 'dead_letter' and c.order_id is null and c.subject_ref = letter.number
        on conflict (case_id) do nothing
        "#,
        &numbers as &[&str],
        &bodies as &[Option<&[u8]>],
        &jobs as &[Option<&Value>],
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Moves the bytes out of cases that an older release wrote. `callback` parses a message. The step is complete when
/// fewer than `limit` cases were left.
///
/// # Errors
/// [`DbError`].
pub async fn move_bytes(
    tx: &mut PgConnection,
    callback: impl Fn(&[u8]) -> Option<Callback>,
    limit: i64,
) -> Result<Step<()>, DbError> {
    let held = sqlx::query!(
        r#"
        select id as "id: CaseId", subject_ref as "subject_ref!", evidence, created_at from cases
        where kind = $1 and jsonb_typeof(evidence -> 'body') = 'string'
        order by id
        limit $2
        for update skip locked
        "#,
        CaseKind::DeadLetter as CaseKind,
        limit,
    );
    let held = held.fetch_all(&mut *tx).await?;
    for case in &held {
        let bytes = case.evidence.get(BYTES).and_then(Value::as_str).map(decoded).unwrap_or_default();
        let letter = Letter::new(case.subject_ref.clone(), &bytes, callback(&bytes).as_ref());
        store(&mut *tx, std::slice::from_ref(&letter), case.created_at).await?;
        sqlx::query!(
            "update cases set evidence = $2 where id = $1",
            case.id as CaseId,
            without_bytes(case.evidence.clone()),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(until_fewer(held.len() as u64, limit))
}

/// Whether the bytes of a case are still stored.
///
/// # Errors
/// [`DbError`].
pub async fn are_stored(db: impl PgExecutor<'_>, case: CaseId) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from dead_letters where case_id = $1) as "kept!""#, case as CaseId);
    Ok(row.fetch_one(db).await?.kept)
}

/// Turns the callback of an open dead letter into a job, inside the database, so the caller never sees the bytes.
/// `None`: the case is not open, its message is not a callback, or its bytes are deleted.
///
/// # Errors
/// [`DbError`].
pub async fn replay(db: impl PgExecutor<'_>, case: CaseId) -> Result<Option<i64>, DbError> {
    let row = sqlx::query!("select replay_dead_letter($1) as job", case as CaseId);
    Ok(row.fetch_one(db).await?.job)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn evidence_says_how_long_the_bytes_are_and_their_digest() {
        let shown = without_bytes(json!({ "queue": "q", "body": "QUI=" }));
        assert_eq!(shown, json!({ "queue": "q", "size": 2, "digest": digest(b"AB") }));
        assert_eq!(without_bytes(json!({ "body": "!" }))["digest"], digest(b"!"));
        for plain in [json!({ "queue": "q" }), json!({}), json!([1])] {
            assert_eq!(without_bytes(plain.clone()), plain);
        }
    }
}
