//! The layers around the routes, outermost first. Each group of routes has its own bounds, so that many frontend
//! requests never delay a gateway's callback. A request takes a slot only after its body has arrived: slow clients hold
//! no slot.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, http};
use domain::shorten_bytes;
use runtime::clock::Clock;
use runtime::http_server::shares::holder;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutError, TimeoutLayer};

use crate::access::auth::Caller;
use crate::access::guard::{self, ClientIp};
use crate::answer::headers;
use crate::answer::observe::{self, ClientRequestId};
use crate::answer::problem::{ApiError, panicked};
use crate::state::{App, Client, HELD, Held};

/// The largest body of a request, in bytes.
pub const BODY: usize = domain::message::callback::LONGEST_BODY;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The time limits of one group of routes.
pub struct Bounds {
    /// For the whole answer. The body of a stream does not count.
    pub answer: Duration,
    /// How long a body may take.
    pub body: BodyTime,
}

/// How long the body of a request may take. A slower body fails with an error that [`unread`] recognizes.
#[derive(Debug, Clone, Copy)]
pub struct BodyTime {
    /// The longest pause between two parts of the body.
    pub gap: Duration,
    /// From the arrival of the request's head to the last byte of the body.
    pub whole: Duration,
}

/// Whether the body could not be read because it was too slow, rather than because it was wrong.
fn came_too_late(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<TimeoutError>())
}

/// Outer layers: security headers, request id, logs and metrics, error rendering. `https`: whether browsers reach us
/// over HTTPS.
pub fn around(router: Router, clock: Clock, https: bool) -> Router {
    router.layer(
        ServiceBuilder::new()
            .map_response(move |response| headers::secured(https, response))
            .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE]))
            .map_request(own_request_id)
            .layer(SetRequestIdLayer::new(REQUEST_ID, FreshId(clock)))
            .layer(middleware::from_fn(observe::observe))
            .layer(PropagateRequestIdLayer::new(REQUEST_ID))
            .map_response(observe::render),
    )
}

/// The layers around one group of routes: request checks, panic handling, time limits and body size.
pub fn bounded(router: Router<Arc<App>>, app: &Arc<App>, bounds: &Bounds) -> Router<Arc<App>> {
    router.layer(
        ServiceBuilder::new()
            .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, bounds.answer))
            .layer(RequestBodyLimitLayer::new(BODY))
            .layer(RequestBodyTimeoutLayer::new(bounds.body.gap))
            .layer(RequestBodyDeadlineLayer::new(bounds.body.whole))
            .layer(DefaultBodyLimit::disable()),
    )
}

/// The layer around the frontends' handlers: takes a share for the client, reads the whole body, then takes a slot.
pub async fn slot(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(shares) = client(&request).and_then(|(client, address)| app.in_hand.take(client, address)) else {
        metrics::counter!("requests_limited_total", "budget" => "in_hand").increment(1);
        return ApiError::TooManyRequests { wait: 1 }.into_response();
    };
    let request = match whole(request).await {
        Ok(request) => request,
        Err(status) => return status.into_response(),
    };
    match app.in_hand.requests.clone().try_acquire_owned() {
        Ok(slot) => HELD.scope(Held::new(slot, shares), next.run(request)).await,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn client(request: &Request) -> Option<(Client, IpAddr)> {
    let ClientIp(address) = *request.extensions().get::<ClientIp>()?;
    let client = match request.extensions().get::<Caller>() {
        Some(caller) => Client::User(caller.user.clone()),
        None => Client::Address(holder(address)),
    };
    Some((client, address))
}

/// Reads the whole body of a request into memory.
async fn whole(request: Request) -> Result<Request, StatusCode> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    match Bytes::from_request(Request::new(body), &()).await {
        Ok(body) => Ok(Request::from_parts(parts, Body::from(body))),
        Err(rejection) => Err(unread(&rejection)),
    }
}

/// The status for a body that could not be read.
pub fn unread(rejection: &BytesRejection) -> StatusCode {
    if came_too_late(rejection) { StatusCode::REQUEST_TIMEOUT } else { rejection.status() }
}

/// Stores the client's request id beside ours. It does not replace ours, because it may equal the id of another
/// request.
fn own_request_id(mut request: Request) -> Request {
    if let Some(id) = request.headers_mut().remove(REQUEST_ID) {
        let id = id.to_str().map(|id| shorten_bytes(id, 64).to_owned());
        if let Ok(id) = id {
            request.extensions_mut().insert(ClientRequestId(id));
        }
    }
    request
}

/// Request ids that sort by time.
#[derive(Clone, Copy)]
struct FreshId(Clock);

impl MakeRequestId for FreshId {
    fn make_request_id<B>(&mut self, _: &http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&self.0.fresh_id().to_string()).ok().map(RequestId::new)
    }
}
