//! Orders: place one, get a fresh credential for it, read it, list them, watch it, close it.

mod body;
mod close;
mod place;
mod stream;
mod view;
mod vouch;

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use domain::{OrderId, OrderStatus};
use store::cache::OrderCopy;
use store::tables::orders;
use tracing::Span;
use tracing::field::display;

pub use body::CreateOrder;
pub use close::{__path_close, LOOK, PATIENCE, close, request_close_and_check};
pub use stream::{__path_stream, is_final, stream};
pub use view::{ExtraPaymentView, OrderPage, OrderView, PayableOrder, PaymentView};

use crate::access::caller::Caller;
use crate::access::guard::ClientIp;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::{User, Viewer};
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::JsonBytes;
use crate::create::idempotency::{self, IdempotencyKey};
use crate::routes::listing::{Filter, Known, page};
use crate::state::App;
use place::Placement;

/// Place an order and get what the buyer needs to pay it.
///
/// A repeat with the same Idempotency-Key and the same body, byte for byte, gets the same answer, with
/// `Idempotency-Replayed: true`, and creates no second order. `Idempotency-Expires` states until when, which is after
/// the order's own expiry. While the first request is in flight, a repeat waits up to 3 s and then gets 409 with
/// `Retry-After`. After `gateway_unavailable` the order exists: the repeat calls the gateway again with the same
/// number. The same holds after `gateway_misconfigured`, but the merchant must correct something first.
/// `order_unusable` is final, and the order is being closed: a new order needs a new key. After `order_not_payable`,
/// read the order, because it may be paid. A request that was refused with 400 has used no key.
///
/// A buyer does not name the price. An `offer` that the merchant's backend signed fixes what is sold, or the catalogue has
/// the `product_type`; `BUYER_PRICES` of the service says which. Otherwise the answer is `price_not_vouched`. The
/// merchant's backend names `subject` and `amount` itself.
///
/// A purchase, which an offer or a `merchant_order_no` names, has one order that is not closed. A request that describes
/// this order gets it with 200 and a fresh credential, and uses no key. Another way to pay, or another price, gets
/// `…_has_open_order` with the `order_id`: close that order first. Once one is paid, the answer is `…_used`.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", request_body = CreateOrder,
    security(("bearer" = []), ("backend" = ["payments:orders"])),
    params(("Idempotency-Key" = String, Header, description = "1 to 255 visible ASCII characters, fresh for each order")),
    responses(
        (status = 200, description = "The order that the purchase has already, and what the buyer needs", body = PayableOrder),
        (status = 201, description = "The order and what the buyer needs", body = PayableOrder),
        (status = 400, description = "`invalid_fields` (all of them), `malformed_json`, `idempotency_key_required`, `idempotency_key_invalid`, `offer_invalid`, `offer_expired`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`price_not_vouched`: a buyer named the price; `scope_missing`", body = Problem),
        (status = 409, description = "`method_disabled`, `scene_disabled`, `amount_out_of_range` (with `min_amount` and `max_amount`), `request_in_flight`, `order_unusable` (with `gateway_code`), `order_not_payable`, `offer_has_open_order`, `offer_used`, `merchant_order_no_has_open_order`, `merchant_order_no_used` (these four with `order_id`), `too_many_pending_orders`", body = Problem),
        (status = 413, description = "`body_too_large`", body = Problem),
        (status = 415, description = "`unsupported_media_type`", body = Problem),
        (status = 422, description = "`idempotency_key_reused`", body = Problem),
        (status = 502, description = "`gateway_protocol`", body = Problem),
        (status = 503, description = "`gateway_unavailable`, `gateway_misconfigured`, `unavailable`, `overloaded`: repeat with the same key", body = Problem),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Caller { identity, .. }: Caller,
    key: IdempotencyKey,
    Extension(ClientIp(client_ip)): Extension<ClientIp>,
    JsonBytes(body): JsonBytes,
) -> Result<impl IntoResponse, ApiError> {
    let request = idempotency::Request::new(identity.to_string(), key, "POST /v1/orders", &body);
    let placement = Placement { app, request, identity, client_ip, body };
    let answer = to_the_end(placement.run()).await?;
    Ok(answer.into_response(StatusCode::CREATED, "/v1/orders"))
}

