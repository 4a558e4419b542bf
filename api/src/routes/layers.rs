//! The layers around one group of routes. Each group has its own bounds, so that many frontend requests never delay a
//! gateway's callback.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::{Router, middleware};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutLayer};

use crate::access::callers::Networks;
use crate::access::guard;
use crate::answer::problem::panicked;
use crate::state::App;

/// The largest body of a request, in bytes.
const BODY: usize = domain::message::callback::LONGEST_BODY;

/// The time limits of one group of routes.
pub struct Bounds {
    /// For the whole answer. The body of a stream does not count.
    pub answer: Duration,
    /// How long a body may take.
    pub body: BodyTime,
}

/// How long the body of a request may take. A slower body fails with an error that
/// [`unread`](crate::answer::layers::unread) recognizes.
#[derive(Debug, Clone, Copy)]
pub struct BodyTime {
    /// The longest pause between two parts of the body.
    pub gap: Duration,
    /// From the arrival of the request's head to the last byte of the body.
    pub whole: Duration,
}

/// The layers around one group of routes: request checks, panic handling, time limits and body size.
pub fn bounded(router: Router<Arc<App>>, app: &App, bounds: &Bounds) -> Router<Arc<App>> {
    let trusted = Networks::from(app.settings.trusted_proxies.as_slice());
    router.layer(
        ServiceBuilder::new()
            .layer(middleware::from_fn_with_state(trusted, guard::guard))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, bounds.answer))
            .layer(RequestBodyLimitLayer::new(BODY))
            .layer(RequestBodyTimeoutLayer::new(bounds.body.gap))
            .layer(RequestBodyDeadlineLayer::new(bounds.body.whole))
            .layer(DefaultBodyLimit::disable()),
    )
}
