//! What a dead letter leaves behind in `jobs`.

use sqlx::PgConnection;

use super::DbError;

/// Deletes the job that a callback came as, where it holds these very bytes (in base64): whoever forges a number ends
/// nothing, and what is deleted is in the letter's case.
///
/// # Errors
/// [`DbError`].
pub async fn delete_callback(tx: &mut PgConnection, id: i64, body: &str) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where id = $1 and kind = 'callback' and payload->>'body' = $2", id, body)
        .execute(tx)
        .await?;
    Ok(())
}

/// A job whose message is a dead letter.
#[derive(Debug, Clone)]
pub struct Work {
    /// What it does.
    pub kind: String,
    /// The order or refund that it is about.
    pub ref_id: Option<String>,
}

/// What a job is about; `None` when it has ended.
///
/// # Errors
/// [`DbError`].
pub async fn work(tx: &mut PgConnection, id: i64) -> Result<Option<Work>, DbError> {
    Ok(sqlx::query_as!(Work, "select kind, ref_id from jobs where id = $1", id).fetch_optional(tx).await?)
}
