//! All routes of the service, one file for each resource.

pub mod admin;
pub mod callbacks;
pub mod index;
pub mod listing;
pub mod orders;
pub mod pages;
pub mod payment_methods;
pub mod refunds;

use std::sync::Arc;
use std::time::Duration;

use crate::layers::{self, BodyTime, Bounds};
use crate::state::App;
use crate::{auth, headers, limits, openapi};
use axum::Router;
use axum::http::StatusCode;
use axum::middleware;

/// The time limit for an answer to a frontend. It is longer than a slow body and a gateway call may take together, so
/// that the client gets the outcome.
const FRONTEND: Duration = Duration::from_secs(20);
/// The time limits for the body of a frontend's request: a phone that loses a packet is silent for a second or two.
const FRONTEND_BODY: BodyTime = BodyTime { gap: Duration::from_secs(4), whole: Duration::from_secs(8) };

/// The router for all requests to the service.
pub fn router(app: Arc<App>) -> Router {
    let bounds = Bounds { answer: FRONTEND, body: FRONTEND_BODY };
    let frontends = openapi::router(app.settings.serve_docs)
        .merge(pages::router())
        .fallback(nothing)
        .method_not_allowed_fallback(not_so);
    let frontends = frontends
        .layer(middleware::from_fn_with_state(app.clone(), layers::slot))
        .layer(middleware::from_fn_with_state(app.clone(), auth::deny_by_default))
        .layer(middleware::from_fn_with_state(app.clone(), limits::limit));
    // CORS is outside the bounds, so that an answer that refuses too many requests also has its headers.
    let frontends = layers::bounded(frontends, &app, &bounds).layer(headers::cors(&app.settings.cors_origins));
    let (clock, https) = (app.clock, app.settings.is_https());
    let everything = frontends.merge(callbacks::router(&app)).with_state(app);
    layers::around(everything, clock, https)
}

/// Callbacks only, for a separate listener.
pub fn callbacks_only(app: Arc<App>) -> Router {
    let (clock, https) = (app.clock, app.settings.is_https());
    layers::around(callbacks::router(&app).fallback(nothing).with_state(app), clock, https)
}

async fn nothing() -> StatusCode {
    StatusCode::NOT_FOUND
}

async fn not_so() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}
