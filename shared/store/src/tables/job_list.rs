//! `jobs` for the people who see what waits: the next due first. A row is work that is not done; its payload is not read.

use domain::message::job::JobKind;
use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, Mark};

/// Which jobs to list. A filter that is `None` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs of this kind.
    pub kind: Option<JobKind>,
    /// Only jobs that are due then.
    pub due: Created,
}

/// A job of the list.
#[derive(Debug, Clone)]
pub struct ListedJob {
    /// The number of the row.
    pub id: i64,
    /// What it does.
    pub kind: JobKind,
    /// The order or the refund. `None`: a callback.
    pub ref_id: Option<String>,
    /// When it is due.
    pub due_at: OffsetDateTime,
    /// Until then it is published, or claimed by a worker.
    pub lease_until: Option<OffsetDateTime>,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it was published without an answer.
    pub publishes: i32,
    /// The last error, in words.
    pub last_error: Option<String>,
    /// When it was first requested.
    pub created_at: OffsetDateTime,
}

/// One page, the next due first; only jobs after `after`. The first rows of each kind are read from its part of the index, and
/// then merged: look-backs of paid orders are many, and all other kinds are few.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &JobFilter,
    after: Option<Mark<i64>>,
    limit: i64,
) -> Result<Vec<ListedJob>, DbError> {
    let kinds = filter.kind.map_or_else(|| JobKind::ALL.to_vec(), |kind| vec![kind]);
    let first = filter.due.since(after);
    Ok(sqlx::query_as!(
        ListedJob,
        r#"
        select j.id, j.kind as "kind: JobKind", j.ref_id::text as ref_id, j.due_at,
          case when j.lease_until <= timestamptz '9999-12-31 00:00Z' then j.lease_until end as lease_until,
          j.attempts, j.publishes, j.last_error, j.created_at
        from unnest($1::text[]) as wanted (kind)
        cross join lateral (
          select id, kind, ref_id, due_at, lease_until, attempts, publishes, last_error, created_at
          from jobs
          where kind = wanted.kind and (due_at, id) > ($2, $3) and due_at < $4
          order by due_at, id
          limit $5
        ) j
        order by j.due_at, j.id
        limit $5
        "#,
        &kinds as &[JobKind],
        first.at,
        first.id,
        filter.due.end(),
        limit,
    )
    .fetch_all(db)
    .await?)
}
