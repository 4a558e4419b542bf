//! Refunds: request one, get one, list the user's own.

mod decide;
mod failure;
mod named;
mod read;
mod requested;
mod view;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use domain::OrderId;
use runtime::crash::{self, Point};
use serde_json::json;
use store::cache::Changed;
use store::retry::retry;
use store::settle::refunds as settling;
use store::settle::refunds::{RefundRefusal, RequestedRefund, Requester};
use store::tables::audit::{self, Act};
use store::tables::idempotency_keys::{self, NewAnswer};
use store::tables::orders;
use store::{DbError, NotDone};

pub use decide::{__path_approve, __path_decline, __path_withdraw};
pub use decide::{DeclineRefund, approve, decline, withdraw};
pub use failure::FailureView;
pub use read::{__path_get, __path_list, get, list};
pub(super) use requested::{reason, refund_request};
pub use view::{CreateRefund, RefundPage, RefundView};

use crate::access::caller::{Caller, Identity};
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Viewer;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, money, text};
use crate::create::idempotency::{self, Answer, IdempotencyKey, in_flight};
use crate::create::numbers::microseconds;
use crate::state::App;
use named::NamedOrder;

/// Request a refund.
///
/// The rules of the gateway decide what becomes of it: it is sent next (`pending`), it waits for a person (`requested`),
/// or it is refused. The limits count the sum of the order's refunds.
///
/// A repeat with the same Idempotency-Key and the same body, byte for byte, gets the same answer, with
/// `Idempotency-Replayed: true`, and creates no second refund; `Idempotency-Expires` states until when. A refusal does
/// not use the key, because its reason may pass. Only one refund of an order is in progress at a time.
#[utoipa::path(
    post, path = "/v1/orders/{id}/refunds", tag = "refunds", request_body = CreateRefund,
    security(("bearer" = []), ("backend" = ["payments:refund"])),
    params(
        ("id" = String, Path, description = "The order's id, or `order_no:…`, `merchant_order_no:…`, `trade_no:…`, `refund_no:…`"),
        ("Idempotency-Key" = String, Header, description = "1 to 255 visible ASCII characters, fresh for each refund"),
    ),
    responses(
        (status = 202, description = "The refund: `pending`, and sent to the gateway next, or `requested`, and waiting for a person", body = RefundView),
        (status = 400, description = "`invalid_fields` (all of them), `malformed_json`, `idempotency_key_required`, `idempotency_key_invalid`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`, `sign_in_again`", body = Problem),
        (status = 403, description = "`scope_missing`; for a buyer `refunds_off`: buyers request no refunds here", body = Problem),
        (status = 404, description = "`order_not_found`: no such order, or another user's", body = Problem),
        (status = 409, description = "`order_not_paid`, `refund_in_progress`, `already_refunded`, `refund_too_much` (with `refundable_amount`), `not_refundable`, `request_in_flight`; `refund_request_open`: another request waits for a person; `refund_window_over`: the buyer is too late; `refund_requested_too_often`: 20 refunds of the buyer ended unsent; `service_daily_limit`: the key or service has reached its limit of the day; `ambiguous_number`", body = Problem),
        (status = 413, description = "`body_too_large`", body = Problem),
        (status = 415, description = "`unsupported_media_type`", body = Problem),
        (status = 422, description = "`idempotency_key_reused`", body = Problem),
        (status = 503, description = "`unavailable`, `overloaded`: repeat with the same key", body = Problem),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    NamedOrder(name): NamedOrder,
    key: IdempotencyKey,
    JsonBytes(body): JsonBytes,
) -> Result<impl IntoResponse, ApiError> {
    caller.signed_in_recently(app.clock.now())?;
    let answer = to_the_end(async move {
        let order_id = named::find(&app, &caller, &name).await?;
        // The key is bound to the order as well as to the body, whatever number names the order.
        let bound = [order_id.to_string().as_bytes(), &body].concat();
        let who = caller.identity.to_string();
        let request = idempotency::Request::new(who, key, "POST /v1/orders/{id}/refunds", &bound);
        Requesting { app, request, caller, order_id, body }.run().await
    });
    let answer = answer.await?;
    Ok(answer.into_response(StatusCode::ACCEPTED, "/v1/refunds"))
}

