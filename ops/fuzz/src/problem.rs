//! Problems that repeat what a client has sent.

use axum::body::to_bytes;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::FutureExt as _;
use payment_api::answer::problem::{ApiError, FieldFault};
use serde_json::{Value, json};

/// Whatever names a client uses for fields: the answer is JSON, contains its status, and repeats the fields unchanged.
pub(crate) fn render(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (field, message) = text.split_once('\n').unwrap_or((&text, ""));
    for error in [
        ApiError::InvalidFields(vec![FieldFault::new(field, message)]),
        ApiError::MalformedJson(text.to_string()),
        ApiError::Internal(text.to_string().into()),
    ] {
        let (head, body) = error.into_response().into_parts();
        assert_eq!(head.headers.get_all(CONTENT_TYPE).iter().collect::<Vec<_>>(), ["application/problem+json"]);
        let bytes = to_bytes(body, usize::MAX).now_or_never().expect("the body is there").expect("and whole");
        let problem: Value = serde_json::from_slice(&bytes).expect("a problem is JSON");
        assert_eq!(problem["status"], head.status.as_u16());
        if head.status == StatusCode::BAD_REQUEST && !problem["errors"].is_null() {
            assert_eq!(problem["errors"][0], json!({ "field": field, "message": message }));
        }
    }
}
