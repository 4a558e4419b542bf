//! `GET /v1/admin/orders/{number}`: everything that is known about one order, and its story in the order of time.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use domain::OrderRef;
use serde::Serialize;
use store::DbError;
use store::connect::SNAPSHOT;
use store::story::{Moment, Story};
use store::tables::callbacks::Seen;
use store::tables::cases::Case;
use store::tables::events::Trace;
use store::tables::idempotency_keys::Request;
use store::tables::jobs::Standing;
use store::tables::outline::{self, Outline};
use store::tables::refunds::Refund;
use store::tables::transactions::Movement;
use time::OffsetDateTime;
use tracing::Span;
use tracing::field::display;
use utoipa::ToSchema;

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::orders::ExtraPaymentView;
use crate::state::App;

/// One order with everything that is known about it. What can identify the payer is left out.
#[derive(Serialize, ToSchema)]
pub struct StoryView {
    /// The order.
    order: StoryOrder,
    /// Every movement of its money, oldest first.
    payments: Vec<StoryPayment>,
    /// Its refunds, oldest first.
    refunds: Vec<StoryRefund>,
    /// Its cases, oldest first.
    cases: Vec<StoryCase>,
    /// Every callback that named it, oldest first.
    callbacks: Vec<StoryCallback>,
    /// Its events, in the order of publishing.
    events: Vec<StoryEvent>,
    /// The jobs about it and its refunds, the next one first.
    jobs: Vec<StoryJob>,
    /// The requests that made it and its refunds, oldest first, while their keys are stored.
    requests: Vec<StoryRequest>,
    /// What happened, from every source, oldest first.
    story: Vec<StoryMoment>,
    /// What is expected next, in words. Never empty.
    next: Vec<String>,
}

impl StoryView {
    fn of(story: &Story, now: OffsetDateTime) -> StoryView {
        StoryView {
            order: StoryOrder::of(&story.order),
            payments: story.movements.iter().map(StoryPayment::of).collect(),
            refunds: story.refunds.iter().map(StoryRefund::of).collect(),
            cases: story.cases.iter().map(StoryCase::of).collect(),
            callbacks: story.callbacks.iter().map(StoryCallback::of).collect(),
            events: story.events.iter().map(StoryEvent::of).collect(),
            jobs: story.jobs.iter().map(StoryJob::of).collect(),
            requests: story.requests.iter().map(StoryRequest::of).collect(),
            story: story.moments().into_iter().map(StoryMoment::of).collect(),
            next: story.next(now),
        }
    }
}

