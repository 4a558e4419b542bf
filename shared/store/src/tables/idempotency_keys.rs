//! `idempotency_keys`: which request made which row. The statement that makes the row also writes the key.

use std::ops::Range;

use domain::OrderId;
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;

/// A key to write.
#[derive(Clone)]
pub struct NewKey {
    /// Who sent the request: the text of the caller, at most 96 bytes. A key belongs to its caller alone.
    pub caller: String,
    /// The text that the client chose, 1 to 255 characters.
    pub key: String,
    /// The route of the request: a key is bound to one route.
    pub route: &'static str,
    /// SHA-256 of the request's body.
    pub request_hash: [u8; 32],
    /// Until this time the writing process works on it alone. `None`: it answers in the same transaction.
    pub held_until: Option<OffsetDateTime>,
    /// From this time on, the key counts as never used.
    pub expires_at: OffsetDateTime,
}

/// A key that a request used before.
pub struct KnownKey {
    /// The route of the first request.
    pub route: String,
    /// SHA-256 of the first request's body.
    pub request_hash: Vec<u8>,
    /// The row that the first request made.
    pub ref_id: OrderId,
    /// The final answer, once there is one.
    pub answer: Option<Value>,
    /// The HTTP status of the final answer, if it is a refusal.
    pub refused_with: Option<i16>,
    /// From this time on, the key counts as never used.
    pub expires_at: OffsetDateTime,
}

/// A final answer to write.
pub struct NewAnswer {
    /// Its body.
    pub answer: Value,
    /// Its HTTP status, 400 to 499, if it is a refusal.
    pub refused_with: Option<i16>,
}

/// A final answer.
pub struct SavedAnswer {
    /// Its body.
    pub answer: Value,
    /// Its HTTP status, 400 to 499, if it is a refusal.
    pub refused_with: Option<i16>,
    /// When the key expires, and the answer with it.
    pub expires_at: OffsetDateTime,
}

/// Finds a key that has not expired.
///
/// # Errors
/// [`DbError`].
pub async fn find(
    db: impl PgExecutor<'_>,
    caller: &str,
    key: &str,
    now: OffsetDateTime,
) -> Result<Option<KnownKey>, DbError> {
    Ok(sqlx::query_as!(
        KnownKey,
        r#"
        select route, request_hash, ref_id as "ref_id: OrderId", answer, refused_with, expires_at
        from idempotency_keys
        where user_id = $1 and key = $2 and expires_at > $3
        "#,
        caller,
        key,
        now,
    )
    .fetch_optional(db)
    .await?)
}

/// Claims a key for the row `ref_id`, in the transaction that makes the row. `false`: the key is in use and has not
/// expired. If another transaction with the same key is still running, this one waits for it.
///
/// # Errors
/// [`DbError`].
pub async fn take(tx: &mut PgConnection, new: &NewKey, ref_id: &str, now: OffsetDateTime) -> Result<bool, DbError> {
    let done = sqlx::query!(
        r#"
        insert into idempotency_keys as old
          (user_id, key, route, request_hash, ref_id, created_at, expires_at, held_until)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        on conflict on constraint idempotency_keys_pkey do update
          set route = excluded.route, request_hash = excluded.request_hash, ref_id = excluded.ref_id,
            created_at = excluded.created_at, expires_at = excluded.expires_at, held_until = excluded.held_until,
            answer = null, refused_with = null
          where old.expires_at <= $6 and (old.held_until is null or old.held_until <= $6)
        "#,
        new.caller,
        new.key,
        new.route,
        &new.request_hash,
        ref_id,
        now,
        new.expires_at,
        new.held_until,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Starts work on the row `ref_id` for the time `held`, if its key has no answer and no process holds it at the start
/// of that time. `false`: another process holds it, it is answered, or the key belongs to another row by now.
///
/// # Errors
/// [`DbError`].
pub async fn hold(
    db: impl PgExecutor<'_>,
    caller: &str,
    key: &str,
    ref_id: OrderId,
    held: Range<OffsetDateTime>,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        r#"
        update idempotency_keys
        set held_until = $4
        where user_id = $1 and key = $2 and ref_id = $5
          and answer is null and (held_until is null or held_until <= $3)
        "#,
        caller,
        key,
        held.start,
        held.end,
        ref_id as OrderId,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Releases a key that was held until `until`. If another process has claimed it since, nothing happens.
///
/// # Errors
/// [`DbError`].
pub async fn release(db: impl PgExecutor<'_>, caller: &str, key: &str, until: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!(
        "update idempotency_keys set held_until = null where user_id = $1 and key = $2 and held_until = $3",
        caller,
        key,
        until,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Saves the final answer of the process that holds the key until `held_until` (`None`: it was never held). Returns
/// `None` if the hold has expired and another process has claimed the key, or if it is answered already.
///
/// # Errors
/// [`DbError`].
pub async fn save_answer(
    db: impl PgExecutor<'_>,
    caller: &str,
    key: &str,
    held_until: Option<OffsetDateTime>,
    new: &NewAnswer,
) -> Result<Option<SavedAnswer>, DbError> {
    let saved = sqlx::query_as!(
        SavedAnswer,
        r#"
        update idempotency_keys
        set answer = $3, refused_with = $4, held_until = null
        where user_id = $1 and key = $2 and answer is null and held_until is not distinct from $5
        returning answer as "answer!", refused_with, expires_at
        "#,
        caller,
        key,
        new.answer,
        new.refused_with,
        held_until,
    )
    .fetch_optional(db)
    .await?;
    Ok(saved)
}

/// A request with a key, without the key itself and without the answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The route of the request.
    pub route: String,
    /// The kind of caller: `buyer`, `key`, `service` or `staff`.
    pub caller: String,
    /// The row that it made.
    pub ref_id: String,
    /// The HTTP status of the final answer, if it is a refusal.
    pub refused_with: Option<i16>,
    /// Until this time a process works on it alone.
    pub held_until: Option<OffsetDateTime>,
    /// When the request arrived.
    pub created_at: OffsetDateTime,
    /// From this time on, the key counts as never used.
    pub expires_at: OffsetDateTime,
}

/// The requests that made these rows, of every caller, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_rows(db: impl PgExecutor<'_>, ref_ids: &[String]) -> Result<Vec<Request>, DbError> {
    Ok(sqlx::query_as!(
        Request,
        r#"
        select route,
          -- The name of every caller but a buyer begins with its kind and a space, which no user id contains.
          case strpos(user_id, ' ') when 0 then 'buyer' else split_part(user_id, ' ', 1) end as "caller!",
          ref_id, refused_with, held_until, created_at, expires_at
        from idempotency_keys
        where ref_id = any($1::text[]::bpchar[])
        order by created_at
        "#,
        ref_ids,
    )
    .fetch_all(db)
    .await?)
}
