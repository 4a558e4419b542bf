//! What a gateway is answered. Success needs a [`Receipt`]; everything else is a [`CallbackRefusal`].

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use domain::PaymentMethod;
use gateway::CallbackError;
use serde_json::json;

use crate::intake::Receipt;
use crate::problem::Rendered;
use crate::strikes::Strike;

/// Why a callback is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallbackRefusal {
    /// The named key did not sign these bytes.
    #[error("bad signature")]
    BadSignature,
    /// The timestamp lies outside the clock window.
    #[error("stale timestamp")]
    Stale,
    /// The gateway tests whether we check signatures.
    #[error("bad signature")]
    Probe,
    /// Signed with a key that is not loaded here, or whose time is over or has not begun.
    #[error("unknown key, repeat later")]
    UnknownSerial,
    /// Authentic, and no key of ours decrypts it.
    #[error("cannot be decrypted, repeat later")]
    Unopened,
    /// No account of this name.
    #[error("unknown account")]
    UnknownAccount,
    /// Not one of the gateway's addresses.
    #[error("address not allowed")]
    WrongAddress,
    /// More than 64 KiB.
    #[error("body too large")]
    TooLarge,
    /// The body did not arrive in time. The network may be at fault, so this is no strike.
    #[error("body too slow, repeat later")]
    TooSlow,
    /// Too many refused requests from this address.
    #[error("too many requests")]
    TooMany,
    /// Cannot be checked at all.
    #[error("malformed request")]
    Malformed,
    /// Another method than POST.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// Neither broker nor database took it, or the process is overloaded.
    #[error("not stored, repeat later")]
    Unavailable,
}

/// How a callback ended, for metrics; rides on the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallbackOutcome(pub &'static str);

impl CallbackRefusal {
    /// The name in metrics.
    pub const fn outcome(self) -> CallbackOutcome {
        CallbackOutcome(match self {
            CallbackRefusal::BadSignature => "bad_signature",
            CallbackRefusal::Stale => "stale",
            CallbackRefusal::Probe => "probe",
            CallbackRefusal::UnknownSerial => "unknown_serial",
            CallbackRefusal::Unopened => "unopened",
            CallbackRefusal::UnknownAccount => "unknown_account",
            CallbackRefusal::WrongAddress => "wrong_ip",
            CallbackRefusal::TooLarge => "too_large",
            CallbackRefusal::TooSlow => "too_slow",
            CallbackRefusal::TooMany => "too_many",
            CallbackRefusal::Malformed | CallbackRefusal::MethodNotAllowed => "malformed",
            CallbackRefusal::Unavailable => "unavailable",
        })
    }

    const fn status(self) -> StatusCode {
        match self {
            CallbackRefusal::BadSignature | CallbackRefusal::Stale | CallbackRefusal::Probe => StatusCode::UNAUTHORIZED,
            CallbackRefusal::UnknownSerial | CallbackRefusal::Unopened | CallbackRefusal::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CallbackRefusal::UnknownAccount => StatusCode::NOT_FOUND,
            CallbackRefusal::WrongAddress => StatusCode::FORBIDDEN,
            CallbackRefusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            CallbackRefusal::TooSlow => StatusCode::REQUEST_TIMEOUT,
            CallbackRefusal::TooMany => StatusCode::TOO_MANY_REQUESTS,
            CallbackRefusal::Malformed => StatusCode::BAD_REQUEST,
            CallbackRefusal::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// What it says against the sender. What is our own fault, or the network's, says nothing.
    pub fn strike(self, method: PaymentMethod) -> Option<Strike> {
        match self {
            CallbackRefusal::TooMany | CallbackRefusal::TooSlow | CallbackRefusal::Unavailable => None,
            // Alipay's certificate number is not signed: a made-up one has us search for it.
            CallbackRefusal::UnknownSerial if method == PaymentMethod::Alipay => Some(Strike::Forged),
            CallbackRefusal::Probe | CallbackRefusal::UnknownSerial | CallbackRefusal::Unopened => Some(Strike::Odd),
            _ => Some(Strike::Forged),
        }
    }

    /// What a layer meant that answered before any handler could.
    pub fn of_layer(status: StatusCode) -> CallbackRefusal {
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => CallbackRefusal::TooLarge,
            StatusCode::REQUEST_TIMEOUT => CallbackRefusal::TooSlow,
            StatusCode::METHOD_NOT_ALLOWED => CallbackRefusal::MethodNotAllowed,
            status if status.is_client_error() => CallbackRefusal::Malformed,
            _ => CallbackRefusal::Unavailable,
        }
    }
}

impl From<CallbackError> for CallbackRefusal {
    fn from(error: CallbackError) -> CallbackRefusal {
        match error {
            CallbackError::Malformed(_) | CallbackError::Undecodable(_) => CallbackRefusal::Malformed,
            CallbackError::Unopened(_) => CallbackRefusal::Unopened,
            CallbackError::Stale => CallbackRefusal::Stale,
            CallbackError::Probe => CallbackRefusal::Probe,
            CallbackError::UnknownKey { .. } | CallbackError::KeyNotInForce { .. } => CallbackRefusal::UnknownSerial,
            CallbackError::BadSignature => CallbackRefusal::BadSignature,
        }
    }
}

/// Success, in the gateway's words. Without proof that the callback is durable it cannot be said.
pub fn accepted(method: PaymentMethod, _durable: Receipt) -> Response {
    let answer = match method {
        PaymentMethod::Alipay => "success".into_response(),
        PaymentMethod::Wechat => StatusCode::NO_CONTENT.into_response(),
    };
    finished(answer, CallbackOutcome("accepted"))
}

/// Anything but success: the gateway repeats, or somebody learns nothing.
pub fn refused(method: PaymentMethod, refusal: CallbackRefusal) -> Response {
    let answer = match method {
        PaymentMethod::Alipay => (refusal.status(), "fail").into_response(),
        PaymentMethod::Wechat => {
            (refusal.status(), Json(json!({ "code": "FAIL", "message": refusal.to_string() }))).into_response()
        }
    };
    finished(answer, refusal.outcome())
}

fn finished(mut answer: Response, outcome: CallbackOutcome) -> Response {
    answer.extensions_mut().insert(Rendered);
    answer.extensions_mut().insert(outcome);
    answer
}
