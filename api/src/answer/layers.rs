//! The layers around all routes, outermost first.

use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::{Router, http, middleware};
use domain::shorten_bytes;
use runtime::clock::Clock;
use tower::ServiceBuilder;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::TimeoutError;

use crate::answer::headers;
use crate::answer::observe::{self, ClientRequestId};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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
