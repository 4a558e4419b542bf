//! `jobs`: durable work with a due time. The message that the relay publishes is only a nudge.
//!
//! Due times and leases use the database's clock. Callers pass durations; the statements add them to `now()` and
//! compare with `now()`, the start of their short transaction. So processes whose clocks differ agree on what is due. A
//! message changes a row only if it belongs to the row: a nudge by its fence, a callback by its bytes
//! (ops/decisions/0017).

use std::time::Instant;

use domain::message::job::{JobKind, JobMessage, JobRequest};
use domain::{OrderId, RefundId};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::DbError;

mod callbacks;

pub(super) use callbacks::proof;
pub use callbacks::{Stored, delete_callbacks, has_row, insert_callback, postpone, slow_down, store_callback};

/// The shortest wait before a job is due again, so that no job runs in a tight loop.
const FLOOR: Duration = Duration::seconds(1);

/// Milliseconds until a job is due again.
fn again_in(wait: Duration) -> i64 {
    millis(wait.max(FLOOR))
}

/// A wait in milliseconds for the statements, rounded up. A job that became due too early would run twice.
pub(super) fn millis(wait: Duration) -> i64 {
    let millis = wait.whole_milliseconds() + i128::from(wait.subsec_nanoseconds() % 1_000_000 > 0);
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// Deletes a leased job whose payload cannot be read; a case holds the payload.
///
/// # Errors
/// [`DbError`].
pub async fn delete_unreadable(tx: &mut PgConnection, job: &Due) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where id = $1 and fence = $2", job.id, job.fence).execute(tx).await?;
    Ok(())
}

/// What a job is about.
#[derive(Debug, Clone)]
pub struct Work {
    /// What it does. As text: an older build shows a kind that it does not know, too.
    pub kind: String,
    /// The order or refund that it is about.
    pub ref_id: Option<String>,
}

/// What a check or refund job is about; `None` when it has ended.
///
/// # Errors
/// [`DbError`].
pub async fn work(tx: &mut PgConnection, id: i64) -> Result<Option<Work>, DbError> {
    let found = sqlx::query_as!(Work, "select kind, ref_id from jobs where id = $1 and ref_id is not null", id);
    Ok(found.fetch_optional(tx).await?)
}

/// Deletes the check jobs of orders that were paid, and creates a look back a day later for each: people can refund in
/// the gateway's console. Requests of people that the check has not carried out yet move to the look back, which is
/// then due now.
///
/// # Errors
/// [`DbError`].
pub async fn end_checks(tx: &mut PgConnection, orders: &[OrderId]) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        with ended as (
          delete from jobs where kind = 'check' and ref_id = any($1::bpchar[])
          returning ref_id, (
            select coalesce(jsonb_object_agg(name, value), '{}') from jsonb_each(payload) as asked (name, value)
            where name like 'case:%'
          ) as asked
        )
        insert into jobs (kind, ref_id, payload, due_at, created_at)
        select 'look_back', ref_id, asked, case asked when '{}' then now() + interval '1 day' else now() end, now()
        from ended
        on conflict (kind, ref_id) where ref_id is not null do update
        set due_at = excluded.due_at, lease_until = null, publishes = 0, fence = jobs.fence + 1,
            payload = jobs.payload || excluded.payload
        where excluded.payload <> '{}'
        "#,
        orders as &[OrderId],
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A job that a worker has claimed.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Which row.
    pub id: i64,
    /// The fence. A worker with an older fence has lost the job.
    pub fence: i64,
    /// The row that the job is about.
    pub ref_id: String,
    /// How often it was tried.
    pub attempts: i32,
    /// What it does.
    pub kind: JobKind,
    /// The requests to it, beside its kind.
    pub payload: Value,
    /// When it was claimed, by the database's clock.
    taken_at: OffsetDateTime,
    /// The same moment by this machine's monotonic clock.
    since: Instant,
}

impl Taken {
    /// The same job with other requests in its payload.
    pub fn requesting(&self, payload: Value) -> Taken {
        Taken { payload, ..self.clone() }
    }

    /// Now, by the database's clock. Everything that decides when a job is due again uses this time, so a worker with a
    /// wrong clock still works on schedule.
    pub fn now(&self) -> OffsetDateTime {
        self.taken_at + self.since.elapsed()
    }
}

