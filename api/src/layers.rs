//! The layers around the routes, outermost first; each group of routes has bounds of its own, so that a crowd of
//! frontends never keeps a gateway waiting.

use std::sync::Arc;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::DefaultBodyLimit;
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::{BoxError, Router, middleware};
use shared::clock::Clock;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutError, TimeoutLayer};

use crate::guard;
use crate::headers;
use crate::observe;
use crate::problem::panicked;
use crate::state::App;

/// The largest body of a request.
pub const BODY: usize = shared::job::LONGEST_BODY;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What one group of routes may cost.
pub struct Bounds {
    /// Requests worked on at once.
    pub slots: Arc<Semaphore>,
    /// For a whole answer; the body of a stream does not count.
    pub answer: Duration,
    /// How long a body may take.
    pub body: BodyTime,
}

/// How long the body of a request may take. A body that is later fails with an error of which [`came_too_late`] is true.
#[derive(Debug, Clone, Copy)]
pub struct BodyTime {
    /// Between two parts of it.
    pub gap: Duration,
    /// From the first byte to the last.
    pub whole: Duration,
}

/// Whether a body was not read because it was late, rather than because it was wrong.
pub fn came_too_late(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<TimeoutError>())
}

/// Around everything: what browsers are told, who asks, what it cost, how errors look. `https`: whether browsers reach us by it.
pub fn around(router: Router, clock: Clock, https: bool) -> Router {
    router.layer(
        ServiceBuilder::new()
            .map_response(move |response| headers::secured(https, response))
            .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE]))
            .layer(SetRequestIdLayer::new(REQUEST_ID, FreshId(clock)))
            .layer(middleware::from_fn(observe::observe))
            .layer(PropagateRequestIdLayer::new(REQUEST_ID))
            .map_response(observe::render),
    )
}

/// Around one group of routes.
pub fn bounded(router: Router<Arc<App>>, app: &Arc<App>, bounds: &Bounds) -> Router<Arc<App>> {
    router.layer(
        ServiceBuilder::new()
            .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE))
            .load_shed()
            .layer(GlobalConcurrencyLimitLayer::with_semaphore(bounds.slots.clone()))
            .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, bounds.answer))
            .layer(RequestBodyLimitLayer::new(BODY))
            .layer(RequestBodyTimeoutLayer::new(bounds.body.gap))
            .layer(RequestBodyDeadlineLayer::new(bounds.body.whole))
            .layer(DefaultBodyLimit::disable()),
    )
}

/// Ids of requests, which sort by time. A client may bring one of its own.
#[derive(Clone, Copy)]
struct FreshId(Clock);

impl MakeRequestId for FreshId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&self.0.fresh_id().to_string()).ok().map(RequestId::new)
    }
}
