//! `GET /v1/admin/jobs`: the work that is not done, the next due first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::message::job::JobKind;
use serde::{Deserialize, Serialize};
use store::page::{Created, Mark};
use store::tables::job_list::{self, JobFilter, ListedJob};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::orders::names;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, mark, marked, page};
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "job";

/// Selects jobs. Each filter has an index.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobFilters {
    /// `callback` `check` `refund` `look_back`.
    #[param(example = "refund")]
    kind: Option<String>,
    /// Only jobs that are due at this time or later: RFC 3339, or a date in Beijing.
    due_from: Option<String>,
    /// Only jobs that are due before this time (RFC 3339), or until the end of this date in Beijing.
    due_to: Option<String>,
}

/// A job.
#[derive(Serialize, ToSchema)]
pub struct JobRow {
    /// The number of its row.
    id: i64,
    /// What it does.
    #[schema(example = "check")]
    kind: &'static str,
    /// The id of the order or of the refund; null for a callback.
    ref_id: Option<String>,
    /// When it is due.
    #[serde(with = "time::serde::rfc3339")]
    due_at: OffsetDateTime,
    /// Until then it is published, or a worker has it.
    #[serde(with = "time::serde::rfc3339::option")]
    lease_until: Option<OffsetDateTime>,
    /// How often it was tried.
    attempts: i32,
    /// How often it was published without an answer.
    publishes: i32,
    /// What went wrong last, in words.
    last_error: Option<String>,
    /// When it was first requested.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl JobRow {
    fn of(job: ListedJob) -> JobRow {
        JobRow {
            id: job.id,
            kind: job.kind.as_str(),
            ref_id: job.ref_id,
            due_at: job.due_at,
            lease_until: job.lease_until,
            attempts: job.attempts,
            publishes: job.publishes,
            last_error: job.last_error,
            created_at: job.created_at,
        }
    }
}

/// Jobs, the next due first.
#[derive(Serialize, ToSchema)]
pub struct JobRows {
    jobs: Vec<JobRow>,
    /// The cursor of the next page; null on the last page. A job that is moved meanwhile may come twice or not at all.
    next_cursor: Option<String>,
}

/// List the jobs that are not done, the next due first.
#[utoipa::path(
    get, path = "/v1/admin/jobs", tag = "admin", params(JobFilters, Slice), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of jobs", body = JobRows),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<JobFilters>>,
) -> Result<Json<JobRows>, ApiError> {
    let mut faults = Faults::default();
    let kind = faults.choice("kind", filter.kind.as_deref(), &names(JobKind::ALL, JobKind::as_str));
    let from = faults.begin("due_from", filter.due_from.as_deref());
    let to = faults.end("due_to", filter.due_to.as_deref());
    faults.ordered("due_to", from.as_ref(), to.as_ref());
    let (limit, after) = slice.read(&mut faults, LIST, |text| mark(text, |id| id.parse().ok()));
    faults.finish()?;
    let filter = JobFilter { kind, due: Created { from, to } };
    let found = to_the_end(async move { Ok(job_list::list(&app.db, &filter, after, limit).await?) }).await?;
    let (shown, next_cursor) = page(found, limit, |row| marked(LIST, &Mark { at: row.due_at, id: row.id }));
    Ok(Json(JobRows { jobs: shown.into_iter().map(JobRow::of).collect(), next_cursor }))
}
