//! The shop over HTTP: one page and the few calls that it makes.

mod events;
mod orders;
mod page;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reqwest::Url;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tracing::info;

use crate::api::{Api, ApiError};
use crate::cli::Serve;
use crate::desk::Desk;
use crate::fulfilment::{self, Queue};
use crate::stop::Stop;

/// How long open pages may delay the shutdown. Streams end at the stop signal, so only a hanging browser needs this
/// limit.
const FAREWELL: Duration = Duration::from_secs(5);

type Shared = Arc<Shop>;

/// The state that all handlers share.
struct Shop {
    api: Api,
    desk: Arc<Desk>,
    sim_url: Url,
    return_url: Option<Url>,
    /// Ends the streams, which would otherwise stay open forever.
    stop: Stop,
}

/// Serves the page and consumes fulfilment events until `stop`.
pub(crate) async fn serve(serve: Serve, stop: Stop) -> anyhow::Result<()> {
    let desk = Desk::new();
    let shop = Shop {
        api: Api::new(&serve.settings)?,
        desk: desk.clone(),
        sim_url: serve.settings.sim_url,
        return_url: serve.return_url,
        stop: stop.clone(),
    };
    let listener = TcpListener::bind(serve.listen).await.with_context(|| format!("listening on {}", serve.listen))?;
    info!("The shop is open at http://{}", listener.local_addr().unwrap_or(serve.listen));
    let consumer = tokio::spawn(fulfilment::consume(serve.settings.amqp_url, Queue::Lasting, desk, stop.clone()));
    let router = router(Arc::new(shop));
    let server = axum::serve(listener, router).with_graceful_shutdown({
        let stop = stop.clone();
        async move { stop.said().await }
    });
    tokio::select! {
        served = server => served.context("serving")?,
        () = async { stop.said().await; tokio::time::sleep(FAREWELL).await } => {}
    }
    // The consumer got the stop signal at the same moment. A broker that hangs must not delay the exit.
    let _ = timeout(FAREWELL, consumer).await;
    Ok(())
}

fn router(shop: Shared) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/api/orders", post(orders::create))
        .route("/api/orders/{id}", get(orders::show))
        .route("/api/orders/{id}/refund", post(orders::refund))
        .route("/api/orders/{id}/stream", get(orders::stream))
        .route("/api/events", get(events::stream))
        .route("/healthz", get(healthz))
        .with_state(shop)
}

/// `GET /healthz`: the shop is up as long as it answers. The answer also shows the state of the broker connection.
async fn healthz(State(shop): State<Shared>) -> Response {
    let link = shop.desk.link().borrow().clone();
    Json(json!({ "status": "ok", "downstream": link })).into_response()
}

/// The page shows problems unchanged, so the person sees what payment-api answered.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, problem) = match self {
            ApiError::Refused { status, problem } => (status, problem),
            ApiError::Unreachable(_) => (502, problem_of(502, "api_unreachable", &self.to_string())),
            ApiError::Shop(_) => (500, problem_of(500, "shop", &self.to_string())),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        (status, [("content-type", "application/problem+json")], Json(problem).0.to_string()).into_response()
    }
}

fn problem_of(status: u16, code: &str, title: &str) -> serde_json::Value {
    json!({ "type": "about:blank", "title": title, "status": status, "code": code })
}
