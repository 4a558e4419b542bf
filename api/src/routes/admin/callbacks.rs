//! `GET /v1/admin/callbacks`: the callbacks that arrived, with their verdicts and never with their bytes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::{OrderNo, PaymentMethod, Verdict};
use serde::{Deserialize, Serialize};
use store::page::{Created, Mark};
use store::tables::callback_list::{self, CallbackFilter, ListedCallback};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::orders::names;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, is_bounded, mark, marked, part};
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "callback";
const NEEDS_RANGE: &str = "these filters need a range: give from and to, at most 31 days apart, or order_no";

/// Selects callbacks. Without `order_no`, the filters `payment_method` and `verdict` need `from` and `to`, at most 31 days
/// apart.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbackFilters {
    /// `alipay` or `wechat`.
    payment_method: Option<String>,
    /// Only callbacks with this verdict.
    #[param(example = "bad_signature")]
    verdict: Option<String>,
    /// Only callbacks that name this order, by our number of it.
    order_no: Option<String>,
    /// Only callbacks that first arrived at this time or later: RFC 3339, or a date in Beijing.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// Only callbacks that first arrived before this time (RFC 3339), or until the end of this date in Beijing. Absent: now.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

impl CallbackFilters {
    fn read(&self, faults: &mut Faults) -> CallbackFilter {
        let text = Option::as_deref;
        let (from, to) = (faults.begin("from", text(&self.from)), faults.end("to", text(&self.to)));
        faults.ordered("to", from.as_ref(), to.as_ref());
        let methods = names(PaymentMethod::ALL, PaymentMethod::as_str);
        CallbackFilter {
            payment_method: faults.choice("payment_method", text(&self.payment_method), &methods),
            verdict: faults.choice("verdict", text(&self.verdict), &names(Verdict::ALL, Verdict::as_str)),
            order_no: faults.read(
                "order_no",
                text(&self.order_no),
                |number| OrderNo::parse(number).ok(),
                "must be our number of an order",
            ),
            received: Created { from, to },
        }
    }
}

/// A callback.
#[derive(Serialize, ToSchema)]
pub struct CallbackRow {
    /// The number of its row.
    id: i64,
    /// `alipay` or `wechat`.
    payment_method: &'static str,
    /// The account whose address was called.
    account: String,
    /// The gateway's id of the message, or a digest.
    notice_id: String,
    /// The order that it names. What is forged may name any.
    order_no: Option<String>,
    /// The result of settling it.
    #[schema(example = "settled")]
    verdict: &'static str,
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

impl CallbackRow {
    fn of(callback: ListedCallback) -> CallbackRow {
        CallbackRow {
            id: callback.id,
            payment_method: callback.payment_method.as_str(),
            account: callback.account,
            notice_id: callback.notice_id,
            order_no: callback.order_no,
            verdict: callback.verdict.as_str(),
            note: callback.note,
            times_seen: callback.times_seen,
            received_at: callback.received_at,
            last_seen_at: callback.last_seen_at,
        }
    }
}

/// Callbacks, newest first.
#[derive(Serialize, ToSchema)]
pub struct CallbackRows {
    callbacks: Vec<CallbackRow>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// List the callbacks that arrived, newest first.
#[utoipa::path(
    get, path = "/v1/admin/callbacks", tag = "admin", params(CallbackFilters, Slice),
    security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of callbacks", body = CallbackRows),
        (status = 400, description = "`invalid_fields`; `range_required`: a filter without an index needs a range of at most 31 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<CallbackFilters>>,
) -> Result<Json<CallbackRows>, ApiError> {
    let mut faults = Faults::default();
    let filter = filter.read(&mut faults);
    let (limit, before) = slice.read(&mut faults, LIST, |text| mark(text, |id| id.parse().ok()));
    faults.finish()?;
    if filter.reads_on() && !is_bounded(&filter.received, app.clock.now()) {
        return Err(ApiError::RangeRequired(NEEDS_RANGE));
    }
    let found = to_the_end(async move { Ok(callback_list::part(&app.db, &filter, before, limit).await?) }).await?;
    let (shown, next_cursor) =
        part(found, limit, |row| Mark { at: row.received_at, id: row.id }, |mark| marked(LIST, &mark));
    Ok(Json(CallbackRows { callbacks: shown.into_iter().map(CallbackRow::of).collect(), next_cursor }))
}
