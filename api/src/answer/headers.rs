//! Response headers for browsers: what a browser may do with an answer, and which origins may call the API.

use std::time::Duration;

use axum::extract::Request;
use axum::http::Method;
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    LOCATION, REFERRER_POLICY, RETRY_AFTER, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::Origin;

/// An answer of the API is data: a browser must not run it, frame it, guess its type or store it.
const DATA: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
];
/// The documentation page of the API has its own scripts and styles.
const DOCS: (&str, HeaderValue) = (
    "/docs",
    HeaderValue::from_static(
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     frame-ancestors 'none'",
    ),
);

/// Sets the content security policy of the documentation page. `/openapi.json` beside it has the policy for data.
pub async fn docs(request: Request, next: Next) -> Response {
    let (path, policy) = DOCS;
    let page = request.uri().path().starts_with(path);
    let mut response = next.run(request).await;
    if page {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Adds the headers that an answer does not set itself. `https`: whether browsers reach us over HTTPS. If so, they must
/// never use plain HTTP.
pub fn secured(https: bool, mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in DATA {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if https {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    response
}

/// Allows browser pages of these origins to call the API, with a bearer token and without cookies. An empty list allows
/// no page of another origin.
pub fn cors(origins: &[Origin]) -> CorsLayer {
    let origins = origins.iter().filter_map(|origin| HeaderValue::try_from(origin.ascii_serialization()).ok());
    let header = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PATCH])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, header("idempotency-key"), header("last-event-id")])
        .expose_headers([
            CONTENT_DISPOSITION,
            LOCATION,
            RETRY_AFTER,
            header("idempotency-expires"),
            header("idempotency-replayed"),
            header("ratelimit"),
            header("ratelimit-policy"),
            header("x-request-id"),
        ])
        .max_age(Duration::from_secs(3600))
}
