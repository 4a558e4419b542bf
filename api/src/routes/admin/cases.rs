//! Cases: problems that a person must handle. An action that moves money is proposed by one person and confirmed by
//! another.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use domain::{CaseId, CaseKind, CaseStatus, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::DbError;
use store::cache::Changed;
use store::settle::events;
use store::settle::strays;
use store::tables::audit::{self, Act};
use store::tables::cases::{self, Case};
use store::tables::dead_letters;
use store::tables::{case_facts, events as outbox, extra, orders};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

use super::actions::{Action, carry_out, check, note};
use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Person;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, text};
use crate::routes::listing::{Faults, Known, page};
use crate::state::App;

/// A case.
#[derive(Serialize, ToSchema)]
pub struct CaseView {
    /// 32 hex digits.
    id: String,
    /// The kind of problem.
    #[schema(example = "late_payment")]
    kind: String,
    /// The order, if one is known.
    order_id: Option<String>,
    /// What the case is about: the gateway's number of a trade, our number of a refund, or another text.
    subject_ref: String,
    /// The old name of `subject_ref`. A later release removes it.
    #[schema(deprecated)]
    number: String,
    /// The known facts.
    #[schema(value_type = Object)]
    evidence: Value,
    /// `open` `proposed` `resolved`.
    status: String,
    /// Increases with each step. `confirm` names the version that was seen.
    version: i64,
    /// The person who proposed the action.
    proposed_by: Option<String>,
    /// The action that waits for confirmation, or that was confirmed.
    #[schema(value_type = Option<Object>)]
    proposed_action: Option<Value>,
    /// What is possible for the case now: an `action` of `propose`, or `reopen` for a resolved case.
    #[schema(example = json!(["refund", "fulfil", "note"]))]
    actions: Vec<&'static str>,
    /// How the case was resolved.
    resolution: Option<String>,
    /// Who resolved the case.
    resolved_by: Option<String>,
    /// Who did what and when, oldest first.
    #[schema(value_type = Vec<Object>)]
    history: Value,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl CaseView {
    fn of(case: Case) -> CaseView {
        let actions = strays::actions(&case).iter().map(|action| action.as_str()).collect();
        CaseView {
            actions,
            id: case.id.to_string(),
            kind: case.kind.to_string(),
            order_id: case.order_id.map(|id| id.to_string()),
            number: case.subject_ref.clone(),
            subject_ref: case.subject_ref,
            evidence: dead_letters::without_bytes(case.evidence),
            status: case.status.to_string(),
            version: case.version,
            proposed_by: case.proposed_by,
            proposed_action: case.proposed_action,
            resolution: case.resolution,
            resolved_by: case.resolved_by,
            history: case.history,
            created_at: case.created_at,
            updated_at: case.updated_at,
        }
    }
}

/// Cases, newest first.
#[derive(Serialize, ToSchema)]
pub struct CasePage {
    cases: Vec<CaseView>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// Selects a part of the list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CaseFilter {
    /// `open` `proposed` `resolved`.
    status: Option<String>,
    /// Only cases of this kind.
    kind: Option<String>,
    /// 1 to 100, 20 when absent.
    #[param(value_type = Option<u8>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// List cases, newest first.
#[utoipa::path(
    get, path = "/v1/admin/cases", tag = "admin", params(CaseFilter), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of cases", body = CasePage),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(State(app): State<Arc<App>>, Known(filter): Known<CaseFilter>) -> Result<Json<CasePage>, ApiError> {
    let mut faults = Faults::default();
    let limit = faults.limit(filter.limit.as_deref()) + 1;
    let before = faults.cursor(filter.cursor.as_deref(), |id| CaseId::parse(id).ok());
    let states: Vec<&str> = CaseStatus::ALL.iter().map(|status| status.as_str()).collect();
    let status = faults.choice("status", filter.status.as_deref(), &states);
    let kinds: Vec<&str> = CaseKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let kind = faults.choice("kind", filter.kind.as_deref(), &kinds);
    faults.finish()?;
    let filter = cases::Filter { status, kind, reopened: false };
    let found = to_the_end(async move { Ok(cases::list(&app.db, filter, before, limit).await?) }).await?;
    let (shown, next_cursor) = page(found, limit, |case| case.id.to_string());
    Ok(Json(CasePage { cases: shown.into_iter().map(CaseView::of).collect(), next_cursor }))
}

/// Get a case with its evidence.
#[utoipa::path(
    get, path = "/v1/admin/cases/{id}", tag = "admin", security(("backend" = ["payments:read"])),
    params(("id" = String, Path, description = "The case's id")),
    responses(
        (status = 200, description = "The case", body = CaseView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`case_not_found`", body = Problem),
    )
)]
pub async fn get(State(app): State<Arc<App>>, CasePath(id): CasePath) -> Result<Json<CaseView>, ApiError> {
    to_the_end(async move { seen(&app, id).await }).await
}

