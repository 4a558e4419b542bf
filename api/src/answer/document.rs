//! The form of every answer that is not a success: `application/problem+json` (RFC 9457).

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldFault {
    /// The field's name in the request.
    pub field: String,
    /// The rule that the field breaks.
    pub message: String,
}

impl FieldFault {
    /// The most faults that an answer names, so that the answer stays smaller than the request.
    pub(crate) const MOST: usize = 32;

    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> FieldFault {
        FieldFault { field: field.into(), message: message.into() }
    }
}

/// The body of every answer that is not a success.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// `/problems/` and the code.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// A description for people.
    pub(super) title: String,
    /// The HTTP status, repeated.
    pub(super) status: u16,
    /// A stable code for programs.
    #[schema(example = "invalid_fields")]
    pub(super) code: &'static str,
    /// All invalid fields; only with `invalid_fields`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<FieldFault>,
    /// The gateway's own code; only with `order_unusable` and `credential_refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "ACQ.TOTAL_FEE_EXCEED")]
    pub(super) gateway_code: Option<String>,
    /// The amount that can still be refunded, in yuan; only with `refund_too_much`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refundable_amount: Option<String>,
    /// The order of the purchase; only with `offer_has_open_order`, `offer_used` and their like of a merchant's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order_id: Option<String>,
    /// The smallest order amount, in yuan; only with `amount_out_of_range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_amount: Option<String>,
    /// The largest order amount, in yuan; only with `amount_out_of_range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_amount: Option<String>,
}

/// Marks an answer that is already in its final form, so that no layer renders it again.
#[derive(Debug, Clone, Copy)]
pub struct Rendered;

/// Code and title of an answer that no handler made.
pub(super) fn layer(status: StatusCode) -> (&'static str, &'static str) {
    match status {
        StatusCode::NOT_FOUND => ("not_found", "there is nothing at this address"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this address does not accept this method"),
        StatusCode::REQUEST_TIMEOUT => ("request_timeout", "the request did not arrive in time"),
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "the body has more than 64 KiB"),
        StatusCode::URI_TOO_LONG => ("uri_too_long", "the address has more than 4 KiB"),
        StatusCode::TOO_MANY_REQUESTS => ("too_many_requests", "too many requests"),
        StatusCode::SERVICE_UNAVAILABLE => ("overloaded", "the service is busy; repeat the request"),
        StatusCode::GATEWAY_TIMEOUT => ("timeout", "the answer took too long; repeat the request"),
        status if status.is_client_error() => ("bad_request", "the request is not understood"),
        _ => ("internal", "internal error"),
    }
}

/// Renders every problem in the same form.
pub(crate) fn render(status: StatusCode, problem: impl Serialize) -> Response {
    let mut response = (status, Json(problem)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.extensions_mut().insert(Rendered);
    response
}
