//! `idempotency_keys`: which request made which row. The key is written in the statement that makes the row.

use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::DbError;
use crate::domain::{OrderId, UserId};

/// A key on its way into the table.
pub struct NewKey {
    /// The client's own text, 1 to 255 characters.
    pub key: String,
    /// The route that it was sent to: a key is bound to one.
    pub route: &'static str,
    /// SHA-256 of the request's body.
    pub request_hash: [u8; 32],
    /// After that it may be forgotten.
    pub expires_at: OffsetDateTime,
}

/// A key that was seen before.
pub struct KnownKey {
    /// The route that it was first sent to.
    pub route: String,
    /// SHA-256 of the first request's body.
    pub request_hash: Vec<u8>,
    /// The row that the first request made.
    pub ref_id: OrderId,
    /// What was answered, once that was final.
    pub answer: Option<Value>,
}

/// Looks a key up.
///
/// # Errors
/// [`DbError`].
pub async fn find(db: impl PgExecutor<'_>, user_id: &UserId, key: &str) -> Result<Option<KnownKey>, DbError> {
    Ok(sqlx::query_as!(
        KnownKey,
        r#"
        select route, request_hash, ref_id as "ref_id: OrderId", answer
        from idempotency_keys
        where user_id = $1 and key = $2
        "#,
        user_id.as_str(),
        key,
    )
    .fetch_optional(db)
    .await?)
}

/// Takes a key for the row `ref_id`, in the transaction that makes the row. `false`: it is taken already. A request with
/// the same key that is still in flight is waited for.
///
/// # Errors
/// [`DbError`].
pub async fn take(
    tx: &mut PgConnection,
    user_id: &UserId,
    new: &NewKey,
    ref_id: &str,
    now: OffsetDateTime,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        r#"
        insert into idempotency_keys (user_id, key, route, request_hash, ref_id, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict on constraint idempotency_keys_pkey do nothing
        "#,
        user_id.as_str(),
        new.key,
        new.route,
        &new.request_hash,
        ref_id,
        now,
        new.expires_at,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Saves the final answer, once, and returns the answer that stays: the first.
///
/// # Errors
/// [`DbError`].
pub async fn save_answer(
    db: impl PgExecutor<'_>,
    user_id: &UserId,
    key: &str,
    answer: &Value,
) -> Result<Value, DbError> {
    let stays = sqlx::query_scalar!(
        r#"
        update idempotency_keys
        set answer = coalesce(answer, $3)
        where user_id = $1 and key = $2
        returning answer as "answer!"
        "#,
        user_id.as_str(),
        key,
        answer,
    )
    .fetch_optional(db)
    .await?;
    stays.ok_or(DbError::Moved)
}