/// A note that resolves a case.
#[derive(Serialize, ToSchema)]
pub struct Resolve {
    /// What was found and done, at most 2000 characters.
    pub note: String,
}

/// Resolve a case with a note. This moves no money, so one person is enough. A waiting proposal is dropped.
///
/// A note on an `unknown_refund` makes the order's money refundable again, so it only becomes a proposal.
#[utoipa::path(
    post, path = "/v1/admin/cases/{id}/resolve", tag = "admin", request_body = Resolve,
    security(("staff" = ["payments:cases.propose"])),
    params(("id" = String, Path, description = "The case's id")),
    responses(
        (status = 200, description = "The case, resolved", body = CaseView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`case_not_found`", body = Problem),
        (status = 409, description = "`case_resolved`, `case_changed`", body = Problem),
    )
)]
pub async fn resolve(
    State(app): State<Arc<App>>,
    Person(who): Person,
    CasePath(id): CasePath,
    JsonBytes(body): JsonBytes,
) -> Result<Json<CaseView>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let note = fields.required("note", text(note));
    fields.finish()?;
    let action = Action::Note { note: note.unwrap_or_default() };
    to_the_end(async move { put(&app, id, &who, action).await }).await
}

/// Propose an action for a case.
///
/// A `note` takes effect at once, except on an `unknown_refund`. Every other action waits for another person. A new
/// proposal replaces the previous one.
#[utoipa::path(
    post, path = "/v1/admin/cases/{id}/propose", tag = "admin", request_body = Action,
    security(("staff" = ["payments:cases.propose"])),
    params(("id" = String, Path, description = "The case's id")),
    responses(
        (status = 200, description = "The case with the proposal", body = CaseView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`case_not_found`", body = Problem),
        (status = 409, description = "`case_resolved`, `case_changed`, `action_unfit`", body = Problem),
    )
)]
pub async fn propose(
    State(app): State<Arc<App>>,
    Person(who): Person,
    CasePath(id): CasePath,
    JsonBytes(body): JsonBytes,
) -> Result<Json<CaseView>, ApiError> {
    let action = Action::parse(&body)?;
    to_the_end(async move { put(&app, id, &who, action).await }).await
}

/// The confirmation of a proposal.
#[derive(Serialize, ToSchema)]
pub struct Confirm {
    /// The `version` of the case in which the proposal was seen.
    pub version: i64,
}