/// Everything that requesting a refund needs, owned: the work continues when the client has gone.
struct Requesting {
    app: Arc<App>,
    request: idempotency::Request,
    caller: Caller,
    order_id: OrderId,
    body: Bytes,
}

impl Requesting {
    /// Requests the refund, or finds the answer of an earlier request with the same key.
    async fn run(self) -> Result<Answer, ApiError> {
        let App { turns, db, clock, .. } = self.app.as_ref();
        let _turn = self.request.turn(turns, db, clock).await?;
        if let Some(known) = self.known().await? {
            return Ok(known);
        }
        let request = self.refund_request()?;
        let order = orders::get(&self.app.db, self.order_id).await?;
        let order = Viewer::of(&self.caller).shown(order)?;
        // A refusal reveals the order's state, too: from now on the cache must not show an older one.
        self.app.cache.orders.saw(&order);
        match retry(|| self.write(&request)).await? {
            Some(answer) => Ok(answer),
            // Another process has used the key in the meantime.
            None => self.known().await?.ok_or(ApiError::RequestInFlight),
        }
    }

    async fn known(&self) -> Result<Option<Answer>, ApiError> {
        let known = self.request.known(&self.app.db, self.app.clock.now()).await?;
        Ok(known.and_then(Answer::replayed))
    }

    /// Writes key, refund and answer in one transaction. `None`: the key is already used. A refusal leaves nothing
    /// behind, so a request with the same key may try again.
    async fn write(&self, request: &RequestedRefund) -> Result<Option<Answer>, ApiError> {
        let now = microseconds(self.app.clock.now());
        let mut tx = self.app.db.begin().await.map_err(DbError::from)?;
        let (key, id) = (self.request.answered_key(now, now), request.id.to_string());
        if !idempotency_keys::take(&mut tx, &key, &id, now).await.map_err(in_flight)? {
            return Ok(None);
        }
        let refund = settling::request_by_rule(&mut tx, request, self.requester(), now).await.map_err(refused)?;
        if !matches!(self.caller.identity, Identity::Buyer(_)) {
            let detail = json!({ "order_id": refund.order_id, "amount": refund.amount, "reason": refund.reason });
            let (subject, object) = (self.caller.name(), format!("refund:{}", refund.id));
            audit::record(&mut tx, &Act { subject: &subject, act: "refund.requested", object, detail: &detail })
                .await?;
        }
        let answer =
            serde_json::to_value(RefundView::of(&refund, None)).map_err(|error| ApiError::Internal(error.into()))?;
        let answer = NewAnswer { answer, refused_with: None };
        let saved = idempotency_keys::save_answer(&mut *tx, &key.caller, &key.key, None, &answer).await?;
        let saved = saved.ok_or(DbError::Moved)?;
        crash::at(Point::RefundRequested);
        tx.commit().await.map_err(DbError::from)?;
        crash::at(Point::RefundAccepted);
        self.app.cache.orders.renew(&self.app.db, Changed::Ids(vec![self.order_id])).await;
        Ok(Some(Answer::fresh(request.id.to_string(), saved)))
    }

    fn requester(&self) -> Requester {
        match self.caller.identity {
            Identity::Buyer(_) => Requester::Buyer,
            Identity::Key(_) | Identity::Service(_) => Requester::Backend,
            Identity::Staff(_) => Requester::Staff,
        }
    }

    fn refund_request(&self) -> Result<RequestedRefund, ApiError> {
        let mut fields = Fields::parse(&self.body)?;
        let amount = fields.optional("amount", money);
        let reason = fields.optional("reason", text(reason));
        fields.finish()?;
        let of = (self.order_id, self.request.caller.as_str());
        refund_request(&self.app, of, amount, reason)
    }
}

/// The error of a refund that was not requested. The database itself refuses a second one that is in flight.
pub(super) fn refused(not_done: NotDone<RefundRefusal>) -> ApiError {
    match not_done {
        NotDone::Refused(refusal) => ApiError::Refund(refusal),
        NotDone::Db(DbError::Constraint(name)) if name == "refund_records_in_flight" => {
            ApiError::Refund(RefundRefusal::InProgress)
        }
        NotDone::Db(DbError::Constraint(name)) if name == "refund_records_one_request" => {
            ApiError::Refund(RefundRefusal::RequestOpen)
        }
        NotDone::Db(error) => error.into(),
    }
}
