//! `GET /v1/admin/search`: what has the number that a person reads on a receipt, in a log or in an event.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use store::DbError;
use store::tables::search::{self, Hit, Number};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::Known;
use crate::state::App;

/// The number to search for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Any number: the id of an order, a refund, a case, an event or a user; `order_no`, `merchant_order_no`,
    /// `trade_no`, `refund_no`, or the gateway's number of a refund. Of the last five, the first 8 characters or more are enough.
    #[param(value_type = String, example = "4200002219202611")]
    number: Option<String>,
}

/// What has the number.
#[derive(Serialize, ToSchema)]
pub struct SearchView {
    /// At most 50, newest first.
    hits: Vec<HitView>,
    /// Whether there are more. A longer number finds fewer.
    more: bool,
}

/// One thing that has the number.
#[derive(Serialize, ToSchema)]
pub struct HitView {
    /// `order` `refund` `case` `event` `user`.
    #[schema(example = "order")]
    kind: &'static str,
    /// Its id.
    id: String,
    /// The order that it is, or is about. Null for a user, and where no order is known.
    order_id: Option<String>,
    /// Which of its numbers matched: `order_id` `order_no` `merchant_order_no` `trade_no` `refund_id` `refund_no`
    /// `gateway_refund_no` `case_id` `event_id` `user_id`, or `subject_ref`: a case is about this number.
    #[schema(example = "trade_no")]
    matched: &'static str,
    /// The whole number.
    number: String,
    /// The state of the order, the refund or the case; of an event `published` or `waiting`. Null for a user.
    status: Option<String>,
    /// The amount of the order or the refund, in yuan.
    #[schema(example = "12.34")]
    amount: Option<String>,
    /// When it was created; of an event, when it happened; of a user, when their newest order was created.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl HitView {
    fn of(hit: Hit) -> HitView {
        HitView {
            kind: hit.kind.as_str(),
            id: hit.id,
            order_id: hit.order_id.map(|id| id.to_string()),
            matched: hit.matched.as_str(),
            number: hit.number,
            status: hit.status,
            amount: hit.amount.map(|amount| amount.to_string()),
            created_at: hit.created_at,
        }
    }
}

/// Search for any number.
///
/// A number of fewer than 8 characters must be a whole one. If nothing has exactly this number, the answer is 400, and
/// not an empty list: there may be longer numbers that begin with it.
#[utoipa::path(
    get, path = "/v1/admin/search", tag = "admin", params(Wanted), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "What has the number", body = SearchView),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn search(State(app): State<Arc<App>>, Known(wanted): Known<Wanted>) -> Result<Json<SearchView>, ApiError> {
    let text = wanted.number.ok_or_else(|| ApiError::field("number", "is required"))?;
    let number = Number::parse(&text).map_err(|rule| ApiError::field("number", format!("must be {rule}")))?;
    to_the_end(async move {
        let mut connection = app.db.acquire().await.map_err(DbError::from)?;
        let found = search::search(&mut connection, &number).await?;
        if found.hits.is_empty() && !number.can_be_a_start() {
            let rule = "is no whole number that we know; the start of a number has at least 8 characters";
            return Err(ApiError::field("number", rule));
        }
        Ok(Json(SearchView { hits: found.hits.into_iter().map(HitView::of).collect(), more: found.more }))
    })
    .await
}
