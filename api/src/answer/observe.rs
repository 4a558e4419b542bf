//! Writes one log line and one measurement for each request, and renders the answers that are not in their final form.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::header::{ALLOW, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::request_id::RequestId;
use tracing::{Instrument, error, field, info, info_span, warn};

use crate::answer::problem::{ApiError, Rendered};
use crate::answer::rarely::Few;

/// The id that the client gave its request. We use our own id beside it.
#[derive(Debug, Clone)]
pub struct ClientRequestId(pub String);

/// Limits the refusals that are logged per second. A stranger can cause any number of them.
static REFUSALS: Few = Few::new(100);

/// Runs a request in a span that all its log lines belong to. The query string is not logged, because it may hold a
/// token.
///
/// The client chooses no metric label: each value of a label stays in memory, and in the metrics output, as long as the
/// process lives.
pub async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    let of_client = request.extensions().get::<ClientRequestId>().map(|id| id.0.as_str());
    let span = info_span!(
        "api.request",
        method,
        route,
        request_id = id,
        client_request_id = of_client,
        client = field::Empty,
        order_id = field::Empty,
        refund_id = field::Empty,
        user_id = field::Empty,
        account = field::Empty,
        outcome = field::Empty,
        reason = field::Empty,
    );
    let response = next.run(request).instrument(span.clone()).await;
    let (status, duration) = (response.status(), began.elapsed());
    span.in_scope(|| log(&response, duration.as_secs_f64() * 1000.0));
    let labels = [("route", route.clone()), ("method", method.to_owned()), ("status", status.as_u16().to_string())];
    metrics::counter!("http_requests_total", &labels).increment(1);
    metrics::histogram!("http_request_duration_seconds", "route" => route).record(duration.as_secs_f64());
    response
}

/// The name of a method that HTTP itself defines, or `other`: a client may send any token as a method.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The security event that an error shows, if it shows one.
fn security_event(error: &ApiError) -> Option<&'static str> {
    match error {
        ApiError::TokenInvalid => Some("token_invalid"),
        ApiError::ScopeMissing(_) => Some("scope_missing"),
        ApiError::PersonRequired => Some("person_required"),
        ApiError::SignInAgain => Some("sign_in_again"),
        ApiError::BuyersOnly => Some("buyers_only"),
        ApiError::SamePerson => Some("same_person"),
        ApiError::TooManyRequests { .. } => Some("too_many_requests"),
        ApiError::TooManyStreams => Some("too_many_streams"),
        _ => None,
    }
}

/// Whether this answer is logged. During a flood of refusals only some are logged; then a line states how many were
/// not.
fn is_logged(response: &Response) -> bool {
    let cheap = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    if !cheap.contains(&response.status()) {
        return true;
    }
    let (is_logged, left_out) = REFUSALS.take(tokio::time::Instant::now());
    if left_out > 0 {
        warn!(left_out, "{left_out} more refusals were not logged: a flood of requests");
    }
    is_logged
}

/// The only place where an error is logged, with all its sources.
fn log(response: &Response, duration_ms: f64) {
    let status = response.status().as_u16();
    if let Some(event) = ApiError::of(response).and_then(|error| security_event(error)) {
        metrics::counter!("security_events_total", "event" => event).increment(1);
    }
    if !is_logged(response) {
        return;
    }
    match ApiError::of(response) {
        Some(failed) if failed.is_defect() => {
            error!(status, duration_ms, error = causes(failed), "Answered {status}: a defect");
        }
        Some(failed) => info!(status, duration_ms, error = causes(failed), "Answered {status}: {failed}"),
        None if response.status().is_server_error() => warn!(status, duration_ms, "Answered {status}"),
        None => info!(status, duration_ms, "Answered {status}"),
    }
}

/// The sources of an error, outermost first; of wrong fields, their names and rules.
fn causes(error: &Arc<ApiError>) -> String {
    let mut causes = Vec::new();
    if let ApiError::InvalidFields(faults) = error.as_ref() {
        causes.extend(faults.iter().map(|fault| format!("{} {}", fault.field, fault.message)));
    }
    let mut source = std::error::Error::source(error.as_ref());
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    causes.join(": ")
}

/// Turns the bare answers of layers and of the router into problems.
pub fn render(response: Response) -> Response {
    let status = response.status();
    let bare = status.is_client_error() || status.is_server_error();
    if !bare || response.extensions().get::<Rendered>().is_some() {
        return response;
    }
    let mut problem = ApiError::Layer(status).into_response();
    for name in [ALLOW, RETRY_AFTER] {
        if let Some(value) = response.headers().get(&name) {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use axum::{Router, middleware};
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
    use tower::ServiceExt;

    use super::*;

    fn series(handle: &PrometheusHandle) -> Vec<String> {
        let text = handle.render();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut series: Vec<String> =
            lines.map(|line| line.rsplit_once(' ').map_or(line, |(name, _)| name).to_owned()).collect();
        series.sort();
        series
    }

    #[tokio::test]
    async fn what_a_stranger_invents_makes_no_series() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _here = metrics::set_default_local_recorder(&recorder);
        let router = Router::new().route("/orders/{id}", get(|| async {})).fallback(|| async {});
        let router = router.layer(middleware::from_fn(observe));
        let send = async |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap();
        };
        for method in ["GET", "INVENTED"] {
            send(method, "/orders/1").await;
            send(method, "/nowhere").await;
        }
        let known = series(&handle);
        assert!(
            known.iter().any(|name| name.contains(r#"route="/orders/{id}",method="GET",status="200""#)),
            "{known:?}"
        );
        for n in 0..1000 {
            send(&format!("M{n}"), &format!("/orders/{n}")).await;
            send(&format!("M{n}"), &format!("/free/{n}")).await;
        }
        assert_eq!(series(&handle), known);
    }
}
