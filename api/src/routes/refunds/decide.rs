//! What people and requesters do with a refund before the gateway has it: approve, decline, withdraw.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use domain::{RefundId, RefundStatus, UserId};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use store::cache::Changed;
use store::retry::retry;
use store::settle::refunds as settling;
use store::settle::refunds::{Decided, DecisionRefusal, RefundRefusal, Withdrawer};
use store::tables::audit::{self, Act};
use store::tables::refunds::Refund;
use store::tables::{orders, refunds};
use store::{DbError, NotDone};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::failure::failures;
use super::read::RefundPath;
use super::view::RefundView;
use crate::access::caller::{Caller, Identity};
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Viewer;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, text};
use crate::state::App;

/// The longest reason of a decline, in characters.
const REASON: usize = 80;

/// Why a request is declined.
#[derive(Serialize, ToSchema)]
pub struct DeclineRefund {
    /// The reason that the requester reads, 1 to 80 characters.
    #[schema(example = "the goods were used")]
    pub reason: String,
}

/// A step, and who takes it.
enum Step {
    Approve(UserId),
    Decline(UserId, String),
    /// The buyer, if it is one, and the name for the record.
    Withdraw(Option<UserId>, String),
}

impl Step {
    async fn run(
        &self,
        tx: &mut PgConnection,
        id: RefundId,
        now: OffsetDateTime,
    ) -> Result<Decided, NotDone<DecisionRefusal>> {
        match self {
            Step::Approve(person) => settling::approve(tx, id, person, now).await,
            Step::Decline(person, reason) => settling::decline(tx, id, person, reason, now).await,
            Step::Withdraw(Some(buyer), _) => settling::withdraw(tx, id, Withdrawer::Buyer(buyer), now).await,
            Step::Withdraw(None, name) => settling::withdraw(tx, id, Withdrawer::Merchant(name), now).await,
        }
    }

    /// The name in the audit log of what this step has done.
    fn act(&self, refund: &Refund) -> &'static str {
        match self {
            // Approving found that it no longer fits.
            Step::Approve(_) if refund.status == RefundStatus::Declined => "refund.declined",
            Step::Approve(_) => "refund.approved",
            Step::Decline(..) => "refund.declined",
            Step::Withdraw(..) => "refund.withdrawn",
        }
    }
}

/// Approve a requested refund: it begins.
///
/// A person approves it, soon after a sign-in, and never the one who requested it. Above the `staff_limit` of the rules
/// the request of a buyer takes two persons: after the first one it stays `requested`, with `approved_once`. Everything
/// is checked again; a request that no longer fits becomes `declined`, with `decline_reason`. A repeat answers the refund
/// as it is.
#[utoipa::path(
    post, path = "/v1/refunds/{id}/approve", tag = "refunds", security(("staff" = ["payments:refund"])),
    params(("id" = String, Path, description = "The refund's id")),
    responses(
        (status = 200, description = "The refund as it is now", body = RefundView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`, `sign_in_again`", body = Problem),
        (status = 403, description = "`scope_missing`, `person_required`, `same_person`: the one who requested it", body = Problem),
        (status = 404, description = "`refund_not_found`", body = Problem),
        (status = 409, description = "`refund_in_progress`, `not_refundable`: something about the order comes first, and the request stays", body = Problem),
    )
)]
pub async fn approve(
    State(app): State<Arc<App>>,
    caller: Caller,
    RefundPath(id): RefundPath,
) -> Result<Response, ApiError> {
    let person = caller.person()?.clone();
    caller.signed_in_recently(app.clock.now())?;
    to_the_end(async move { answer(&app, &caller, id, Step::Approve(person)).await }).await
}

/// Decline a requested refund.
///
/// A person declines it, for a reason that the requester reads. A repeat answers the refund as it is, with the first
/// reason.
#[utoipa::path(
    post, path = "/v1/refunds/{id}/decline", tag = "refunds", request_body = DeclineRefund,
    security(("staff" = ["payments:refund"])),
    params(("id" = String, Path, description = "The refund's id")),
    responses(
        (status = 200, description = "The refund as it is now", body = RefundView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`, `person_required`", body = Problem),
        (status = 404, description = "`refund_not_found`", body = Problem),
        (status = 409, description = "`refund_not_requested`: it waits for no person", body = Problem),
    )
)]
pub async fn decline(
    State(app): State<Arc<App>>,
    caller: Caller,
    RefundPath(id): RefundPath,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let person = caller.person()?.clone();
    let mut fields = Fields::parse(&body)?;
    let reason = fields.required("reason", text(|reason| super::requested::short_reason(reason, REASON)));
    fields.finish()?;
    let step = Step::Decline(person, reason.unwrap_or_default());
    to_the_end(async move { answer(&app, &caller, id, step).await }).await
}

