//! Callbacks that are jobs. They are stored when they cannot be published or settled yet. Only a callback with the same
//! bytes can end such a job.

use domain::message::callback::Callback;
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::Duration;

use crate::error::DbError;
use crate::tables::jobs::{again_in, millis};

/// Proof that a callback is a committed row. Only [`store_callback`] creates this value.
#[derive(Debug)]
pub struct Stored(());

/// Commits a callback as a due job, in a single statement on its own connection.
///
/// # Errors
/// [`DbError`]; the callback may not be stored then.
pub async fn store_callback(pool: &PgPool, callback: &Callback) -> Result<Stored, DbError> {
    insert_callback(pool, callback, Duration::ZERO).await?;
    Ok(Stored(()))
}

/// Stores a callback as a job that is due after `wait`. Returns the number of the job.
///
/// # Errors
/// [`DbError`].
pub async fn insert_callback(db: impl PgExecutor<'_>, callback: &Callback, wait: Duration) -> Result<i64, DbError> {
    let payload = serde_json::to_value(callback).map_err(|e| DbError::Failed(sqlx::Error::Encode(e.into())))?;
    Ok(sqlx::query_scalar!(
        r#"
        insert into jobs (kind, payload, due_at, created_at)
        values ('callback', $1, now() + $2::bigint * interval '1 millisecond', now())
        returning id
        "#,
        payload,
        millis(wait),
    )
    .fetch_one(db)
    .await?)
}

/// The part of a callback that a job's payload must contain to prove that the callback came as this job: everything
/// that its verdict depends on. `None`: it has text that PostgreSQL cannot store.
pub(crate) fn proof(callback: &Callback) -> Option<Value> {
    let mut payload = callback.payload()?;
    payload.as_object_mut()?.remove("received_at");
    Some(payload)
}

/// Postpones the job that this callback came as, and stores the reason. Waiting costs no attempt. Returns the age of
/// the job. `None`: the row is gone, or it holds another callback or another job, and is not changed.
///
/// # Errors
/// [`DbError`].
pub async fn postpone(
    tx: &mut PgConnection,
    callback: &Callback,
    wait: Duration,
    reason: &str,
) -> Result<Option<Duration>, DbError> {
    let (Some(id), Some(proof)) = (callback.job_id, proof(callback)) else { return Ok(None) };
    let age = sqlx::query_scalar!(
        r#"
        update jobs
        set due_at = now() + $3::bigint * interval '1 millisecond', lease_until = null, publishes = 0, fence = fence + 1,
            last_error = $4
        where id = $1 and kind = 'callback' and payload @> $2 and payload->'headers' = $2->'headers'
        returning (extract(epoch from now() - created_at) * 1000)::bigint as "age!"
        "#,
        id,
        proof,
        again_in(wait),
        reason,
    )
    .fetch_optional(tx)
    .await?;
    Ok(age.map(Duration::milliseconds))
}

/// Whether the job that this callback came as exists and holds its bytes. Waits for no lock.
///
/// # Errors
/// [`DbError`].
pub async fn has_row(db: &PgPool, callback: &Callback) -> Result<bool, DbError> {
    let (Some(id), Some(proof)) = (callback.job_id, proof(callback)) else { return Ok(false) };
    let found = sqlx::query_scalar!(
        r#"
        select exists (
          select from jobs
          where id = $1 and kind = 'callback' and payload @> $2 and payload->'headers' = $2->'headers'
        ) as "found!"
        "#,
        id,
        proof,
    );
    Ok(found.fetch_one(db).await?)
}

/// Deletes the jobs that these callbacks came as, because the callbacks have a verdict. A job whose row holds other
/// bytes stays.
///
/// # Errors
/// [`DbError`].
pub async fn delete_callbacks(tx: &mut PgConnection, callbacks: &[&Callback]) -> Result<(), DbError> {
    let named = callbacks.iter().filter_map(|callback| Some((callback.job_id?, proof(callback)?)));
    let (ids, proofs): (Vec<i64>, Vec<Value>) = named.unzip();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        delete from jobs j
        using unnest($1::bigint[], $2::jsonb[]) as c (id, proof)
        where j.id = c.id and j.kind = 'callback'
          and j.payload @> c.proof and j.payload->'headers' = c.proof->'headers'
        "#,
        &ids,
        &proofs,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Makes callbacks that [`postpone`] found come less often: after a quarter of their age, at most 10 minutes.
///
/// # Errors
/// [`DbError`].
pub async fn slow_down(tx: &mut PgConnection, ids: &[i64]) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update jobs set due_at = greatest(due_at, now() + least((now() - created_at) / 4, interval '10 minutes'))
        where id = any($1) and kind = 'callback'
        "#,
        ids,
    )
    .execute(tx)
    .await?;
    Ok(())
}
