//! The shop over HTTP: one page and the few calls that it makes.

mod events;
mod orders;
mod page;
mod state;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tracing::info;

use self::state::{Shared, Shop};
use crate::api::Api;
use crate::cli::Serve;
use crate::desk::Desk;
use crate::fulfilment::{self, Queue};
use crate::stop::Stop;

/// How long open pages may delay the shutdown. Streams end at the stop signal, so only a hanging browser needs this
/// limit.
const FAREWELL: Duration = Duration::from_secs(5);

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
        .route("/api/orders/tampered", post(orders::tamper))
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
