//! `jobs`: durable due work. The message that the relay publishes is only the nudge.

use serde_json::Value;
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use super::DbError;
use crate::domain::{OrderId, RefundId};
use crate::job::Callback;

/// Proof that a callback is a committed row: only [`store_callback`] makes one.
#[derive(Debug)]
pub struct Stored(());

/// Commits a callback as a due job, in a statement of its own on a connection of its own.
///
/// # Errors
/// [`DbError`]; the callback is not stored then, or nobody knows.
pub async fn store_callback(pool: &PgPool, callback: &Callback, now: OffsetDateTime) -> Result<Stored, DbError> {
    insert_callback(pool, callback, now, now).await?;
    Ok(Stored(()))
}

/// Keeps a callback until `due_at`; its key is not known yet. Returns the number of the job.
///
/// # Errors
/// [`DbError`].
pub async fn insert_callback(
    db: impl PgExecutor<'_>,
    callback: &Callback,
    due_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<i64, DbError> {
    let payload = serde_json::to_value(callback).map_err(|e| DbError::Failed(sqlx::Error::Encode(e.into())))?;
    Ok(sqlx::query_scalar!(
        "insert into jobs (kind, payload, due_at, created_at) values ('callback', $1, $2, $3) returning id",
        payload,
        due_at,
        now,
    )
    .fetch_one(db)
    .await?)
}

/// Puts a job off and says why. The row may be gone: somebody else reached a verdict.
///
/// # Errors
/// [`DbError`].
pub async fn postpone(tx: &mut PgConnection, id: i64, due_at: OffsetDateTime, reason: &str) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update jobs
        set due_at = $2, lease_until = null, publishes = 0, fence = fence + 1, attempts = attempts + 1, last_error = $3
        where id = $1
        "#,
        id,
        due_at,
        reason,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes the jobs that held callbacks with a verdict.
///
/// # Errors
/// [`DbError`].
pub async fn delete_callbacks(tx: &mut PgConnection, ids: &[i64]) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where kind = 'callback' and id = any($1)", ids).execute(tx).await?;
    Ok(())
}

/// Deletes the job that a dead callback came as, where it holds these very bytes (in base64): whoever forges a number ends
/// nothing, and what is deleted is in the letter's case.
///
/// # Errors
/// [`DbError`].
pub async fn delete_dead_callback(tx: &mut PgConnection, id: i64, body: &str) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where id = $1 and kind = 'callback' and payload->>'body' = $2", id, body)
        .execute(tx)
        .await?;
    Ok(())
}

/// What a job is about.
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

/// Drops the check jobs of orders that need none any more.
///
/// # Errors
/// [`DbError`].
pub async fn drop_checks(tx: &mut PgConnection, orders: &[OrderId]) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where kind = 'check' and ref_id = any($1::bpchar[])", orders as &[OrderId])
        .execute(tx)
        .await?;
    Ok(())
}

/// A job in a worker's hands.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Which row.
    pub id: i64,
    /// Whoever holds an older one has lost the job.
    pub fence: i64,
    /// The row that the job is about.
    pub ref_id: String,
    /// How often it was tried.
    pub attempts: i32,
    /// What was asked of it beside its kind.
    pub payload: Value,
}

impl Taken {
    /// The same job with something else asked of it beside its kind.
    pub fn asking(&self, payload: Value) -> Taken {
        Taken { payload, ..self.clone() }
    }
}

/// Takes a job for work until `lease_until`. `None`: the message is a repeat, or the job is done.
///
/// # Errors
/// [`DbError`].
pub async fn take(
    db: impl PgExecutor<'_>,
    id: i64,
    fence: i64,
    lease_until: OffsetDateTime,
) -> Result<Option<Taken>, DbError> {
    Ok(sqlx::query_as!(
        Taken,
        r#"
        update jobs set fence = fence + 1, lease_until = $3
        where id = $1 and fence = $2 and ref_id is not null
        returning id, fence, ref_id as "ref_id!", attempts, payload
        "#,
        id,
        fence,
        lease_until,
    )
    .fetch_optional(db)
    .await?)
}

/// Ends a job. One that was taken away meanwhile goes on in other hands.
///
/// # Errors
/// [`DbError`].
pub async fn finish(tx: &mut PgConnection, job: &Taken) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where id = $1 and fence = $2", job.id, job.fence).execute(tx).await?;
    Ok(())
}

/// What a job that goes on costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Waiting is no failure.
    Nothing,
    /// One attempt.
    Attempt,
}