/// Claims a published job of one of these kinds for work, for the time of `lease`. `None`: the message is a repeat or
/// forged, or the job is finished or postponed.
///
/// A job can be claimed only while the relay has leased it. The fence that the relay draws proves that a message comes
/// from the relay.
///
/// # Errors
/// [`DbError`].
pub async fn take(
    db: impl PgExecutor<'_>,
    kinds: &[JobKind],
    nudge: JobMessage,
    lease: Duration,
) -> Result<Option<Taken>, DbError> {
    let row = sqlx::query!(
        r#"
        update jobs
        set fence = fence + 1, lease_until = now() + $4::bigint * interval '1 millisecond', taken_at = now()
        where id = $1 and fence = $2 and kind = any($3) and ref_id is not null and lease_until is not null
          and due_at <= now()
        returning id, fence, ref_id as "ref_id!", attempts, kind as "kind: JobKind", payload, now() as "now!"
        "#,
        nudge.id,
        nudge.fence,
        kinds as &[JobKind],
        millis(lease),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Taken {
        id: row.id,
        fence: row.fence,
        ref_id: row.ref_id,
        attempts: row.attempts,
        kind: row.kind,
        payload: row.payload,
        taken_at: row.now,
        since: Instant::now(),
    }))
}

/// Deletes a finished job. If this worker has lost the job in the meantime, another worker continues it.
///
/// # Errors
/// [`DbError`].
pub async fn finish(tx: &mut PgConnection, job: &Taken) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where id = $1 and fence = $2", job.id, job.fence).execute(tx).await?;
    Ok(())
}

/// The cost of making a job due again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// No attempt: waiting is no failure.
    Nothing,
    /// One attempt.
    Attempt,
}

/// Makes a job due again after `wait` (at least 1 s), with the requests in its payload. False: this worker has lost the
/// job, and another worker continues it. Then the caller may keep only facts, and must discard every other result.
///
/// # Errors
/// [`DbError`].
pub async fn again(
    tx: &mut PgConnection,
    job: &Taken,
    wait: Duration,
    cost: Cost,
    reason: &str,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        r#"
        update jobs
        set due_at = now() + $3::bigint * interval '1 millisecond', lease_until = null, publishes = 0, fence = fence + 1,
            attempts = attempts + $4, last_error = $5, payload = $6
        where id = $1 and fence = $2
        "#,
        job.id,
        job.fence,
        again_in(wait),
        i32::from(cost == Cost::Attempt),
        reason,
        job.payload,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Makes the job of a row due after `wait`, and creates it if there is none. Earlier requests in its payload stay.
///
/// # Errors
/// [`DbError`].
pub async fn request(db: impl PgExecutor<'_>, job: &JobRequest, wait: Duration) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into jobs (kind, ref_id, payload, due_at, created_at)
        values ($1, $2, $3, now() + $4::bigint * interval '1 millisecond', now())
        on conflict (kind, ref_id) where ref_id is not null do update
        set due_at = excluded.due_at, lease_until = null, publishes = 0, fence = jobs.fence + 1,
            payload = jobs.payload || $3
        "#,
        job.kind() as JobKind,
        job.ref_id(),
        job.payload(),
        millis(wait),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes the refund job of a refund that no longer needs one.
///
/// # Errors
/// [`DbError`].
pub async fn drop_refund(tx: &mut PgConnection, id: RefundId) -> Result<(), DbError> {
    sqlx::query!("delete from jobs where kind = 'refund' and ref_id = $1", id as RefundId).execute(tx).await?;
    Ok(())
}

/// A job as an operator sees it.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Which row.
    pub id: i64,
    /// What it does.
    pub kind: JobKind,
    /// When it is due.
    pub due_at: OffsetDateTime,
    /// Until then it is published, or claimed by a worker.
    pub lease_until: Option<OffsetDateTime>,
    /// How often it was tried.
    pub attempts: i32,
    /// The last error, in words.
    pub last_error: Option<String>,
    /// When it was first requested.
    pub created_at: OffsetDateTime,
}

/// The jobs about these rows (orders and refunds), the next one first.
///
/// # Errors
/// [`DbError`].
pub async fn about(db: impl PgExecutor<'_>, ref_ids: &[String]) -> Result<Vec<Standing>, DbError> {
    let nudged: Vec<JobKind> = JobKind::ALL.iter().copied().filter(|kind| kind.spec().is_nudged).collect();
    Ok(sqlx::query_as!(
        Standing,
        r#"
        select id, kind as "kind: JobKind", due_at, lease_until, attempts, last_error, created_at
        from jobs
        where kind = any($2) and ref_id = any($1::text[]::bpchar[])
        order by due_at
        "#,
        ref_ids,
        &nudged as &[JobKind],
    )
    .fetch_all(db)
    .await?)
}

/// A due job, leased to the relay.
pub struct Due {
    /// Which row.
    pub id: i64,
    /// A worker must present this fence to claim the job: 60 random bits, drawn for this lease.
    pub fence: i64,
    /// Its payload.
    pub payload: Value,
}

/// Which due jobs to lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Those that were never published, and those whose lease has ended before a worker finished or rescheduled them.
    All,
    /// Only those that were never published: the queue is long, and a repeat would make it longer.
    Fresh,
}

