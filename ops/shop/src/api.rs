//! The shop's requests to payment-api, over HTTP like any other merchant's.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use reqwest::{Client, Response, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::cli::{Identity, Settings, join};
use crate::offer::{Offers, Purchase, forged};
use crate::token;

const CALL: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(3);
/// The stream sends something at least every 15 s, so this much silence means that the connection is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// A client of payment-api that acts for the shopper.
pub(crate) struct Api {
    http: Client,
    base: Url,
    identity: Identity,
    offers: Offers,
}

/// A new order, in the form that payment-api reads: the offer says what is sold.
#[derive(Serialize)]
struct NewOrder<'a> {
    offer: &'a str,
    payment_method: &'a str,
    scene: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_url: Option<&'a str>,
}

/// An order as payment-api shows it. Fields that the shop does not use are passed on unchanged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) order_no: String,
    pub(crate) amount: String,
    pub(crate) status: String,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// An order with its payment parameters.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Created {
    pub(crate) order: Order,
    pub(crate) payment: Payment,
    pub(crate) view_token: String,
}

/// How the buyer reaches the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Payment {
    /// Redirect the browser to this URL.
    Redirect { url: String },
    /// Show this as a QR code.
    Qr { code_url: String },
    /// Pass this to the gateway's own app or script.
    Invoke { params: Value },
}

/// The error of a request to payment-api.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// payment-api refused, with a problem document.
    #[error("payment-api answered {status}: {}", describe(.problem))]
    Refused { status: u16, problem: Value },
    /// payment-api did not answer, or not in time.
    #[error("payment-api did not answer: {}", chain(.0))]
    Unreachable(#[source] reqwest::Error),
    /// An error of the shop itself.
    #[error("{0:#}")]
    Shop(anyhow::Error),
}

impl ApiError {
    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            ApiError::Refused { status: 503 | 429, .. } => true,
            ApiError::Refused { problem, .. } => problem.get("code").is_some_and(|code| code == "request_in_flight"),
            ApiError::Unreachable(_) => true,
            ApiError::Shop(_) => false,
        }
    }
}

impl Api {
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Api> {
        let http = Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).build();
        let http = http.context("building the HTTP client")?;
        Ok(Api { http, base: settings.api_url.clone(), identity: settings.identity.clone(), offers: Offers::default() })
    }

    /// Creates an order. The same `attempt` never creates a second one, so it may be repeated after any error.
    pub(crate) async fn create(&self, attempt: &str, purchase: &Purchase) -> Result<Created, ApiError> {
        let offer = self.offers.of(&self.identity, attempt, purchase).map_err(ApiError::Shop)?;
        self.create_with(attempt, purchase, &offer).await
    }

    /// Tries what a dishonest shopper would: sends the offer with another amount, and the old signature. payment-api
    /// refuses it.
    pub(crate) async fn tamper(&self, attempt: &str, purchase: &Purchase, amount: &str) -> Result<Created, ApiError> {
        let honest = self.offers.of(&self.identity, attempt, purchase).map_err(ApiError::Shop)?;
        let cheap = Purchase { amount: amount.to_owned(), ..purchase.clone() };
        let cheap = self.offers.of(&self.identity, &format!("{attempt}-cheap"), &cheap).map_err(ApiError::Shop)?;
        let forged =
            forged(&honest, &cheap).ok_or_else(|| ApiError::Shop(anyhow::anyhow!("an offer has three parts")))?;
        self.create_with(attempt, purchase, &forged).await
    }

    async fn create_with(&self, attempt: &str, purchase: &Purchase, offer: &str) -> Result<Created, ApiError> {
        let Purchase { payment_method, scene, return_url, .. } = purchase;
        let order = NewOrder { offer, payment_method, scene, return_url: return_url.as_deref() };
        let request = self.http.post(join(&self.base, &["v1", "orders"])).header("Idempotency-Key", attempt);
        let response = self.send(request.bearer_auth(self.token()?).timeout(CALL).json(&order)).await?;
        response.json().await.map_err(ApiError::Unreachable)
    }

    /// Requests a refund of all that is left of an order. The same `attempt` is the same request, so it may be
    /// repeated after any error.
    pub(crate) async fn refund(&self, attempt: &str, id: &str) -> Result<(), ApiError> {
        let url = join(&self.base, &["v1", "orders", id, "refunds"]);
        let body = serde_json::json!({ "reason": "演示退款" });
        let request = self.http.post(url).header("Idempotency-Key", attempt);
        self.send(request.bearer_auth(self.token()?).timeout(CALL).json(&body)).await.map(drop)
    }

    /// The current state of the order.
    pub(crate) async fn order(&self, id: &str) -> Result<Order, ApiError> {
        let request = self.http.get(join(&self.base, &["v1", "orders", id]));
        let response = self.send(request.bearer_auth(self.token()?).timeout(CALL)).await?;
        response.json().await.map_err(ApiError::Unreachable)
    }

    /// Opens the order's event stream with its view token, as a browser would, after the last event that the
    /// browser saw.
    pub(crate) async fn stream(&self, id: &str, view_token: &str, seen: Option<&str>) -> Result<Response, ApiError> {
        let mut url = join(&self.base, &["v1", "orders", id, "stream"]);
        url.query_pairs_mut().append_pair("view_token", view_token);
        let mut request = self.http.get(url).header("Accept", "text/event-stream");
        if let Some(seen) = seen {
            request = request.header("Last-Event-ID", seen);
        }
        self.send(request).await
    }

    fn token(&self) -> Result<String, ApiError> {
        token::mint(&self.identity, SystemTime::now()).map_err(ApiError::Shop)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, ApiError> {
        // The URL is removed from the error, because it can contain a view token.
        let response = request.send().await.map_err(|error| ApiError::Unreachable(error.without_url()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap_or_default();
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            serde_json::json!({ "code": "not_json", "title": "An answer that is no problem document", "detail": text })
        });
        Err(ApiError::Refused { status, problem })
    }
}

/// A problem document in one line: its title, and every invalid field.
fn describe(problem: &Value) -> String {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut line = text(problem, "title");
    for part in [text(problem, "code"), text(problem, "detail")] {
        if !part.is_empty() {
            line.push_str(&format!(" ({part})"));
        }
    }
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        line.push_str(&format!("; {}: {}", text(error, "field"), text(error, "message")));
    }
    line
}

/// An error with its chain of sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_becomes_one_line_with_every_field() {
        let problem = json!({ "title": "Invalid request", "code": "invalid", "errors": [
            { "field": "amount", "message": "must be above zero" }, { "field": "scene", "message": "unknown" } ] });
        let line = "Invalid request (invalid); amount: must be above zero; scene: unknown";
        assert_eq!(describe(&problem), line);
        assert_eq!(describe(&json!("odd")), "");
    }

    #[test]
    fn every_kind_of_payment_is_read() {
        let read = |payment: Value| serde_json::from_value::<Payment>(payment);
        assert!(matches!(read(json!({ "kind": "redirect", "url": "u" })), Ok(Payment::Redirect { .. })));
        assert!(matches!(read(json!({ "kind": "qr", "code_url": "u" })), Ok(Payment::Qr { .. })));
        assert!(matches!(read(json!({ "kind": "invoke", "params": {} })), Ok(Payment::Invoke { .. })));
    }
}
