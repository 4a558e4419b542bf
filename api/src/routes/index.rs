//! `GET /`: names the service and its documentation.

use axum::Json;
use serde_json::{Value, json};

/// Names the service.
pub async fn name() -> Json<Value> {
    Json(json!({ "service": "payment-api" }))
}

/// Names the service and its pages.
pub async fn index() -> Json<Value> {
    Json(json!({ "service": "payment-api", "documentation": "/docs", "openapi": "/openapi.json" }))
}
