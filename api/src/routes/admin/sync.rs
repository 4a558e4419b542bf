//! `POST /v1/admin/orders/{id}/sync`: makes the worker query the gateway about an order in any state, and shows the
//! result.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use domain::OrderId;
use domain::message::job::{CheckRequest, JobRequest};
use serde::Serialize;
use serde_json::json;
use store::DbError;
use store::cache::Changed;
use store::tables::audit::{self, Act};
use store::tables::jobs;
use store::tables::orders::{self, Order};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::orders::{LOOK, OrderPath, OrderView, PATIENCE};
use crate::state::App;
use crate::watch::synced::Synced;

/// The result of a sync.
#[derive(Serialize, ToSchema)]
pub struct SyncView {
    /// Our record before.
    before: OrderView,
    /// Our record now.
    after: OrderView,
    /// The gateway's last answer; null if it was never queried.
    gateway: Option<GatewayView>,
    /// Whether the gateway has answered since this request. If not, the answer is 202, and the same request shows it
    /// later.
    answered: bool,
    /// The members that differ between before and after.
    #[schema(example = json!(["status", "paid_at"]))]
    changed: Vec<String>,
}

impl SyncView {
    fn of(synced: &Synced) -> Result<SyncView, ApiError> {
        let Synced { before, after, gateway, answered } = synced;
        let changed = changed(before, after)?;
        let (before, after) = (OrderView::of(before), OrderView::of(after));
        let gateway = gateway.clone().map(|(checked_at, state)| GatewayView { state, checked_at });
        Ok(SyncView { before, after, gateway, answered: *answered, changed })
    }
}

/// The gateway's answer.
#[derive(Serialize, ToSchema)]
pub struct GatewayView {
    /// The state in the gateway's own words.
    #[schema(example = "TRADE_SUCCESS")]
    state: String,
    /// When the gateway answered.
    #[serde(with = "time::serde::rfc3339")]
    checked_at: OffsetDateTime,
}

/// Query the gateway about an order now.
#[utoipa::path(
    post, path = "/v1/admin/orders/{id}/sync", tag = "admin", security(("backend" = ["payments:orders"])),
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "The result", body = SyncView),
        (status = 202, description = "The gateway has not answered yet; read the order at `Location`, or repeat", body = SyncView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`order_not_found`", body = Problem),
        (status = 503, description = "`unavailable`", body = Problem),
    )
)]
pub async fn sync(State(app): State<Arc<App>>, caller: Caller, OrderPath(id): OrderPath) -> Result<Response, ApiError> {
    let synced = to_the_end(async move { app.syncing.run(id, request_sync(&app, id, &caller.name())).await }).await?;
    let view = SyncView::of(&synced)?;
    if view.answered {
        return Ok(Json(view).into_response());
    }
    Ok((StatusCode::ACCEPTED, [(LOCATION, format!("/v1/orders/{id}"))], Json(view)).into_response())
}

/// Requests a query and waits for its result. All requests about this order share one wait.
async fn request_sync(app: &App, id: OrderId, who: &str) -> Result<Arc<Synced>, ApiError> {
    let before = orders::get(&app.db, id).await?.ok_or(ApiError::OrderNotFound)?;
    // We compare with the last answer rather than with our clock, because the worker's clock may differ.
    let earlier = orders::last_check(&app.db, id).await?;
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    jobs::request(&mut *tx, &JobRequest::Check(id, CheckRequest::sync()), time::Duration::ZERO).await?;
    let act = Act { subject: who, act: "order.synced", object: format!("order:{id}"), detail: &json!({}) };
    audit::record(&mut tx, &act).await?;
    tx.commit().await.map_err(DbError::from)?;
    let until = Instant::now() + PATIENCE;
    let mut found = earlier.clone();
    while found == earlier && Instant::now() < until {
        sleep(LOOK).await;
        found = orders::last_check(&app.db, id).await?;
    }
    let after = orders::get(&app.db, id).await?.ok_or(ApiError::Db(DbError::Moved))?;
    // A person who syncs does not trust what is shown, so all copies are read from the database again.
    app.cache.orders.renew(&app.db, Changed::Ids(vec![id])).await;
    let answered = found != earlier;
    Ok(Arc::new(Synced { before, after, gateway: found, answered }))
}

fn changed(before: &Order, after: &Order) -> Result<Vec<String>, ApiError> {
    let members = |order: &Order| serde_json::to_value(OrderView::of(order));
    let internal = |error: serde_json::Error| ApiError::Internal(error.into());
    let (before, after) = (members(before).map_err(internal)?, members(after).map_err(internal)?);
    let members = after.as_object().into_iter().flatten();
    Ok(members.filter(|(name, value)| before.get(name) != Some(value)).map(|(name, _)| name.clone()).collect())
}
