//! The answers to a gateway. Success needs a [`Receipt`]; every other answer is a [`CallbackRefusal`].

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use domain::PaymentMethod;
use gateway::CallbackError;
use serde_json::json;

use crate::access::strikes::Strike;
use crate::answer::problem::Rendered;
use crate::create::intake::Receipt;

/// The errors for which a callback is refused.
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
    /// Signed with a key that this process has not loaded, or that is not yet or no longer in force.
    #[error("unknown key, repeat later")]
    UnknownSerial,
    /// The signature is valid, but none of our keys decrypts the content.
    #[error("cannot be decrypted, repeat later")]
    Unopened,
    /// No account has this name.
    #[error("unknown account")]
    UnknownAccount,
    /// The sender's address is not in the gateway's list.
    #[error("address not allowed")]
    WrongAddress,
    /// More than 64 KiB.
    #[error("body too large")]
    TooLarge,
    /// The body did not arrive in time. The network may be at fault, so this is no strike.
    #[error("body too slow, repeat later")]
    TooSlow,
    /// This address has had too many refused requests, or sends too many bodies at once.
    #[error("too many requests")]
    TooMany,
    /// The request cannot be checked at all.
    #[error("malformed request")]
    Malformed,
    /// Another method than POST.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// Neither the broker nor the database stored it, or the process is overloaded.
    #[error("not stored, repeat later")]
    Unavailable,
}

/// How a callback ended, for metrics. The answer carries it as an extension.
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

    /// The strike against the sender, if any. A fault of ours or of the network is no strike.
    pub fn strike(self, method: PaymentMethod) -> Option<Strike> {
        match self {
            CallbackRefusal::TooMany | CallbackRefusal::TooSlow | CallbackRefusal::Unavailable => None,
            // Alipay's certificate number is not signed. A forged number makes us search for it, so it counts as a
            // strike.
            CallbackRefusal::UnknownSerial if method == PaymentMethod::Alipay => Some(Strike::Forged),
            CallbackRefusal::Probe | CallbackRefusal::UnknownSerial | CallbackRefusal::Unopened => Some(Strike::Odd),
            _ => Some(Strike::Forged),
        }
    }

    /// Maps the status of a layer that answered before the handler.
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

/// Success, in the gateway's format. The [`Receipt`] proves that the callback is durable; without it there is no
/// success.
pub fn accepted(method: PaymentMethod, _durable: Receipt) -> Response {
    let answer = match method {
        PaymentMethod::Alipay => "success".into_response(),
        PaymentMethod::Wechat => StatusCode::NO_CONTENT.into_response(),
    };
    finished(answer, CallbackOutcome("accepted"))
}

/// Every answer other than success. The gateway repeats the callback; any other sender learns nothing.
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
