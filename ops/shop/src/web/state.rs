//! The state that the handlers share, and how they answer what went wrong.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use serde_json::json;

use crate::api::{Api, ApiError};
use crate::desk::Desk;
use crate::stop::Stop;

/// The state, as the handlers hold it.
pub(super) type Shared = Arc<Shop>;

/// The state that all handlers share.
pub(super) struct Shop {
    pub(super) api: Api,
    pub(super) desk: Arc<Desk>,
    pub(super) sim_url: Url,
    pub(super) return_url: Option<Url>,
    /// Ends the streams, which would otherwise stay open forever.
    pub(super) stop: Stop,
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

pub(super) fn problem_of(status: u16, code: &str, title: &str) -> serde_json::Value {
    json!({ "type": "about:blank", "title": title, "status": status, "code": code })
}
