//! The bytes of dead letters. They name payers, so a case holds their digest alone, and neither `payment-api` nor
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

/// The member of the evidence in which an older release kept the bytes.
const BYTES: &str = "body";

/// A message that is kept for its case.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The `gateway_no` of its case.
    pub number: String,
    body: Option<Vec<u8>>,
    job: Option<Value>,
}

impl Letter {
    /// The letter of the case with this number. A callback is kept as it would be in a job, if a row can hold it.
    pub fn new(number: String, body: &[u8], callback: Option<&Callback>) -> Letter {
        let job = callback.and_then(Callback::payload);
        Letter { number, body: job.is_none().then(|| body.to_vec()), job }
    }
}

/// What a case says of bytes: how many, and their digest.
pub fn summary(bytes: &[u8]) -> Map<String, Value> {
    Map::from_iter([("size".to_owned(), bytes.len().into()), ("digest".to_owned(), digest(bytes).into())])
}

/// Evidence without the bytes that an older release kept in it.
#[must_use]
pub fn without_bytes(mut evidence: Value) -> Value {
    let Some(members) = evidence.as_object_mut() else { return evidence };
    if let Some(Value::String(text)) = members.remove(BYTES) {
        members.extend(summary(&decoded(&text)));
    }
    evidence
}

/// The bytes of evidence; text that is no base64 stands for itself.
fn decoded(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// Keeps letters for the cases that were opened with their numbers. A case whose letter is kept keeps it: what has one number
/// says the same.
///
/// # Errors
/// [`DbError`].
pub async fn keep(tx: &mut PgConnection, letters: &[Letter], now: OffsetDateTime) -> Result<(), DbError> {
    let numbers: Vec<&str> = letters.iter().map(|letter| letter.number.as_str()).collect();
    let bodies: Vec<Option<&[u8]>> = letters.iter().map(|letter| letter.body.as_deref()).collect();
    let jobs: Vec<Option<&Value>> = letters.iter().map(|letter| letter.job.as_ref()).collect();
    sqlx::query!(
        r#"
        insert into dead_letters (case_id, body, job, filed_at)
        select c.id, letter.body, letter.job, $4
        from unnest($1::text[], $2::bytea[], $3::jsonb[]) as letter (number, body, job)
        join cases c on c.kind = 'dead_letter' and c.order_id is null and c.gateway_no = letter.number
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

/// Moves the bytes that cases of an older release hold. `callback` reads a message. Its step is over when fewer than `limit`
/// cases were left.
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
        select id as "id: CaseId", gateway_no, evidence, created_at from cases
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
        let letter = Letter::new(case.gateway_no.clone(), &bytes, callback(&bytes).as_ref());
        keep(&mut *tx, std::slice::from_ref(&letter), case.created_at).await?;
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

/// Whether the bytes of a case are still there.
///
/// # Errors
/// [`DbError`].
pub async fn are_kept(db: impl PgExecutor<'_>, case: CaseId) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from dead_letters where case_id = $1) as "kept!""#, case as CaseId);
    Ok(row.fetch_one(db).await?.kept)
}

/// Makes a job of the callback of an open dead letter, inside the database: the caller never has its bytes. `None`: the case is
/// not open, its message is no callback, or its bytes are gone.
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
