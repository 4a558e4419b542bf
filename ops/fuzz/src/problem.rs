//! Problems that repeat what a client has sent.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use payment_api::problem::{ApiError, FieldFault};

/// Whatever a client calls its fields: an answer that is JSON, of the right type, and one header line each.
pub(crate) fn render(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (field, message) = text.split_once('\n').unwrap_or((&text, ""));
    for error in [
        ApiError::InvalidFields(vec![FieldFault::new(field, message)]),
        ApiError::MalformedJson(text.to_string()),
        ApiError::Internal(text.to_string().into()),
    ] {
        let response = error.into_response();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(response.status().is_client_error() || response.status().is_server_error());
    }
}
