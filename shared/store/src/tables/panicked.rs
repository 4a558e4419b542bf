//! Callbacks whose processing panicked. Each becomes a job of its own that counts its panics, so it does not use up the
//! delivery attempts of other callbacks.

use domain::message::callback::Callback;
use sqlx::PgConnection;

use crate::error::DbError;
use crate::tables::jobs::proof;

/// What remains for a callback that panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is a job that is due later.
    Tries,
    /// It has panicked too often. Its job stays until a case of its dead letter is opened.
    None,
}

/// How long the job of a callback without remaining tries is postponed. Meanwhile its dead letter becomes a case.
const LETTER_SECONDS: i32 = 3600;

/// Stores a callback that panicked, for another try after `waits[n]` seconds, where `n` is how often it has panicked
/// before.
///
/// # Errors
/// [`DbError`].
pub async fn defer(tx: &mut PgConnection, callback: &Callback, waits: &[i32], reason: &str) -> Result<Left, DbError> {
    if let Some(before) = met(tx, callback).await? {
        let wait = usize::try_from(before.attempts).ok().and_then(|before| waits.get(before));
        sqlx::query!(
            r#"
            update jobs
            set due_at = now() + $2::int * interval '1 second', lease_until = null, publishes = 0, fence = fence + 1,
                attempts = attempts + 1, last_error = $3
            where id = $1
            "#,
            callback.job_id,
            wait.unwrap_or(&LETTER_SECONDS),
            reason,
        )
        .execute(tx)
        .await?;
        return Ok(if wait.is_some() { Left::Tries } else { Left::None });
    }
    let payload = serde_json::to_value(callback).map_err(|e| DbError::Failed(sqlx::Error::Encode(e.into())))?;
    sqlx::query!(
        r#"
        insert into jobs (kind, payload, due_at, created_at, attempts, last_error)
        values ('callback', $1, now() + $2::int * interval '1 second', now(), 1, $3)
        "#,
        payload,
        waits.first().unwrap_or(&LETTER_SECONDS),
        reason,
    )
    .execute(tx)
    .await?;
    Ok(Left::Tries)
}

/// The history of a callback's job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// How often its processing has panicked.
    pub attempts: i32,
    /// The last error, in words.
    pub last_error: Option<String>,
}

/// The history of the job that this callback came from, locked until the end of the transaction. The job number in the
/// message counts only if the row holds exactly these bytes: we do not trust the queue.
///
/// # Errors
/// [`DbError`].
pub async fn met(tx: &mut PgConnection, callback: &Callback) -> Result<Option<Met>, DbError> {
    let (Some(id), Some(proof)) = (callback.job_id, proof(callback)) else { return Ok(None) };
    let met = sqlx::query_as!(
        Met,
        r#"
        select attempts, last_error from jobs
        where id = $1 and kind = 'callback' and payload @> $2 and payload->'headers' = $2->'headers'
        for update
        "#,
        id,
        proof,
    );
    Ok(met.fetch_optional(tx).await?)
}
