//! Simulates the passing of time for jobs. Due times and leases use the database's clock, so a test changes the
//! rows and not a clock.

use domain::message::job::{JobKind, JobMessage};
use sqlx::PgPool;

/// Makes jobs of this kind due that are not due yet, and leaves their leases unchanged; `None` means every kind.
///
/// # Panics
/// When the database refuses.
pub async fn come_due(db: &PgPool, kind: Option<JobKind>) {
    let sql = "update jobs set due_at = now() where due_at > now() and ($1::text is null or kind = $1)";
    sqlx::query(sql).bind(kind.map(JobKind::as_str)).execute(db).await.expect("jobs come due");
}

/// Ends leases as if they had expired, and makes the jobs due.
///
/// # Panics
/// When the database refuses.
pub async fn leases_end(db: &PgPool, kind: Option<JobKind>) {
    let sql = "update jobs set due_at = least(due_at, now()), lease_until = least(lease_until, now())
        where $1::text is null or kind = $1";
    sqlx::query(sql).bind(kind.map(JobKind::as_str)).execute(db).await.expect("leases end");
}

/// The same for the jobs about these orders and refunds.
///
/// # Panics
/// When the database refuses.
pub async fn leases_end_of(db: &PgPool, ref_ids: &[&str]) {
    let sql = "update jobs set due_at = least(due_at, now()), lease_until = least(lease_until, now())
        where ref_id = any($1::bpchar[])";
    sqlx::query(sql).bind(ref_ids).execute(db).await.expect("leases end");
}

/// Leases a job as the relay does, even if it is not due, and returns the message that the relay would publish.
/// `None` if there is no such job.
///
/// # Panics
/// When the database refuses.
pub async fn publish(db: &PgPool, kind: JobKind, ref_id: &str) -> Option<JobMessage> {
    let sql = "update jobs
        set due_at = least(due_at, now()), lease_until = now() + interval '1 minute', publishes = publishes + 1,
            fence = (random() * 1e15)::bigint
        where kind = $1 and ref_id = $2 returning id, fence";
    let job = sqlx::query_as(sql).bind(kind.as_str()).bind(ref_id).fetch_optional(db).await.expect("a lease");
    job.map(|(id, fence)| JobMessage { id, fence })
}
