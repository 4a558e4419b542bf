//! The operations endpoints of a process: one listener with `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::env::Env;
use crate::http_server::{HttpLimits, serve_http};
use crate::telemetry::PrometheusHandle;

/// The address of the operations endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpsConfig {
    /// `OPS_ADDR`: the address of `/metrics`, `/healthz` and `/readyz`.
    pub addr: SocketAddr,
}

impl OpsConfig {
    /// Reads `OPS_ADDR`; without it the process listens on `port` of the loopback interface.
    pub fn from_env(env: &mut Env, port: u16) -> Option<OpsConfig> {
        let hint = "set it to an address and port, such as 127.0.0.1:9100";
        let addr = env.parse_or("OPS_ADDR", SocketAddr::from(([127, 0, 0, 1], port)), hint)?;
        Some(OpsConfig { addr })
    }
}

/// How long one readiness check may take.
const CHECK: Duration = Duration::from_secs(2);

type Outcome = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Check = Box<dyn Fn() -> Outcome + Send + Sync>;

/// The checks that must pass for a process to be ready.
#[derive(Default)]
pub struct Checks(Vec<(&'static str, Check)>);

impl Checks {
    /// No checks: always ready.
    pub fn new() -> Checks {
        Checks::default()
    }

    /// Adds a check. Its error text is shown to any caller of `/readyz`, so it must hold no secret.
    pub fn add<F, R>(mut self, name: &'static str, check: F) -> Checks
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.0.push((name, Box::new(move || Box::pin(check()))));
        self
    }

    /// Runs all checks at once; each one passes, fails, or times out.
    async fn run(&self) -> Vec<(&'static str, Result<(), String>)> {
        let run = self.0.iter().map(|(name, check)| async move {
            let outcome = timeout(CHECK, check()).await;
            (*name, outcome.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        });
        futures_util::future::join_all(run).await
    }
}

/// Serves the ops endpoints until `stop`.
async fn serve(listener: TcpListener, checks: Checks, metrics: PrometheusHandle, stop: CancellationToken) {
    serve_http(listener, router(checks, metrics), HttpLimits::default(), stop).await;
}

/// Does `work`, and serves the ops endpoints until it has ended: what a stopping process still has in hand is worth seeing.
pub async fn serve_while(
    listener: TcpListener,
    checks: Checks,
    metrics: PrometheusHandle,
    work: impl Future<Output = ()>,
) {
    let done = CancellationToken::new();
    let shown = tokio::spawn(serve(listener, checks, metrics, done.clone()));
    work.await;
    done.cancel();
    let _ = shown.await;
}

fn router(checks: Checks, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz).with_state(Arc::new(checks)))
        .route("/metrics", get(render).with_state(metrics))
}

async fn render(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// Ready if every check passes; the body lists each check with its state.
async fn readyz(State(checks): State<Arc<Checks>>) -> impl IntoResponse {
    let outcomes = checks.run().await;
    let ready = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
    let states = outcomes.into_iter().map(|(name, outcome)| match outcome {
        Ok(()) => (name.to_owned(), json!("ok")),
        Err(reason) => (name.to_owned(), json!(reason)),
    });
    let body = json!({ "ready": ready, "checks": states.collect::<serde_json::Map<_, _>>() });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn readiness_names_each_check() {
        let checks = Checks::new()
            .add("good", || async { Ok(()) })
            .add("bad", || async { Err("away".to_owned()) })
            .add("mute", std::future::pending);
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let request = Request::get("/readyz").body(Body::empty()).unwrap();
        let answer = router(checks, metrics).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = to_bytes(answer.into_body(), 4096).await.unwrap();
        let expected =
            json!({ "ready": false, "checks": { "good": "ok", "bad": "away", "mute": "no answer in time" } });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expected);
    }

    #[tokio::test]
    async fn operations_look_in_until_the_work_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let metrics = crate::telemetry::install_metrics().unwrap();
        let shutdown = crate::shutdown::Shutdown::install().unwrap();
        let stop = shutdown.stop();
        let get = async move |path: &str| {
            let mut socket = TcpStream::connect(addr).await?;
            socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await?;
            let mut said = String::new();
            socket.read_to_string(&mut said).await?;
            std::io::Result::Ok(said)
        };
        let work = async {
            let sent = std::process::Command::new("kill").arg(std::process::id().to_string()).status();
            assert!(sent.unwrap().success());
            stop.cancelled().await;
            for path in ["/healthz", "/readyz", "/metrics"] {
                let said = get(path).await.unwrap();
                assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
            }
        };
        shutdown.run(serve_while(listener, Checks::new(), metrics, work)).await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err(), "and no longer");
    }
}
