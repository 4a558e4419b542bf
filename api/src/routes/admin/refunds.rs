//! `GET /v1/admin/refunds`: the refunds of all orders, by any mix of filters.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::{AccountName, OrderId, PaymentMethod, RefundId, RefundOrigin, RefundStatus};
use serde::{Deserialize, Serialize};
use store::page::Created;
use store::tables::refund_list::{self, ListedRefund, RefundFilter};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::orders::{ACCOUNT, names};
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, is_bounded, part};
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "refund";
const NEEDS_RANGE: &str = "these filters need a range: give created_from and created_to, at most 31 days apart, or one of \
    order_id, requested_by, status without succeeded";

/// Selects refunds. Without `order_id`, `requested_by`, or a `status` that leaves out `succeeded`, the filters
/// `payment_method`, `account` and `origin` need `created_from` and `created_to`, at most 31 days apart.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RefundFilters {
    /// Only refunds in this state; several states with commas.
    #[param(example = "processing,abnormal")]
    status: Option<String>,
    /// Only refunds of payments at `alipay` or `wechat`.
    payment_method: Option<String>,
    /// Only refunds of payments to this account.
    account: Option<String>,
    /// `service`: sent by this service. `outside`: made in the gateway's console, or with the merchant's keys.
    origin: Option<String>,
    /// Only refunds that this caller requested, as `requested_by` names it.
    requested_by: Option<String>,
    /// Only refunds that were created at this time or later: RFC 3339, or a date in Beijing.
    #[param(example = "2026-01-01")]
    created_from: Option<String>,
    /// Only refunds that were created before this time (RFC 3339), or until the end of this date in Beijing. Absent: now.
    #[param(example = "2026-01-31")]
    created_to: Option<String>,
    /// Only refunds of this order.
    order_id: Option<String>,
}

impl RefundFilters {
    pub(super) fn read(&self, faults: &mut Faults) -> RefundFilter {
        let text = Option::as_deref;
        let caller = |name: &str| {
            let fits =
                (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
            fits.then(|| name.to_owned())
        };
        let created_from = faults.begin("created_from", text(&self.created_from));
        let created_to = faults.end("created_to", text(&self.created_to));
        faults.ordered("created_to", created_from.as_ref(), created_to.as_ref());
        RefundFilter {
            statuses: faults.choices("status", text(&self.status), &names(RefundStatus::ALL, RefundStatus::as_str)),
            payment_method: faults.choice(
                "payment_method",
                text(&self.payment_method),
                &names(PaymentMethod::ALL, PaymentMethod::as_str),
            ),
            account: faults.read("account", text(&self.account), |name| AccountName::parse(name).ok(), ACCOUNT),
            origin: faults.choice("origin", text(&self.origin), &names(RefundOrigin::ALL, RefundOrigin::as_str)),
            requested_by: faults.read(
                "requested_by",
                text(&self.requested_by),
                caller,
                "must be the name of a caller: 1 to 64 printable ASCII characters",
            ),
            order_id: faults.read(
                "order_id",
                text(&self.order_id),
                |id| OrderId::parse(id).ok(),
                "must be an order's id: 32 lower-case hex digits",
            ),
            created: Created { from: created_from, to: created_to },
        }
    }
}

/// A refund in the list.
#[derive(Serialize, ToSchema)]
pub struct RefundRow {
    /// 32 hex digits.
    id: String,
    /// Our number for the gateways.
    refund_no: String,
    /// The order.
    order_id: String,
    /// The number of the order.
    order_no: String,
    /// The trade of the payment that it returns.
    trade_no: String,
    /// `alipay` or `wechat`.
    payment_method: String,
    /// The account that received the payment.
    account: String,
    /// In yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// What the buyer reads.
    reason: Option<String>,
    /// `requested` `pending` `processing` `succeeded` `failed` `abnormal` `declined` `withdrawn`.
    status: String,
    /// `requested`, `pending` and `processing`: when it was requested. Otherwise when it came into this state.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// How many times the request was sent to the gateway.
    attempts: i32,
    /// What went wrong last, in words.
    last_error: Option<String>,
    /// `service` or `outside`.
    origin: String,
    /// The gateway's number of the refund.
    gateway_refund_no: Option<String>,
    /// Who requested it.
    requested_by: String,
    /// The person who approved the request, or the first of two.
    approved_by: Option<String>,
    /// Why the request was declined.
    decline_reason: Option<String>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl RefundRow {
    fn of(refund: ListedRefund) -> RefundRow {
        RefundRow {
            id: refund.id.to_string(),
            refund_no: refund.refund_no.to_string(),
            order_id: refund.order_id.to_string(),
            order_no: refund.order_no.to_string(),
            trade_no: refund.trade_no.to_string(),
            payment_method: refund.payment_method.to_string(),
            account: refund.account.to_string(),
            amount: refund.amount.to_string(),
            reason: refund.reason,
            status: refund.status.to_string(),
            since: refund.since,
            attempts: refund.attempts,
            last_error: refund.last_error,
            approved_by: refund.approved_by,
            decline_reason: refund.decline_reason,
            origin: refund.origin.to_string(),
            gateway_refund_no: refund.gateway_refund_no,
            requested_by: refund.requested_by,
            created_at: refund.created_at,
        }
    }
}

/// Refunds of all orders, newest first.
#[derive(Serialize, ToSchema)]
pub struct RefundRows {
    refunds: Vec<RefundRow>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// List the refunds of all orders, newest first.
#[utoipa::path(
    get, path = "/v1/admin/refunds", tag = "admin", params(RefundFilters, Slice),
    security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of refunds", body = RefundRows),
        (status = 400, description = "`invalid_fields`; `range_required`: a filter without an index needs a range of at most 31 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<RefundFilters>>,
) -> Result<Json<RefundRows>, ApiError> {
    let mut faults = Faults::default();
    let filter = filter.read(&mut faults);
    let (limit, before) = slice.read(&mut faults, LIST, |id| RefundId::parse(id).ok());
    faults.finish()?;
    if filter.reads_on() && !filter.has_an_index() && !is_bounded(&filter.created, app.clock.now()) {
        return Err(ApiError::RangeRequired(NEEDS_RANGE));
    }
    let found = to_the_end(async move { Ok(refund_list::part(&app.db, &filter, before, limit).await?) }).await?;
    let (shown, next_cursor) = part(found, limit, |refund| refund.id, |id| format!("{LIST}:{id}"));
    Ok(Json(RefundRows { refunds: shown.into_iter().map(RefundRow::of).collect(), next_cursor }))
}