/// Confirm what another person has proposed.
///
/// The action is carried out at once. But `fulfil`, `book_refund`, `abnormal_refund` and `accept_amount` only request
/// work from a worker, because the gateway has to answer first. The history states what was requested, and the case
/// stays open until it is done.
#[utoipa::path(
    post, path = "/v1/admin/cases/{id}/confirm", tag = "admin", request_body = Confirm,
    security(("staff" = ["payments:cases.confirm"])),
    params(("id" = String, Path, description = "The case's id")),
    responses(
        (status = 200, description = "The case after the action", body = CaseView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`, `same_person`", body = Problem),
        (status = 404, description = "`case_not_found`", body = Problem),
        (status = 409, description = "`case_resolved`, `case_not_proposed`, `case_changed`, `action_unfit`, and the codes of a refund", body = Problem),
    )
)]
pub async fn confirm(
    State(app): State<Arc<App>>,
    caller: Caller,
    CasePath(id): CasePath,
    JsonBytes(body): JsonBytes,
) -> Result<Json<CaseView>, ApiError> {
    let version = version(&body)?;
    caller.signed_in_recently(app.clock.now())?;
    let who = caller.person()?.clone();
    to_the_end(async move { act(&app, id, &who, version).await }).await
}

/// The reason for reopening a case.
#[derive(Serialize, ToSchema)]
pub struct Reopen {
    /// What was learnt, or what was done by mistake, at most 2000 characters.
    pub reason: String,
}

/// Reopen a resolved case. This moves no money, so one person is enough.
#[utoipa::path(
    post, path = "/v1/admin/cases/{id}/reopen", tag = "admin", request_body = Reopen,
    security(("staff" = ["payments:cases.propose"])),
    params(("id" = String, Path, description = "The case's id")),
    responses(
        (status = 200, description = "The case, open", body = CaseView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`case_not_found`", body = Problem),
        (status = 409, description = "`case_not_resolved`, `case_changed`", body = Problem),
    )
)]
pub async fn reopen(
    State(app): State<Arc<App>>,
    Person(who): Person,
    CasePath(id): CasePath,
    JsonBytes(body): JsonBytes,
) -> Result<Json<CaseView>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let reason = fields.required("reason", text(note));
    fields.finish()?;
    to_the_end(async move { open_again(&app, id, &who, &reason.unwrap_or_default()).await }).await
}

/// A note resolves the case, unless that frees money for refunds. Every other action becomes the proposal of the case.
async fn put(app: &App, id: CaseId, who: &UserId, action: Action) -> Result<Json<CaseView>, ApiError> {
    let mut case = open(app, id).await?;
    let proposal = action.to_json()?;
    check(app, &case, &action).await?;
    let entry = match &action {
        Action::Note { note } if !action.moves_money(&case) => {
            (case.status, case.proposed_by, case.proposed_action) = (CaseStatus::Resolved, None, None);
            (case.resolution, case.resolved_by) = (Some(note.clone()), Some(who.to_string()));
            Entry::of(app, who, "resolved", &proposal)?
        }
        _ => {
            (case.status, case.proposed_by) = (CaseStatus::Proposed, Some(who.to_string()));
            case.proposed_action = Some(proposal.clone());
            Entry::of(app, who, "proposed", &proposal)?
        }
    };
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    if let Some(order_id) = case.order_id {
        extra::lock(&mut tx, order_id).await?;
    }
    step(app, &mut tx, &case, &entry).await?;
    tx.commit().await.map_err(DbError::from)?;
    renew(app, &case).await;
    seen(app, id).await
}

/// Carries out the proposal and records who confirmed it, in one transaction.
async fn act(app: &App, id: CaseId, who: &UserId, version: i64) -> Result<Json<CaseView>, ApiError> {
    let mut case = open(app, id).await?;
    let (Some(proposed_by), Some(proposal)) = (&case.proposed_by, &case.proposed_action) else {
        return Err(ApiError::CaseNotProposed);
    };
    if case.version != version {
        return Err(ApiError::CaseChanged);
    }
    if proposed_by.eq_ignore_ascii_case(who.as_str()) {
        return Err(ApiError::SamePerson);
    }
    let action = Action::from_json(proposal)?;
    let mut entry = Entry::of(app, who, "confirmed", proposal)?;
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    let done = carry_out(app, &mut tx, (&case, who), &action).await?;
    entry.json["done"] = json!(done.text);
    if done.ends {
        case.status = CaseStatus::Resolved;
        (case.resolution, case.resolved_by) = (Some(done.text), Some(who.to_string()));
    } else {
        (case.status, case.proposed_by, case.proposed_action) = (CaseStatus::Open, None, None);
    }
    // This writes only the version that was seen. If another process was faster, the version has changed and the whole
    // transaction is rolled back.
    step(app, &mut tx, &case, &entry).await?;
    tx.commit().await.map_err(DbError::from)?;
    renew(app, &case).await;
    seen(app, id).await
}

/// Writes the case after a step, and updates what its order shows of the money that the case is about. The order is
/// already locked, because every transaction locks the order first.
async fn step(app: &App, tx: &mut PgConnection, case: &Case, entry: &Entry<'_>) -> Result<(), ApiError> {
    cases::step(tx, case, &entry.json, app.clock.now()).await.map_err(changed)?;
    note_act(tx, case, entry).await?;
    if let Some(order_id) = case.order_id.filter(|_| case.kind.is_of_money_held()) {
        extra::follow(tx, &[order_id], app.clock.now()).await?;
    }
    Ok(())
}

/// Records the entry of the case's history in the audit log as well.
async fn note_act(tx: &mut PgConnection, case: &Case, entry: &Entry<'_>) -> Result<(), ApiError> {
    let act = format!("case.{}", entry.what);
    let object = format!("case:{}", case.id);
    let mut detail = entry.json.clone();
    detail["version"] = case.version.into();
    Ok(audit::record(tx, &Act { subject: entry.who.as_str(), act: &act, object, detail: &detail }).await?)
}

async fn renew(app: &App, case: &Case) {
    if let Some(order_id) = case.order_id {
        app.cache.orders.renew(&app.db, Changed::Ids(vec![order_id])).await;
    }
}

/// Reopens the case and writes its event, in one transaction.
async fn open_again(app: &App, id: CaseId, who: &UserId, reason: &str) -> Result<Json<CaseView>, ApiError> {
    let case = cases::get(&app.db, id).await?.ok_or(ApiError::CaseNotFound)?;
    if case.status != CaseStatus::Resolved {
        return Err(ApiError::CaseNotResolved);
    }
    let now = app.clock.now();
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    // The order is locked first, as in every transaction.
    if let Some(order_id) = case.order_id {
        orders::lock_one(&mut tx, order_id).await?;
    }
    let opened = case_facts::reopen(&mut tx, &case, who.as_str(), reason, now).await.map_err(changed)?;
    outbox::append(&mut tx, &[events::case_opened(&opened)], now).await?;
    let json = json!({ "who": who.as_str(), "what": "reopened", "reason": reason });
    note_act(&mut tx, &case, &Entry { who, what: "reopened", json }).await?;
    if let Some(order_id) = case.order_id.filter(|_| case.kind.is_of_money_held()) {
        extra::follow(&mut tx, &[order_id], now).await?;
    }
    tx.commit().await.map_err(DbError::from)?;
    renew(app, &case).await;
    seen(app, id).await
}

async fn open(app: &App, id: CaseId) -> Result<Case, ApiError> {
    let case = cases::get(&app.db, id).await?.ok_or(ApiError::CaseNotFound)?;
    if case.status == CaseStatus::Resolved { Err(ApiError::CaseResolved) } else { Ok(case) }
}

async fn seen(app: &App, id: CaseId) -> Result<Json<CaseView>, ApiError> {
    let case = cases::get(&app.db, id).await?.ok_or(ApiError::CaseNotFound)?;
    Ok(Json(CaseView::of(case)))
}

/// One entry of a case's history.
struct Entry<'a> {
    who: &'a UserId,
    what: &'static str,
    /// The entry in the form of the history.
    json: Value,
}

impl<'a> Entry<'a> {
    fn of(app: &App, who: &'a UserId, what: &'static str, action: &Value) -> Result<Entry<'a>, ApiError> {
        let at = app.clock.now().format(&Rfc3339).map_err(|error| ApiError::Internal(error.into()))?;
        let json = json!({ "at": at, "who": who.as_str(), "what": what, "action": action });
        Ok(Entry { who, what, json })
    }
}

fn changed(error: DbError) -> ApiError {
    match error {
        DbError::Moved => ApiError::CaseChanged,
        other => other.into(),
    }
}

fn version(body: &Bytes) -> Result<i64, ApiError> {
    let mut fields = Fields::parse(body)?;
    let rule = || "must be the version of the case that you have seen".to_owned();
    let version = fields.required("version", |value| value.as_i64().ok_or_else(rule));
    fields.finish()?;
    Ok(version.unwrap_or_default())
}

/// The case that a path names. A text that is not an id is an unknown case.
pub struct CasePath(CaseId);

impl FromRequestParts<Arc<App>> for CasePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<CasePath, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) = path.map_err(|_| ApiError::CaseNotFound)?;
        CaseId::parse(&text).map(CasePath).map_err(|_| ApiError::CaseNotFound)
    }
}
