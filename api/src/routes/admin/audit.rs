//! `GET /v1/admin/audit`: what people did, and what was done with keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::page::{Created, Mark};
use store::tables::audit_list::{self, ActFilter, ListedAct};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, is_bounded, mark, marked, part};
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "act";
const NEEDS_RANGE: &str = "these filters need a range: give from and to, at most 31 days apart, or object";

/// Selects acts. Without `object`, the filters `subject` and `act` need `from` and `to`, at most 31 days apart.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ActFilters {
    /// Only acts of this person or program, as `subject` names it.
    #[param(example = "paymentctl/alice")]
    subject: Option<String>,
    /// Only acts of this kind.
    #[param(example = "case.confirmed")]
    act: Option<String>,
    /// Only acts on this object.
    #[param(example = "key:0123456789abcdef")]
    object: Option<String>,
    /// Only acts of this time or later: RFC 3339, or a date in Beijing.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// Only acts before this time (RFC 3339), or until the end of this date in Beijing. Absent: now.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

impl ActFilters {
    fn read(&self, faults: &mut Faults) -> ActFilter {
        let text = Option::as_deref;
        let (from, to) = (faults.begin("from", text(&self.from)), faults.end("to", text(&self.to)));
        faults.ordered("to", from.as_ref(), to.as_ref());
        let mut name = |field: &str, value: &Option<String>, most: usize| {
            let fits = |name: &str| fits(name, most).then(|| name.to_owned());
            faults.read(field, text(value), fits, &format!("must be 1 to {most} characters without control characters"))
        };
        ActFilter {
            subject: name("subject", &self.subject, 64),
            act: name("act", &self.act, 40),
            object: name("object", &self.object, 160),
            done: Created { from, to },
        }
    }
}

fn fits(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.chars().count()) && !name.chars().any(char::is_control)
}

/// An act.
#[derive(Serialize, ToSchema)]
pub struct ActRow {
    /// The number of its row.
    id: i64,
    /// When it was done, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// Who did it.
    #[schema(example = "paymentctl/alice")]
    subject: String,
    /// The issuer that proved the subject.
    issuer: Option<String>,
    /// The key that proved it.
    key_id: Option<String>,
    /// The session.
    session: Option<String>,
    /// The user that was logged in to the database.
    #[schema(example = "payment_api")]
    database_user: String,
    /// What was done.
    #[schema(example = "case.confirmed")]
    act: String,
    /// The object of the act.
    #[schema(example = "key:0123456789abcdef")]
    object: String,
    /// Further details.
    #[schema(value_type = Object)]
    detail: Value,
}

impl ActRow {
    fn of(act: ListedAct) -> ActRow {
        let ListedAct { id, at, subject, issuer, key_id, session, database_user, act, object, detail } = act;
        ActRow { id, at, subject, issuer, key_id, session, database_user, act, object, detail }
    }
}

/// Acts, newest first.
#[derive(Serialize, ToSchema)]
pub struct ActRows {
    acts: Vec<ActRow>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// List what people did, newest first. `paymentctl audit verify` shows whether the log was changed.
#[utoipa::path(
    get, path = "/v1/admin/audit", tag = "admin", params(ActFilters, Slice), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of acts", body = ActRows),
        (status = 400, description = "`invalid_fields`; `range_required`: a filter without an index needs a range of at most 31 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<ActFilters>>,
) -> Result<Json<ActRows>, ApiError> {
    let mut faults = Faults::default();
    let filter = filter.read(&mut faults);
    let (limit, before) = slice.read(&mut faults, LIST, |text| mark(text, |id| id.parse().ok()));
    faults.finish()?;
    if filter.reads_on() && !is_bounded(&filter.done, app.clock.now()) {
        return Err(ApiError::RangeRequired(NEEDS_RANGE));
    }
    let found = to_the_end(async move { Ok(audit_list::part(&app.db, &filter, before, limit).await?) }).await?;
    let (shown, next_cursor) = part(found, limit, |row| Mark { at: row.at, id: row.id }, |mark| marked(LIST, &mark));
    Ok(Json(ActRows { acts: shown.into_iter().map(ActRow::of).collect(), next_cursor }))
}