/// The order of a story.
#[derive(Serialize, ToSchema)]
pub struct StoryOrder {
    /// 32 hex digits.
    id: String,
    /// Our number for the gateways.
    order_no: String,
    /// The merchant's own number of the purchase.
    merchant_order_no: Option<String>,
    /// Who vouches for the terms: `backend` `offer` `catalogue` `buyer`. Null: an order of an earlier release.
    vouched_by: Option<String>,
    /// Which backend or issuer of offers that is.
    voucher: Option<String>,
    /// The offer by which it was placed.
    offer_id: Option<String>,
    /// The buyer.
    user_id: String,
    /// What kind of thing is sold.
    product_type: String,
    /// What the buyer reads.
    subject: String,
    /// In yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// In yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
    /// `alipay` or `wechat`.
    payment_method: String,
    /// Where the buyer pays.
    scene: String,
    /// The account that receives the money.
    account: String,
    /// `pending` `paid` `closed` `refunding` `partially_refunded` `refunded`.
    status: String,
    /// The trade that paid it.
    trade_no: Option<String>,
    /// Money that the order was not owed. Null: there was none.
    extra_payment: Option<ExtraPaymentView>,
    /// The last moment to pay.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    /// By the gateway's clock.
    #[serde(with = "time::serde::rfc3339::option")]
    paid_at: Option<OffsetDateTime>,
    /// When a close was first requested.
    #[serde(with = "time::serde::rfc3339::option")]
    close_requested_at: Option<OffsetDateTime>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339::option")]
    closed_at: Option<OffsetDateTime>,
    /// When the gateway was last queried.
    #[serde(with = "time::serde::rfc3339::option")]
    checked_at: Option<OffsetDateTime>,
    /// The gateway's answer at that time, in its own words.
    gateway_state: Option<String>,
    /// Increases with each change.
    version: i64,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl StoryOrder {
    fn of(order: &Outline) -> StoryOrder {
        StoryOrder {
            id: order.id.to_string(),
            order_no: order.order_no.to_string(),
            merchant_order_no: order.merchant_order_no.as_ref().map(ToString::to_string),
            vouched_by: order.vouched_by.map(|by| by.to_string()),
            voucher: order.voucher.clone(),
            offer_id: order.offer_id.as_ref().map(ToString::to_string),
            user_id: order.user_id.to_string(),
            product_type: order.product_type.to_string(),
            subject: order.subject.to_string(),
            amount: order.amount.to_string(),
            refunded_amount: order.refunded_amount.to_string(),
            payment_method: order.payment_method.to_string(),
            scene: order.scene.to_string(),
            account: order.account.to_string(),
            status: order.status.to_string(),
            trade_no: order.trade_no.as_ref().map(ToString::to_string),
            extra_payment: ExtraPaymentView::of(order.extra_state, order.extra_amount),
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            close_requested_at: order.close_requested_at,
            closed_at: order.closed_at,
            checked_at: order.checked_at,
            gateway_state: order.gateway_state.clone(),
            version: order.version,
            created_at: order.created_at,
            updated_at: order.updated_at,
        }
    }
}

/// A movement of money.
#[derive(Serialize, ToSchema)]
pub struct StoryPayment {
    /// Our number, for the books.
    transaction_no: String,
    /// `payment` or `refund`.
    #[schema(example = "payment")]
    action_type: String,
    /// In yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// `pending` `succeeded` `failed`.
    status: String,
    /// The gateway's number: of a payment, the trade.
    gateway_no: Option<String>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl StoryPayment {
    fn of(movement: &Movement) -> StoryPayment {
        StoryPayment {
            transaction_no: movement.transaction_no.clone(),
            action_type: movement.action_type.clone(),
            amount: movement.amount.to_string(),
            status: movement.status.clone(),
            gateway_no: movement.gateway_no.clone(),
            created_at: movement.created_at,
            updated_at: movement.updated_at,
        }
    }
}

/// A refund of the order.
#[derive(Serialize, ToSchema)]
pub struct StoryRefund {
    /// 32 hex digits.
    id: String,
    /// Our number for the gateways.
    refund_no: String,
    /// The gateway's number.
    gateway_refund_no: Option<String>,
    /// The trade of the payment that it returns.
    trade_no: String,
    /// In yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// `requested` `pending` `processing` `succeeded` `failed` `abnormal` `declined` `withdrawn`.
    status: String,
    /// `service` or `outside`.
    origin: String,
    /// What the buyer reads.
    reason: Option<String>,
    /// Who requested it.
    requested_by: String,
    /// The person who approved the request, or the first of two.
    approved_by: Option<String>,
    /// How many times the request was sent to the gateway.
    attempts: i32,
    /// What went wrong last, in words.
    last_error: Option<String>,
    /// When the request was last sent.
    #[serde(with = "time::serde::rfc3339::option")]
    sent_at: Option<OffsetDateTime>,
    /// When the money was returned.
    #[serde(with = "time::serde::rfc3339::option")]
    succeeded_at: Option<OffsetDateTime>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl StoryRefund {
    fn of(refund: &Refund) -> StoryRefund {
        StoryRefund {
            id: refund.id.to_string(),
            refund_no: refund.refund_no.to_string(),
            gateway_refund_no: refund.gateway_refund_no.clone(),
            trade_no: refund.trade_no.to_string(),
            amount: refund.amount.to_string(),
            status: refund.status.to_string(),
            origin: refund.origin.to_string(),
            reason: refund.reason.clone(),
            requested_by: refund.requested_by.clone(),
            approved_by: refund.approved_by.clone(),
            attempts: refund.attempts,
            last_error: refund.last_error.clone(),
            sent_at: refund.sent_at,
            succeeded_at: refund.succeeded_at,
            created_at: refund.created_at,
            updated_at: refund.updated_at,
        }
    }
}

/// A case about the order. `GET /v1/admin/cases/{id}` has its evidence and its history.
#[derive(Serialize, ToSchema)]
pub struct StoryCase {
    /// 32 hex digits.
    id: String,
    /// The kind of problem.
    #[schema(example = "late_payment")]
    kind: String,
    /// `open` `proposed` `resolved`.
    status: String,
    /// What the case is about.
    subject_ref: String,
    /// How it was resolved.
    resolution: Option<String>,
    /// Who resolved it.
    resolved_by: Option<String>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl StoryCase {
    fn of(case: &Case) -> StoryCase {
        StoryCase {
            id: case.id.to_string(),
            kind: case.kind.to_string(),
            status: case.status.to_string(),
            subject_ref: case.subject_ref.clone(),
            resolution: case.resolution.clone(),
            resolved_by: case.resolved_by.clone(),
            created_at: case.created_at,
            updated_at: case.updated_at,
        }
    }
}

/// A callback that named the order.
#[derive(Serialize, ToSchema)]
pub struct StoryCallback {
    /// The gateway's id of the message.
    notice_id: String,
    /// The account whose address was called.
    account: String,
    /// The result of settling it.
    #[schema(example = "settled")]
    verdict: String,
    /// The fields in it that were not trusted.
    note: Option<String>,
    /// How often it arrived.
    times_seen: i32,
    /// When it first arrived.
    #[serde(with = "time::serde::rfc3339")]
    received_at: OffsetDateTime,
    /// When it last arrived.
    #[serde(with = "time::serde::rfc3339")]
    last_seen_at: OffsetDateTime,
}

impl StoryCallback {
    fn of(seen: &Seen) -> StoryCallback {
        StoryCallback {
            notice_id: seen.notice_id.clone(),
            account: seen.account.clone(),
            verdict: seen.verdict.to_string(),
            note: seen.note.clone(),
            times_seen: seen.times_seen,
            received_at: seen.received_at,
            last_seen_at: seen.last_seen_at,
        }
    }
}

/// An event about the order.
#[derive(Serialize, ToSchema)]
pub struct StoryEvent {
    /// Its id.
    event_id: String,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = "order.paid")]
    kind: String,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    occurred_at: OffsetDateTime,
    /// When it was last published; null: not yet.
    #[serde(with = "time::serde::rfc3339::option")]
    published_at: Option<OffsetDateTime>,
}

impl StoryEvent {
    fn of(event: &Trace) -> StoryEvent {
        StoryEvent {
            event_id: event.event_id.clone(),
            kind: event.kind.clone(),
            occurred_at: event.occurred_at,
            published_at: event.published_at,
        }
    }
}

/// A job about the order or one of its refunds.
#[derive(Serialize, ToSchema)]
pub struct StoryJob {
    /// The number of its row.
    id: i64,
    /// What it does.
    #[schema(example = "check")]
    kind: String,
    /// When it is due.
    #[serde(with = "time::serde::rfc3339")]
    due_at: OffsetDateTime,
    /// How often it was tried.
    attempts: i32,
    /// The last error, in words.
    last_error: Option<String>,
    /// When it was first requested.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl StoryJob {
    fn of(job: &Standing) -> StoryJob {
        StoryJob {
            id: job.id,
            kind: job.kind.to_string(),
            due_at: job.due_at,
            attempts: job.attempts,
            last_error: job.last_error.clone(),
            created_at: job.created_at,
        }
    }
}

/// A request with an Idempotency-Key.
#[derive(Serialize, ToSchema)]
pub struct StoryRequest {
    /// The route.
    #[schema(example = "POST /v1/orders")]
    route: String,
    /// The kind of caller: `buyer` `key` `service` `staff`.
    #[schema(example = "buyer")]
    caller: String,
    /// The order or refund that it made.
    ref_id: String,
    /// The HTTP status of its final answer, if that is a refusal.
    refused_with: Option<i16>,
    /// When it arrived.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl StoryRequest {
    fn of(request: &Request) -> StoryRequest {
        StoryRequest {
            route: request.route.clone(),
            caller: request.caller.clone(),
            ref_id: request.ref_id.clone(),
            refused_with: request.refused_with,
            created_at: request.created_at,
        }
    }
}

/// A moment of the story.
#[derive(Serialize, ToSchema)]
pub struct StoryMoment {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// What tells it: `order` `request` `transaction` `refund` `callback` `job` `event` `case`.
    #[schema(example = "order")]
    source: &'static str,
    /// What happened, in words.
    #[schema(example = "created for user u1")]
    what: String,
}

impl StoryMoment {
    fn of(moment: Moment) -> StoryMoment {
        StoryMoment { at: moment.at, source: moment.source, what: moment.what }
    }
}

/// Get one order with its payments, refunds, cases, callbacks, events and jobs, and its story.
#[utoipa::path(
    get, path = "/v1/admin/orders/{number}", tag = "admin", security(("backend" = ["payments:read"])),
    params(("number" = String, Path, description = "The order's id, or `order_no:…`, `trade_no:…`, `refund_no:…`")),
    responses(
        (status = 200, description = "The order and its story", body = StoryView),
        (status = 400, description = "`invalid_fields`: this is no number of an order", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`order_not_found`", body = Problem),
        (status = 409, description = "`ambiguous_number`: two orders have it", body = Problem),
    )
)]
pub async fn get(State(app): State<Arc<App>>, NamedOrder(name): NamedOrder) -> Result<Json<StoryView>, ApiError> {
    to_the_end(async move {
        let mut tx = app.db.begin_with(SNAPSHOT).await.map_err(DbError::from)?;
        let mut found = outline::named(&mut *tx, &name).await?;
        let order = found.pop().ok_or(ApiError::OrderNotFound)?;
        if !found.is_empty() {
            return Err(ApiError::AmbiguousNumber);
        }
        Span::current().record("order_id", display(order.id));
        let story = Story::read(&mut tx, order).await?;
        Ok(Json(StoryView::of(&story, app.clock.now())))
    })
    .await
}

/// The order that a path names by any of its numbers.
pub struct NamedOrder(OrderRef);

impl FromRequestParts<Arc<App>> for NamedOrder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<NamedOrder, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) = path.map_err(|_| ApiError::OrderNotFound)?;
        let name = OrderRef::parse(&text).map_err(|rule| ApiError::field("number", format!("must be {rule}")))?;
        Ok(NamedOrder(name))
    }
}
