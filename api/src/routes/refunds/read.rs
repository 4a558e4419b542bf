//! Shows one refund, and lists the user's own.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use domain::{RefundId, RefundStatus};
use store::tables::orders;
use store::tables::refunds;
use tracing::Span;
use tracing::field::display;

use super::failure::failures;
use super::view::{RefundPage, RefundView};
use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::{User, Viewer};
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Filter, Known, page};
use crate::state::App;

/// Get a refund.
#[utoipa::path(
    get, path = "/v1/refunds/{id}", tag = "refunds",
    security(("bearer" = []), ("backend" = ["payments:read"]), ("backend" = ["payments:refund"])),
    params(("id" = String, Path, description = "The refund's id")),
    responses(
        (status = 200, description = "The refund", body = RefundView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 404, description = "`refund_not_found`: no such refund, or of another user's order", body = Problem),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    RefundPath(id): RefundPath,
) -> Result<Json<RefundView>, ApiError> {
    to_the_end(async move {
        let refund = refunds::get(&app.db, id).await?.ok_or(ApiError::RefundNotFound)?;
        let order = orders::get(&app.db, refund.order_id).await?;
        let viewer = Viewer::of(&caller);
        let order = viewer.shown(order).map_err(|_| ApiError::RefundNotFound)?;
        app.cache.orders.saw(&order);
        let failure = failures(&app, std::slice::from_ref(&refund), &viewer).await?.remove(&refund.id);
        Ok(Json(RefundView::of(&refund, failure)))
    })
    .await
}

/// List the refunds of the user's own orders, newest first.
#[utoipa::path(
    get, path = "/v1/refunds", tag = "refunds", params(Filter), security(("bearer" = [])),
    responses(
        (status = 200, description = "A page of refunds", body = RefundPage),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    User(user): User,
    Known(filter): Known<Filter>,
) -> Result<Json<RefundPage>, ApiError> {
    let states: Vec<&str> = RefundStatus::ALL.iter().map(|status| status.as_str()).collect();
    let wanted = filter.read(|id| RefundId::parse(id).ok(), &states)?;
    let limit = wanted.limit;
    to_the_end(async move {
        let found = refunds::of_user(&app.db, &user, &wanted).await?;
        let (shown, next_cursor) = page(found, limit, |refund| refund.id.to_string());
        let mut failures = failures(&app, &shown, &Viewer::User(user)).await?;
        let refunds = shown.iter().map(|refund| RefundView::of(refund, failures.remove(&refund.id))).collect();
        Ok(Json(RefundPage { refunds, next_cursor }))
    })
    .await
}

/// The refund that a path names. A text that is not an id is an unknown refund.
pub struct RefundPath(pub RefundId);

impl FromRequestParts<Arc<App>> for RefundPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<RefundPath, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) = path.map_err(|_| ApiError::RefundNotFound)?;
        let id = RefundId::parse(&text).map_err(|_| ApiError::RefundNotFound)?;
        Span::current().record("refund_id", display(id));
        Ok(RefundPath(id))
    }
}
