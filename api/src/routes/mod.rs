//! All routes of the service, one file for each resource.

pub mod admin;
pub mod callback_answers;
pub mod callbacks;
pub mod index;
mod layers;
pub mod listing;
pub mod orders;
pub mod pages;
pub mod payment_methods;
pub mod refunds;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::rights::Rights;
use crate::access::tokens::Guard;
use crate::access::{in_hand, limits, tokens};
use crate::answer::headers;
use crate::answer::layers::around;
use crate::answer::openapi::{self, Tokens};
use crate::routes::admin::{cases, config, exports, stats, sync};
use crate::routes::layers::{BodyTime, Bounds, bounded};
use crate::routes::orders::PaymentView;
use crate::state::App;

/// The time limit for an answer to a frontend. It is longer than a slow body and a gateway call may take together, so
/// that the client gets the outcome.
const FRONTEND: Duration = Duration::from_secs(20);
/// The time limits for the body of a frontend's request: a phone that loses a packet is silent for a second or two.
const FRONTEND_BODY: BodyTime = BodyTime { gap: Duration::from_secs(4), whole: Duration::from_secs(8) };

/// The router for all requests to the service.
pub fn router(app: Arc<App>) -> Router {
    let rights = Arc::new(Rights::of(described().get_openapi()));
    let guard = Guard { tokens: app.tokens.clone(), rights };
    let bounds = Bounds { answer: FRONTEND, body: FRONTEND_BODY };
    let frontends =
        frontends(app.settings.serve_docs).merge(pages::router()).fallback(nothing).method_not_allowed_fallback(not_so);
    let frontends = frontends
        .layer(middleware::from_fn_with_state(app.in_hand.clone(), in_hand::slot))
        .layer(middleware::from_fn_with_state(guard, tokens::deny_by_default))
        .layer(middleware::from_fn_with_state((app.limits.clone(), app.tokens.clone()), limits::limit));
    // CORS is outside the bounds, so that an answer that refuses too many requests also has its headers.
    let frontends = bounded(frontends, &app, &bounds).layer(headers::cors(&app.settings.cors_origins));
    let (clock, https) = (app.clock, app.settings.is_https());
    let everything = frontends.merge(callbacks::router(&app)).with_state(app);
    around(everything, clock, https)
}

/// Callbacks only, for a separate listener.
pub fn callbacks_only(app: Arc<App>) -> Router {
    let (clock, https) = (app.clock, app.settings.is_https());
    around(callbacks::router(&app).fallback(nothing).with_state(app), clock, https)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "payment-api",
        description = "Orders paid through Alipay and WeChat Pay. Amounts are text in yuan, times are RFC 3339, errors \
            are application/problem+json with a stable `code`."
    ),
    components(schemas(PaymentView)),
    modifiers(&Tokens)
)]
struct Description;

/// The frontends' routes. With `serve_docs` they include their description.
fn frontends(serve_docs: bool) -> Router<Arc<App>> {
    match serve_docs {
        true => openapi::with_page(described()).route("/", get(index::index)),
        false => Router::from(described()).route("/", get(index::name)),
    }
}

fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(orders::create, orders::list))
        .routes(routes!(orders::get))
        .routes(routes!(orders::payment))
        .routes(routes!(orders::stream))
        .routes(routes!(orders::close))
        .routes(routes!(refunds::create))
        .routes(routes!(refunds::get))
        .routes(routes!(refunds::list))
        .routes(routes!(refunds::approve))
        .routes(routes!(refunds::decline))
        .routes(routes!(refunds::withdraw))
        .routes(routes!(admin::search::search))
        .routes(routes!(admin::orders::list))
        .routes(routes!(admin::orders::summary))
        .routes(routes!(admin::story::get))
        .routes(routes!(admin::refunds::list))
        .routes(routes!(admin::callbacks::list))
        .routes(routes!(admin::jobs::list))
        .routes(routes!(admin::keys::list))
        .routes(routes!(admin::audit::list))
        .routes(routes!(exports::create))
        .routes(routes!(exports::get))
        .routes(routes!(exports::file))
        .routes(routes!(sync::sync))
        .routes(routes!(stats::get))
        .routes(routes!(cases::list))
        .routes(routes!(cases::get))
        .routes(routes!(cases::resolve))
        .routes(routes!(cases::propose))
        .routes(routes!(cases::confirm))
        .routes(routes!(cases::reopen))
        .routes(routes!(config::get))
        .routes(routes!(config::change))
        .routes(routes!(config::changes))
        .routes(routes!(admin::catalogue::list))
        .routes(routes!(admin::catalogue::put))
        .routes(routes!(admin::refund_rules::get))
        .routes(routes!(admin::refund_rules::change))
        .routes(routes!(payment_methods::list))
}

async fn nothing() -> StatusCode {
    StatusCode::NOT_FOUND
}

async fn not_so() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}