/// Get a fresh credential for an order that is not paid yet, from the same parameters.
///
/// This never closes the order. If the gateway gives no fresh credential, the last one is returned again while it is
/// valid. Otherwise the order stays as it is.
#[utoipa::path(
    post, path = "/v1/orders/{id}/payment", tag = "orders",
    security(("bearer" = []), ("backend" = ["payments:orders"])),
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "The order and what the buyer needs", body = PayableOrder),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 404, description = "`order_not_found`: no such order, or another user's", body = Problem),
        (status = 409, description = "`order_not_payable`, `credential_refused` (with `gateway_code`)", body = Problem),
        (status = 502, description = "`gateway_protocol`", body = Problem),
        (status = 503, description = "`gateway_unavailable`, `gateway_misconfigured`, `unavailable`", body = Problem),
    )
)]
pub async fn payment(
    State(app): State<Arc<App>>,
    caller: Caller,
    OrderPath(id): OrderPath,
) -> Result<Json<PayableOrder>, ApiError> {
    to_the_end(async move {
        let order = Viewer::of(&caller).shown(orders::get(&app.db, id).await?)?;
        place::renewed(&app, &order).await.map(Json)
    })
    .await
}

/// Get an order.
///
/// The answer is the order as it was at some moment of the last second. One process never shows an older `version`
/// after a newer one. While the order is pending and is read repeatedly, the gateway is queried about it from time to
/// time, so a payment appears even if its notice is lost.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders",
    security(("bearer" = []), ("view_token" = []), ("backend" = ["payments:read"]), ("backend" = ["payments:orders"])),
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "The order", body = OrderView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 404, description = "`order_not_found`: no such order, or another user's", body = Problem),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    OrderPath(id): OrderPath,
) -> Result<Json<OrderView>, ApiError> {
    let reading = app.clone();
    let copy = to_the_end(async move { Ok(reading.cache.orders.get(&reading.db, id).await?) }).await?;
    let order = copy.as_deref().map(OrderCopy::order);
    let order = order.filter(|order| viewer.may_see(order.id, &order.user_id)).ok_or(ApiError::OrderNotFound)?;
    app.hints.read(&app.db, (order.id, order.status));
    Ok(Json(OrderView::of(order)))
}

/// List the user's own orders, newest first.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", params(Filter), security(("bearer" = [])),
    responses(
        (status = 200, description = "A page of orders", body = OrderPage),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    User(user): User,
    Known(filter): Known<Filter>,
) -> Result<Json<OrderPage>, ApiError> {
    let states: Vec<&str> = OrderStatus::ALL.iter().map(|status| status.as_str()).collect();
    let wanted = filter.read(|id| OrderId::parse(id).ok(), &states)?;
    let limit = wanted.limit;
    let of_user = app.clone();
    let found = to_the_end(async move { Ok(orders::of_user(&of_user.db, &user, &wanted).await?) }).await?;
    found.iter().for_each(|order| app.cache.orders.saw(order));
    let (shown, next_cursor) = page(found, limit, |order| order.id.to_string());
    Ok(Json(OrderPage { orders: shown.iter().map(OrderView::of).collect(), next_cursor }))
}

/// The order that a path names. A text that is not an id is an unknown order.
pub struct OrderPath(pub OrderId);

impl FromRequestParts<Arc<App>> for OrderPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<OrderPath, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) = path.map_err(|_| ApiError::OrderNotFound)?;
        let id = OrderId::parse(&text).map_err(|_| ApiError::OrderNotFound)?;
        Span::current().record("order_id", display(id));
        Ok(OrderPath(id))
    }
}
