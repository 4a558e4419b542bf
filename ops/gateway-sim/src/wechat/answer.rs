//! Answers: signed if the call succeeded, unsigned if not.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::sign::{SCHEME, answer_message};
use crate::clock;
use crate::crypto::{ALPHANUMERIC, DIGITS, HEX_UPPER, random_text};
use crate::keys::WechatMerchant;

/// An error in the form of WeChat Pay.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<Value>,
}

impl Problem {
    pub(crate) fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { status, code: code.into(), message: message.into(), detail: None }
    }

    /// An invalid field: `field` is its JSON pointer.
    pub(crate) fn field(field: &str, value: Option<&Value>, issue: &str) -> Problem {
        let detail = json!({ "field": field, "value": value, "issue": issue, "location": "body" });
        let message =
            format!("输入源“{field}”映射到字段“{}”校验失败：{issue}", field.rsplit('/').next().unwrap_or(field));
        Problem { status: 400, code: "PARAM_ERROR".to_owned(), message, detail: Some(detail) }
    }

    /// A 401 that states what is wrong with the header.
    pub(crate) fn sign_error(message: &str, detail: Value) -> Problem {
        Problem { status: 401, code: "SIGN_ERROR".to_owned(), message: message.to_owned(), detail: Some(detail) }
    }

    /// The error body, unsigned. A 401 has no `Request-ID`, as observed at the real gateway.
    pub(crate) fn into_response(self) -> Response {
        let mut body = json!({ "code": self.code, "message": self.message });
        if let Some(detail) = self.detail {
            body["detail"] = detail;
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        if status != StatusCode::UNAUTHORIZED {
            headers.push(("request-id", request_id()));
        }
        respond(status, headers, body.to_string().into_bytes())
    }
}

/// A success: 200 with `body`, or 204 without, signed with the key that `serial` names.
pub(crate) fn signed(merchant: &WechatMerchant, serial: Option<&str>, body: Option<&Value>) -> Response {
    let (status, body) = match body {
        Some(body) => (StatusCode::OK, body.to_string().into_bytes()),
        None => (StatusCode::NO_CONTENT, Vec::new()),
    };
    let signing = merchant.signing_key(serial);
    let (serial, key) = (&signing.0, &signing.1);
    let timestamp = clock::now().unix_timestamp().to_string();
    let nonce = random_text(32, ALPHANUMERIC);
    let signature = key.sign(&answer_message(&timestamp, &nonce, &body));
    let mut headers = vec![
        ("request-id", request_id()),
        ("wechatpay-nonce", nonce),
        ("wechatpay-serial", serial.clone()),
        ("wechatpay-signature", signature),
        ("wechatpay-signature-type", SCHEME.to_owned()),
        ("wechatpay-timestamp", timestamp),
    ];
    if status == StatusCode::OK {
        headers.push(("content-type", "application/json; charset=utf-8".to_owned()));
    }
    respond(status, headers, body)
}

pub(crate) fn request_id() -> String {
    format!("08{}-{}", random_text(30, HEX_UPPER), random_text(9, DIGITS))
}

fn respond(status: StatusCode, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}
