//! `POST /v1/orders/{id}/close`: closes an unpaid order. Only the worker changes the order, because only the gateway
//! knows whether the buyer is paying at this very moment.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use domain::message::job::{CheckRequest, JobRequest};
use domain::{OrderId, OrderStatus};
use runtime::crash::{self, Point};
use store::DbError;
use store::tables::jobs;
use store::tables::orders::{self, Order};
use tokio::time::{Instant, sleep};

use super::{OrderPath, OrderView};
use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Viewer;
use crate::answer::problem::{ApiError, Problem};
use crate::state::App;

/// How long a request waits for the worker.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often it reads the order while it waits.
pub const LOOK: Duration = Duration::from_millis(100);

/// Close an order that is not paid.
///
/// The gateway is queried first: an order that is being paid becomes paid, and the answer is `order_already_paid`.
/// While the order is still open it shows `close_requested`: at Alipay a cashier page that the buyer has not opened yet
/// can only be closed once it is opened, or when it expires.
#[utoipa::path(
    post, path = "/v1/orders/{id}/close", tag = "orders",
    security(("bearer" = []), ("backend" = ["payments:orders"])),
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "The order, closed", body = OrderView),
        (status = 202, description = "The result is not known yet; read the order at `Location`", body = OrderView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 404, description = "`order_not_found`: no such order, or it is another user's", body = Problem),
        (status = 409, description = "`order_already_paid`", body = Problem),
        (status = 503, description = "`unavailable`", body = Problem),
    )
)]
pub async fn close(
    State(app): State<Arc<App>>,
    caller: Caller,
    OrderPath(id): OrderPath,
) -> Result<Response, ApiError> {
    let (giving_up, viewer) = (app.clone(), Viewer::of(&caller));
    let order = to_the_end(async move {
        let order = viewer.shown(orders::get(&giving_up.db, id).await?)?;
        match giving_up.in_hand.waiting.try_acquire() {
            Ok(_waits) => giving_up.closing.run(id, give_up(&giving_up, order)).await,
            Err(_) => give_up_at_once(&giving_up, order).await,
        }
    })
    .await?;
    app.cache.orders.saw(&order);
    match order.status {
        OrderStatus::Closed => Ok(Json(OrderView::of(&order)).into_response()),
        OrderStatus::Pending => {
            let look = [(LOCATION, format!("/v1/orders/{id}"))];
            Ok((StatusCode::ACCEPTED, look, Json(OrderView::of(&order))).into_response())
        }
        _ => Err(ApiError::OrderAlreadyPaid),
    }
}

/// The order after the worker has changed it, or as it is after [`PATIENCE`]. All requests about this order share one
/// wait.
async fn give_up(app: &App, mut order: Order) -> Result<Arc<Order>, ApiError> {
    if order.status != OrderStatus::Pending {
        return Ok(Arc::new(order));
    }
    request_close_and_check(app, order.id).await?;
    crash::at(Point::CloseRequested);
    let until = Instant::now() + PATIENCE;
    while order.status == OrderStatus::Pending && Instant::now() < until {
        sleep(LOOK).await;
        order = orders::get(&app.db, order.id).await?.ok_or(DbError::Moved)?;
    }
    Ok(Arc::new(order))
}

/// The same without waiting: the order right after the request. A repeated request adds no job.
async fn give_up_at_once(app: &App, order: Order) -> Result<Arc<Order>, ApiError> {
    if order.status != OrderStatus::Pending {
        return Ok(Arc::new(order));
    }
    request_close(app, order.id, Repeat::AddsNothing).await?;
    Ok(Arc::new(orders::get(&app.db, order.id).await?.ok_or(DbError::Moved)?))
}

/// Makes the worker query the gateway about an order at once, and close the order unless it is paid. From then on the
/// order shows that its close was requested.
pub async fn request_close_and_check(app: &App, id: OrderId) -> Result<(), DbError> {
    request_close(app, id, Repeat::ChecksAgain).await
}

/// The effect of a request for an order whose close was requested before.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Repeat {
    /// It brings the check forward once more.
    ChecksAgain,
    /// The check that is already due is enough.
    AddsNothing,
}

async fn request_close(app: &App, id: OrderId, repeat: Repeat) -> Result<(), DbError> {
    let mut tx = app.db.begin().await?;
    let is_first = orders::request_close(&mut tx, id, app.clock.now()).await?;
    if is_first || repeat == Repeat::ChecksAgain {
        jobs::request(&mut *tx, &JobRequest::Check(id, CheckRequest::close()), time::Duration::ZERO).await?;
    }
    Ok(tx.commit().await?)
}