/// Withdraw a refund before the gateway has it.
///
/// The buyer withdraws a refund that the same buyer requested; the merchant withdraws any. One that waits for the
/// merchant's balance is withdrawn by a worker, once the gateway says that it knows no such refund: the answer is 202, and
/// the event `refund.withdrawn` follows, or the refund goes on. A repeat answers the refund as it is.
#[utoipa::path(
    post, path = "/v1/refunds/{id}/withdraw", tag = "refunds",
    security(("bearer" = []), ("backend" = ["payments:refund"])),
    params(("id" = String, Path, description = "The refund's id")),
    responses(
        (status = 200, description = "The refund, which is withdrawn", body = RefundView),
        (status = 202, description = "The refund, which a worker withdraws if the gateway does not know it", body = RefundView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`, `not_requester`: another caller requested it", body = Problem),
        (status = 404, description = "`refund_not_found`: no such refund, or of another user's order", body = Problem),
        (status = 409, description = "`refund_not_withdrawable`: the gateway may have it, or it has ended", body = Problem),
    )
)]
pub async fn withdraw(
    State(app): State<Arc<App>>,
    caller: Caller,
    RefundPath(id): RefundPath,
) -> Result<Response, ApiError> {
    let buyer = match &caller.identity {
        Identity::Buyer(user) => Some(user.clone()),
        Identity::Key(_) | Identity::Service(_) | Identity::Staff(_) => None,
    };
    let step = Step::Withdraw(buyer, caller.identity.to_string());
    to_the_end(async move { answer(&app, &caller, id, step).await }).await
}

/// Takes the step and shows the refund. A refund of another user's order looks like none.
async fn answer(app: &App, caller: &Caller, id: RefundId, step: Step) -> Result<Response, ApiError> {
    let refund = refunds::get(&app.db, id).await?.ok_or(ApiError::RefundNotFound)?;
    let viewer = Viewer::of(caller);
    let order = viewer.shown(orders::get(&app.db, refund.order_id).await?).map_err(|_| ApiError::RefundNotFound)?;
    let refund = retry(|| carry_out(app, caller, id, &step)).await?;
    app.cache.orders.renew(&app.db, Changed::Ids(vec![order.id])).await;
    let failure = failures(app, std::slice::from_ref(&refund), &viewer).await?.remove(&refund.id);
    let is_left_to_the_worker = matches!(step, Step::Withdraw(..)) && refund.status != RefundStatus::Withdrawn;
    let status = if is_left_to_the_worker { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(RefundView::of(&refund, failure))).into_response())
}

/// Takes the step and records who took it, in one transaction.
async fn carry_out(app: &App, caller: &Caller, id: RefundId, step: &Step) -> Result<Refund, ApiError> {
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    let decided = step.run(&mut tx, id, app.clock.now()).await.map_err(refused)?;
    let refund = decided.refund;
    if decided.is_changed && !matches!(caller.identity, Identity::Buyer(_)) {
        let detail = json!({
            "order_id": refund.order_id, "amount": refund.amount, "status": refund.status, "reason": refund.decline_reason,
        });
        let (subject, object) = (caller.name(), format!("refund:{id}"));
        let act = Act { subject: &subject, act: step.act(&refund), object, detail: &detail };
        audit::record(&mut tx, &act).await?;
    }
    tx.commit().await.map_err(DbError::from)?;
    Ok(refund)
}

/// The error of a step that was not taken. The database itself refuses a second refund that is in flight.
fn refused(not_done: NotDone<DecisionRefusal>) -> ApiError {
    match not_done {
        NotDone::Refused(DecisionRefusal::NotNow(refusal)) => ApiError::Refund(refusal),
        NotDone::Refused(refusal) => ApiError::Decision(refusal),
        NotDone::Db(DbError::Constraint(name)) if name == "refund_records_in_flight" => {
            ApiError::Refund(RefundRefusal::InProgress)
        }
        NotDone::Db(error) => error.into(),
    }
}
