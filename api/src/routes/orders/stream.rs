//! `GET /v1/orders/{id}/stream`: status changes as server-sent events, for a page that waits for a payment.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use domain::{ExtraState, OrderStatus, UserId};
use futures_util::stream::{self, Stream};
use runtime::http_server::shares::{self, AddressShare};
use serde::Serialize;
use store::tables::orders::{self, Order};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, sleep_until};
use utoipa::ToSchema;

use super::{ExtraPaymentView, OrderPath};
use crate::access::guard::ClientIp;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Viewer;
use crate::answer::problem::{ApiError, Problem};
use crate::state::App;
use crate::watch::hub::Subscription;

/// The longest life of one stream. The browser opens the next one by itself.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// Prevents proxies from closing a silent connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Time for the client to close the stream after a final status, so that it does not open the stream again.
const AFTERGLOW: Duration = Duration::from_secs(3);

/// The data of one event.
#[derive(Serialize, ToSchema)]
pub struct StatusChange {
    /// The order's id.
    id: String,
    /// The order's number.
    order_no: String,
    /// `pending` `paid` `closed` `refunding` `partially_refunded` `refunded`.
    status: String,
    /// In yuan.
    amount: String,
    /// As in the order itself.
    close_requested: bool,
    /// As in the order itself.
    extra_payment: Option<ExtraPaymentView>,
    /// By the gateway's clock, or by ours if the gateway states an impossible time.
    #[serde(with = "time::serde::rfc3339::option")]
    paid_at: Option<OffsetDateTime>,
    /// Increases with each change. It is also the id of the event.
    version: i64,
}

/// Watch an order.
///
/// Events are called `status`: the current status is sent at once, then each change. After a final status the stream
/// ends. A browser that opens it again gets 204, which stops its attempts. An `EventSource` passes `?view_token=`.
/// While the order is pending, the gateway is queried about it from time to time, so a payment appears even if its
/// notice is lost.
#[utoipa::path(
    get, path = "/v1/orders/{id}/stream", tag = "orders", security(("bearer" = []), ("view_token" = [])),
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "Events of this form", content_type = "text/event-stream", body = StatusChange),
        (status = 204, description = "The final status was seen already (`Last-Event-ID`)"),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 404, description = "`order_not_found`: no such order, or another user's", body = Problem),
        (status = 429, description = "`too_many_streams` of this order, of this user or from this address", body = Problem),
        (status = 503, description = "`streams_full`", body = Problem),
    )
)]
pub async fn stream(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    OrderPath(id): OrderPath,
    Extension(ClientIp(address)): Extension<ClientIp>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let db = app.db.clone();
    let order = viewer.shown(to_the_end(async move { Ok(orders::get(&db, id).await?) }).await?)?;
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    if is_final(&order) && seen == Some(order.version) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    app.hints.came_back(&app.db, (order.id, order.status));
    let share = share(&app, &viewer, address)?;
    let events = events(app.hub.watch(order)?, app, share);
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here"));
    Ok(([("x-accel-buffering", "no")], stream).into_response())
}

/// Whether a payment page has nothing more to wait for.
pub fn is_final(order: &Order) -> bool {
    match order.status {
        OrderStatus::Pending | OrderStatus::Refunding => false,
        // The buyer has paid anyway, and waits for what happens to the money.
        OrderStatus::Closed => !order.extra_state.is_some_and(ExtraState::is_open),
        _ => true,
    }
}

/// The share of a viewer: as a user, or by address.
type Share = (Option<shares::Share<UserId>>, Option<AddressShare>);

/// Takes a share for one more stream of this viewer.
fn share(app: &App, viewer: &Viewer, address: IpAddr) -> Result<Share, ApiError> {
    let share = match viewer {
        Viewer::User(user) => app.in_hand.streams_of_user.take(user.clone()).map(|share| (Some(share), None)),
        // The routes let no merchant in: a backend reads events.
        Viewer::Merchant => return Err(ApiError::BuyersOnly),
        Viewer::Holder(_) => app.in_hand.streams_of_address.take(address).map(|share| (None, Some(share))),
    };
    share.ok_or(ApiError::TooManyStreams)
}

struct Watching {
    app: Arc<App>,
    _share: Share,
    subscription: Subscription,
    until: Instant,
    began: bool,
    over: bool,
}

fn events(subscription: Subscription, app: Arc<App>, share: Share) -> impl Stream<Item = Result<Event, axum::Error>> {
    let watching =
        Watching { app, _share: share, subscription, until: Instant::now() + LIFE, began: false, over: false };
    stream::unfold(watching, |mut watching| async move {
        let order = watching.next().await?;
        watching.over = is_final(&order);
        watching.app.cache.orders.saw(&order);
        Some((event(&order), watching))
    })
}

impl Watching {
    /// The next state to send. `None` when the stream ends.
    async fn next(&mut self) -> Option<Arc<Order>> {
        let stop = self.subscription.stop();
        if self.over {
            tokio::select! { () = sleep(AFTERGLOW) => {}, () = stop.cancelled() => {} }
            return None;
        }
        if self.began {
            tokio::select! {
                changed = self.subscription.newest.changed() => changed.ok()?,
                () = sleep_until(self.until) => return None,
                () = stop.cancelled() => return None,
            }
        }
        self.began = true;
        Some(self.subscription.newest.borrow_and_update().clone())
    }
}

fn event(order: &Order) -> Result<Event, axum::Error> {
    let data = StatusChange {
        id: order.id.to_string(),
        order_no: order.order_no.to_string(),
        status: order.status.to_string(),
        amount: order.amount.to_string(),
        close_requested: order.close_requested_at.is_some(),
        extra_payment: ExtraPaymentView::of(order.extra_state, order.extra_amount),
        paid_at: order.paid_at,
        version: order.version,
    };
    Event::default().event("status").id(order.version.to_string()).json_data(data)
}