/// Sets when a job is due again, with what is asked of it then. False: it was taken away meanwhile and goes on in other
/// hands, so nothing of what was learnt here may stand but facts.
///
/// # Errors
/// [`DbError`].
pub async fn again(
    tx: &mut PgConnection,
    job: &Taken,
    due_at: OffsetDateTime,
    cost: Cost,
    reason: &str,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        r#"
        update jobs
        set due_at = $3, lease_until = null, publishes = 0, fence = fence + 1, attempts = attempts + $4,
            last_error = $5, payload = $6
        where id = $1 and fence = $2
        "#,
        job.id,
        job.fence,
        due_at,
        i32::from(cost == Cost::Attempt),
        reason,
        job.payload,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Makes the job of a row due at `due_at`, whether there is one or not. What was asked of it before stays asked.
///
/// # Errors
/// [`DbError`].
pub async fn ask_at(
    db: impl PgExecutor<'_>,
    kind: &str,
    ref_id: &str,
    payload: &Value,
    due_at: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into jobs (kind, ref_id, payload, due_at, created_at) values ($1, $2, $3, $4, $4)
        on conflict (kind, ref_id) where ref_id is not null do update
        set due_at = $4, lease_until = null, publishes = 0, fence = jobs.fence + 1, payload = jobs.payload || $3
        "#,
        kind,
        ref_id,
        payload,
        due_at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Drops the refund job of a refund that needs none any more.
///
/// # Errors
/// [`DbError`].
pub async fn drop_refund(tx: &mut PgConnection, id: RefundId) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where kind = 'refund' and ref_id = $1", id as RefundId).execute(tx).await?;
    Ok(())
}

/// A job as a person looks at it.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Which row.
    pub id: i64,
    /// What it does.
    pub kind: String,
    /// When it is due.
    pub due_at: OffsetDateTime,
    /// Published or in a worker's hands until then.
    pub lease_until: Option<OffsetDateTime>,
    /// How often it was tried.
    pub attempts: i32,
    /// The last trouble, in words.
    pub last_error: Option<String>,
    /// By our clock.
    pub created_at: OffsetDateTime,
}

/// The jobs about these rows (orders and refunds), the next one first.
///
/// # Errors
/// [`DbError`].
pub async fn about(db: impl PgExecutor<'_>, ref_ids: &[String]) -> Result<Vec<Standing>, DbError> {
    Ok(sqlx::query_as!(
        Standing,
        r#"
        select id, kind, due_at, lease_until, attempts, last_error, created_at
        from jobs
        where kind in ('check', 'refund') and ref_id = any($1::text[]::bpchar[])
        order by due_at
        "#,
        ref_ids,
    )
    .fetch_all(db)
    .await?)
}

/// A job whose time has come, leased to the relay.
pub struct Due {
    /// Which row.
    pub id: i64,
    /// Whoever works on it must hold this.
    pub fence: i64,
    /// What it holds.
    pub payload: Value,
}

/// Which due jobs to lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Those that were never published, and those whose lease has ended without an answer.
    All,
    /// Only those that were never published: the queue is long, and a repeat would make it longer.
    Fresh,
}

/// Leases due jobs of a kind, oldest first. A job that was published and not answered comes again when its lease ends;
/// the lease doubles each time, from 1 minute to 1 hour.
///
/// # Errors
/// [`DbError`].
pub async fn lease_due(
    connection: &mut PgConnection,
    kind: &str,
    which: Lease,
    limit: i64,
    now: OffsetDateTime,
) -> Result<Vec<Due>, DbError> {
    Ok(sqlx::query_as!(
        Due,
        r#"
        update jobs j
        set lease_until = $3::timestamptz + least(interval '1 hour', interval '1 minute' * (1 << least(j.publishes, 6))),
            publishes = j.publishes + 1,
            fence = j.fence + 1
        from (
          select id from jobs
          where kind = $1 and due_at <= $3 and (lease_until is null or ($4 and lease_until <= $3))
          order by due_at
          limit $2
          for update skip locked
        ) due
        where j.id = due.id
        returning j.id, j.fence, j.payload
        "#,
        kind,
        limit,
        now,
        which == Lease::All,
    )
    .fetch_all(connection)
    .await?)
}

/// Ends leases, each of a job's id and fence: what was to be published did not arrive, for all we know. It is due again at
/// `retry_at`. A job that did arrive and is in a worker's hands stays there.
///
/// # Errors
/// [`DbError`].
pub async fn release(
    connection: &mut PgConnection,
    leases: &[(i64, i64)],
    retry_at: OffsetDateTime,
) -> Result<(), DbError> {
    let (ids, fences): (Vec<i64>, Vec<i64>) = leases.iter().copied().unzip();
    sqlx::query!(
        r#"
        update jobs j
        set lease_until = null, publishes = greatest(publishes - 1, 0), due_at = $3
        from unnest($1::bigint[], $2::bigint[]) as l (id, fence)
        where j.id = l.id and j.fence = l.fence
        "#,
        &ids,
        &fences,
        retry_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends every lease: the broker was wiped. Returns how many there were.
///
/// # Errors
/// [`DbError`].
pub async fn clear_leases(connection: &mut PgConnection) -> Result<u64, DbError> {
    let done = sqlx::query!("update jobs set lease_until = null, publishes = 0 where lease_until is not null")
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// How many jobs of a kind are due, and the age of the oldest.
///
/// # Errors
/// [`DbError`].
pub async fn backlog(db: impl PgExecutor<'_>, kind: &str, now: OffsetDateTime) -> Result<(i64, Duration), DbError> {
    let row = sqlx::query!(
        r#"select count(*) as "count!", min(due_at) as oldest from jobs where kind = $1 and due_at <= $2"#,
        kind,
        now,
    )
    .fetch_one(db)
    .await?;
    Ok((row.count, row.oldest.map_or(Duration::ZERO, |oldest| now - oldest)))
}