/// Leases due jobs of a kind, oldest first. A job that was published and not finished is leased again when its lease
/// ends; the lease doubles each time, from 1 minute to 1 hour. Each lease draws a fence that cannot be guessed. So only
/// the message that is published for this lease can claim the job: a forged message cannot, nor one from before a
/// restore of the database.
///
/// # Errors
/// [`DbError`].
pub async fn lease_due(
    connection: &mut PgConnection,
    kind: JobKind,
    which: Lease,
    limit: i64,
) -> Result<Vec<Due>, DbError> {
    Ok(sqlx::query_as!(
        Due,
        r#"
        update jobs j
        set lease_until = now() + least(interval '1 hour', interval '1 minute' * (1 << least(j.publishes, 6))),
            publishes = j.publishes + 1,
            -- The last 15 hex digits of a random UUID are all random.
            fence = ('x' || right(replace(gen_random_uuid()::text, '-', ''), 15))::bit(60)::bigint
        from (
          select id from jobs
          where kind = $1 and due_at <= now() and (lease_until is null or ($3 and lease_until <= now()))
          order by due_at
          limit $2
          for update skip locked
        ) due
        where j.id = due.id
        returning j.id, j.fence, j.payload
        "#,
        kind as JobKind,
        limit,
        which == Lease::All,
    )
    .fetch_all(connection)
    .await?)
}

/// Ends leases, each given by a job's id and fence, because the publish was not confirmed. The job is due again after
/// `wait`. If the message arrived anyway and a worker has claimed the job, the worker stays its owner. Otherwise no
/// worker can claim the job with that message any more.
///
/// # Errors
/// [`DbError`].
pub async fn release(connection: &mut PgConnection, leases: &[(i64, i64)], wait: Duration) -> Result<(), DbError> {
    let (ids, fences): (Vec<i64>, Vec<i64>) = leases.iter().copied().unzip();
    sqlx::query!(
        r#"
        update jobs j
        set lease_until = null, publishes = greatest(publishes - 1, 0),
            due_at = now() + $3::bigint * interval '1 millisecond'
        from unnest($1::bigint[], $2::bigint[]) as l (id, fence)
        where j.id = l.id and j.fence = l.fence
        "#,
        &ids,
        &fences,
        again_in(wait),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends every lease, because the broker was wiped. Returns the number of leases.
///
/// # Errors
/// [`DbError`].
pub async fn clear_leases(connection: &mut PgConnection) -> Result<u64, DbError> {
    let done = sqlx::query!("update jobs set lease_until = null, publishes = 0 where lease_until is not null")
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// How many jobs of a kind are due, and how long the oldest of them has been due.
///
/// # Errors
/// [`DbError`].
pub async fn backlog(db: impl PgExecutor<'_>, kind: JobKind) -> Result<(i64, Duration), DbError> {
    let row = sqlx::query!(
        r#"
        select count(*) as "count!", coalesce(extract(epoch from now() - min(due_at)) * 1000, 0)::bigint as "oldest!"
        from jobs where kind = $1 and due_at <= now()
        "#,
        kind as JobKind,
    )
    .fetch_one(db)
    .await?;
    Ok((row.count, Duration::milliseconds(row.oldest)))
}
