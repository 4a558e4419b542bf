//! The only place where an error becomes an answer: `application/problem+json` (RFC 9457) with a stable `code`. On a
//! callback route the answer has the gateway's format instead.

use std::sync::Arc;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use domain::{BuyerRefusal, NotOffered, OrderId, Scope};
use gateway::GatewayError;
use serde_json::Value;
use store::DbError;
use store::retry::Collision;
use store::settle::refunds::{DecisionRefusal, RefundRefusal};

use super::document::layer;
pub(crate) use super::document::render;
pub use super::document::{FieldFault, Problem, Rendered};

/// The errors of the API. `Display` is the title of the problem; it reveals no internals.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON, or not a JSON object.
    #[error("the body is not a JSON object: {0}")]
    MalformedJson(String),
    /// The media type of the body is not JSON.
    #[error("the body must be JSON, with the header Content-Type: application/json; {{}} if there is nothing to say")]
    UnsupportedMediaType,
    /// All fields that are missing, unknown or out of range.
    #[error("some fields are not valid")]
    InvalidFields(Vec<FieldFault>),
    /// The filters of a list would make the database read more rows than a request may: a range of time is missing.
    #[error("{0}")]
    RangeRequired(&'static str),
    /// Two orders have the number.
    #[error("two orders have this number: GET /v1/admin/search shows both; name one of them by its id")]
    AmbiguousNumber,
    /// A creating request lacks the header that makes it repeatable.
    #[error("the header Idempotency-Key is required")]
    IdempotencyKeyRequired,
    /// The header is not a valid key.
    #[error("an Idempotency-Key has 1 to 255 visible ASCII characters")]
    IdempotencyKeyInvalid,
    /// The key was used for another request before.
    #[error("this Idempotency-Key was used for another request: repeat that one byte for byte, or use a new key")]
    IdempotencyKeyReused,
    /// The first request with this key is not finished.
    #[error("a request with this Idempotency-Key is still in flight")]
    RequestInFlight,
    /// The request has no token.
    #[error("a bearer token is required")]
    TokenMissing,
    /// The token is not valid here.
    #[error("the token is not valid; the log of payment-api says why")]
    TokenInvalid,
    /// The token was valid and has expired.
    #[error("the token has expired")]
    TokenExpired,
    /// The caller lacks the scope that the route requires: one of these.
    #[error("this needs the scope {}", words(.0, " or "))]
    ScopeMissing(Vec<Scope>),
    /// Only a person may do this, with a token of the staff issuer.
    #[error("this needs a person: a token of the staff issuer")]
    PersonRequired,
    /// The person signed in too long ago for a step that moves money.
    #[error("sign in again: this step moves money, and the sign-in is older than five minutes")]
    SignInAgain,
    /// The route is for buyers, with tokens of the merchant's user system.
    #[error(
        "this is for buyers, with a token of the merchant's user system; others read /v1/admin/orders and /v1/admin/refunds"
    )]
    BuyersOnly,
    /// The process cannot tell at the moment which API keys are valid.
    #[error("the service is busy; repeat the request")]
    KeysUnavailable,
    /// A proposal must be confirmed by another person.
    #[error("a person other than the one who proposed it must confirm")]
    SamePerson,
    /// There is no such order, or it is another user's order.
    #[error(
        "there is no such order; a path names it by its id, 32 hex digits (the path of a refund also by order_no:…)"
    )]
    OrderNotFound,
    /// There is no such refund, or it is a refund of another user's order.
    #[error("there is no such refund; a path names it by its id, 32 hex digits, and not by refund_no")]
    RefundNotFound,
    /// There is no such case.
    #[error("there is no such case; a path names it by its id, 32 hex digits")]
    CaseNotFound,
    /// The case is already resolved.
    #[error("the case is resolved")]
    CaseResolved,
    /// Only a resolved case can be reopened.
    #[error("the case is not resolved")]
    CaseNotResolved,
    /// No proposal waits for confirmation.
    #[error("the case has no proposal to confirm")]
    CaseNotProposed,
    /// The case has changed since the caller read it.
    #[error("the case has changed; read it again")]
    CaseChanged,
    /// The case, or what it is about, does not allow the action.
    #[error("this action is not possible: {0}; `actions` of the case lists those that are")]
    ActionUnfit(&'static str),
    /// The refund is refused, with the reason.
    #[error("{0}")]
    Refund(RefundRefusal),
    /// A step of a person, or of a requester, is refused.
    #[error("{0}")]
    Decision(DecisionRefusal),
    /// There is no such payment method.
    #[error("there is no such payment method")]
    MethodNotFound,
    /// The rules have changed since the caller read them.
    #[error("the rules have changed; read them again")]
    ConfigChanged,
    /// The method or the scene is switched off, or the amount is outside the limits.
    #[error("{0}")]
    NotOffered(NotOffered),
    /// The price has no voucher that counts here: neither a backend, nor an offer, nor the catalogue.
    #[error(
        "a buyer does not name the price: send an offer that the merchant's backend signed, name a product of the \
         catalogue without a price, or let the backend place the order (BUYER_PRICES)"
    )]
    PriceNotVouched,
    /// The offer is not one that counts here; the log says why.
    #[error("the offer is not valid")]
    OfferInvalid,
    /// The offer was valid and has expired.
    #[error("the offer has expired; get a new one")]
    OfferExpired,
    /// Another order of the purchase is not closed.
    #[error("the purchase has an open order; close it before you place another one")]
    PurchaseOpen {
        /// Whether an offer names the purchase, or the merchant's number.
        by_offer: bool,
        /// The order, if the caller may see it.
        order_id: Option<OrderId>,
    },
    /// An order of the purchase is paid.
    #[error("the purchase is paid")]
    PurchaseUsed {
        /// Whether an offer names the purchase, or the merchant's number.
        by_offer: bool,
        /// The order, if the caller may see it.
        order_id: Option<OrderId>,
    },
    /// The buyer has too many orders that wait for a payment.
    #[error("{0} orders of this user wait for a payment; pay or close one of them")]
    TooManyPending(i64),
    /// The order is paid, so it cannot be closed.
    #[error("the order is paid; request a refund instead")]
    OrderAlreadyPaid,
    /// The order is paid, closed or expired.
    #[error("the order can no longer be paid: it is {0}")]
    OrderNotPayable(&'static str),
    /// The gateway refuses this order permanently.
    #[error("the gateway refuses this order: correct what gateway_code names, then place a new one")]
    OrderUnusable(#[source] GatewayError),
    /// The gateway gives no fresh credential, and there is no stored one that is still valid. The order stays as it is.
    #[error("the gateway gives no fresh credential for this order; the last one that it gave may still work")]
    CredentialRefused(#[source] GatewayError),
    /// The gateway refuses the merchant's account. A person must correct that; the order is not at fault.
    #[error("the gateway refuses the merchant's account, not the order; repeat later")]
    GatewayMisconfigured(#[source] GatewayError),
    /// The gateway cannot be reached, refuses for now, or the outcome is unknown. The client repeats later with the
    /// same key.
    #[error("the gateway cannot be reached; repeat the request with the same Idempotency-Key")]
    GatewayUnavailable(#[source] GatewayError),
    /// The gateway's answer breaks the protocol. A person must investigate.
    #[error("the gateway's answer cannot be understood")]
    GatewayProtocol(#[source] GatewayError),
    /// The request exceeds a budget.
    #[error("too many requests; repeat in {wait} s")]
    TooManyRequests {
        /// Seconds until the next request is accepted.
        wait: u64,
    },
    /// Too many pages watch one order, or one client has too many streams open.
    #[error("too many open streams of this order, of this user or from this address")]
    TooManyStreams,
    /// The whole process has too many streams open.
    #[error("no more streams can be opened at the moment")]
    StreamsFull,
    /// Too many exports run in this process.
    #[error("two exports run already; repeat in a few seconds")]
    TooManyExports,
    /// This process has no such export of this caller.
    #[error(
        "this process has no such export of yours: it is older than a day, or another process made it, or this one was \
        started again since"
    )]
    ExportNotFound,
    /// The export has no file to fetch.
    #[error("the export has no file: read its state")]
    ExportNotReady,
    /// An error of the database.
    #[error("{}", if is_transient(.0) { "the service is busy; repeat the request" } else { "internal error" })]
    Db(#[from] DbError),
    /// An internal fault of the service.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An error status from a layer or from the router itself.
    #[error("{}", layer(*.0).1)]
    Layer(StatusCode),
}

/// The status and the stable code of each refusal of a refund.
#[rustfmt::skip]
fn of_refund(refusal: &RefundRefusal) -> (StatusCode, &'static str) {
    match refusal {
        RefundRefusal::NoOrder => (StatusCode::NOT_FOUND, "order_not_found"),
        RefundRefusal::NotPaid => (StatusCode::CONFLICT, "order_not_paid"),
        RefundRefusal::InProgress => (StatusCode::CONFLICT, "refund_in_progress"),
        RefundRefusal::AlreadyRefunded => (StatusCode::CONFLICT, "already_refunded"),
        RefundRefusal::TooMuch(_) => (StatusCode::CONFLICT, "refund_too_much"),
        RefundRefusal::NotRefundable(_) => (StatusCode::CONFLICT, "not_refundable"),
        RefundRefusal::CaseOpen => (StatusCode::CONFLICT, "not_refundable"),
        RefundRefusal::Rule(BuyerRefusal::Off) => (StatusCode::FORBIDDEN, "refunds_off"),
        RefundRefusal::Rule(BuyerRefusal::WindowOver) => (StatusCode::CONFLICT, "refund_window_over"),
        RefundRefusal::RequestOpen => (StatusCode::CONFLICT, "refund_request_open"),
        RefundRefusal::TooOften => (StatusCode::CONFLICT, "refund_requested_too_often"),
        RefundRefusal::DailyLimit => (StatusCode::CONFLICT, "service_daily_limit"),
    }
}

/// The same for a step of a person, or of a requester.
#[rustfmt::skip]
fn of_decision(refusal: &DecisionRefusal) -> (StatusCode, &'static str) {
    match refusal {
        DecisionRefusal::NoRefund => (StatusCode::NOT_FOUND, "refund_not_found"),
        DecisionRefusal::SamePerson => (StatusCode::FORBIDDEN, "same_person"),
        DecisionRefusal::NotRequester => (StatusCode::FORBIDDEN, "not_requester"),
        DecisionRefusal::NotRequested(_) => (StatusCode::CONFLICT, "refund_not_requested"),
        DecisionRefusal::NotWithdrawable(_) => (StatusCode::CONFLICT, "refund_not_withdrawable"),
        DecisionRefusal::NotNow(refusal) => of_refund(refusal),
    }
}

impl ApiError {
    /// A fault of one field that only shows in comparison with stored data.
    pub fn field(field: &str, message: impl Into<String>) -> ApiError {
        ApiError::InvalidFields(vec![FieldFault::new(field, message)])
    }

    /// Wraps an internal fault of the service.
    pub fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ApiError {
        ApiError::Internal(error.into())
    }

    /// The status and the stable code of each error.
    #[rustfmt::skip]
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::MalformedJson(_) => (StatusCode::BAD_REQUEST, "malformed_json"),
            ApiError::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            ApiError::InvalidFields(_) => (StatusCode::BAD_REQUEST, "invalid_fields"),
            ApiError::RangeRequired(_) => (StatusCode::BAD_REQUEST, "range_required"),
            ApiError::AmbiguousNumber => (StatusCode::CONFLICT, "ambiguous_number"),
            ApiError::IdempotencyKeyRequired => (StatusCode::BAD_REQUEST, "idempotency_key_required"),
            ApiError::IdempotencyKeyInvalid => (StatusCode::BAD_REQUEST, "idempotency_key_invalid"),
            ApiError::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            ApiError::RequestInFlight => (StatusCode::CONFLICT, "request_in_flight"),
            ApiError::TokenMissing => (StatusCode::UNAUTHORIZED, "token_missing"),
            ApiError::TokenInvalid => (StatusCode::UNAUTHORIZED, "token_invalid"),
            ApiError::TokenExpired => (StatusCode::UNAUTHORIZED, "token_expired"),
            ApiError::ScopeMissing(_) => (StatusCode::FORBIDDEN, "scope_missing"),
            ApiError::PersonRequired => (StatusCode::FORBIDDEN, "person_required"),
            ApiError::SignInAgain => (StatusCode::UNAUTHORIZED, "sign_in_again"),
            ApiError::BuyersOnly => (StatusCode::FORBIDDEN, "buyers_only"),
            ApiError::KeysUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
            ApiError::SamePerson => (StatusCode::FORBIDDEN, "same_person"),
            ApiError::RefundNotFound => (StatusCode::NOT_FOUND, "refund_not_found"),
            ApiError::CaseNotFound => (StatusCode::NOT_FOUND, "case_not_found"),
            ApiError::CaseResolved => (StatusCode::CONFLICT, "case_resolved"),
            ApiError::CaseNotResolved => (StatusCode::CONFLICT, "case_not_resolved"),
            ApiError::CaseNotProposed => (StatusCode::CONFLICT, "case_not_proposed"),
            ApiError::CaseChanged => (StatusCode::CONFLICT, "case_changed"),
            ApiError::ActionUnfit(_) => (StatusCode::CONFLICT, "action_unfit"),
            ApiError::Refund(refusal) => of_refund(refusal),
            ApiError::Decision(refusal) => of_decision(refusal),
            ApiError::MethodNotFound => (StatusCode::NOT_FOUND, "method_not_found"),
            ApiError::ConfigChanged => (StatusCode::CONFLICT, "config_changed"),
            ApiError::NotOffered(NotOffered::Method(_)) => (StatusCode::CONFLICT, "method_disabled"),
            ApiError::NotOffered(NotOffered::Scene(_)) => (StatusCode::CONFLICT, "scene_disabled"),
            ApiError::NotOffered(NotOffered::Amount { .. }) => (StatusCode::CONFLICT, "amount_out_of_range"),
            ApiError::PriceNotVouched => (StatusCode::FORBIDDEN, "price_not_vouched"),
            ApiError::OfferInvalid => (StatusCode::BAD_REQUEST, "offer_invalid"),
            ApiError::OfferExpired => (StatusCode::BAD_REQUEST, "offer_expired"),
            ApiError::PurchaseOpen { by_offer: true, .. } => (StatusCode::CONFLICT, "offer_has_open_order"),
            ApiError::PurchaseOpen { .. } => (StatusCode::CONFLICT, "merchant_order_no_has_open_order"),
            ApiError::PurchaseUsed { by_offer: true, .. } => (StatusCode::CONFLICT, "offer_used"),
            ApiError::PurchaseUsed { .. } => (StatusCode::CONFLICT, "merchant_order_no_used"),
            ApiError::TooManyPending(_) => (StatusCode::CONFLICT, "too_many_pending_orders"),
            ApiError::OrderAlreadyPaid => (StatusCode::CONFLICT, "order_already_paid"),
            ApiError::OrderNotFound => (StatusCode::NOT_FOUND, "order_not_found"),
            ApiError::OrderNotPayable(_) => (StatusCode::CONFLICT, "order_not_payable"),
            ApiError::OrderUnusable(_) => (StatusCode::CONFLICT, "order_unusable"),
            ApiError::CredentialRefused(_) => (StatusCode::CONFLICT, "credential_refused"),
            ApiError::GatewayMisconfigured(_) => (StatusCode::SERVICE_UNAVAILABLE, "gateway_misconfigured"),
            ApiError::GatewayUnavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "gateway_unavailable"),
            ApiError::GatewayProtocol(_) => (StatusCode::BAD_GATEWAY, "gateway_protocol"),
            ApiError::TooManyRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"),
            ApiError::TooManyStreams => (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"),
            ApiError::StreamsFull => (StatusCode::SERVICE_UNAVAILABLE, "streams_full"),
            ApiError::TooManyExports => (StatusCode::TOO_MANY_REQUESTS, "too_many_exports"),
            ApiError::ExportNotFound => (StatusCode::NOT_FOUND, "export_not_found"),
            ApiError::ExportNotReady => (StatusCode::CONFLICT, "export_not_ready"),
            ApiError::Db(error) if is_transient(error) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ApiError::Db(_) | ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            ApiError::Layer(status) => (*status, layer(*status).0),
        }
    }

    /// Status and body of a refusal that no repeat can change. They are saved for repeats.
    ///
    /// # Errors
    /// The error itself, when a repeat may succeed.
    pub(crate) fn if_final(self) -> Result<(StatusCode, Value), ApiError> {
        match &self {
            ApiError::OrderUnusable(_) => {
                let problem = serde_json::to_value(self.problem()).map_err(|error| ApiError::Internal(error.into()))?;
                Ok((self.status().0, problem))
            }
            _ => Err(self),
        }
    }

    fn problem(&self) -> Problem {
        let (status, code) = self.status();
        let errors = match self {
            ApiError::InvalidFields(faults) => faults.clone(),
            _ => Vec::new(),
        };
        let refundable_amount = match self {
            ApiError::Refund(RefundRefusal::TooMuch(left)) => Some(left.to_string()),
            _ => None,
        };
        let (min_amount, max_amount) = match self {
            ApiError::NotOffered(NotOffered::Amount { min, max }) => (Some(min.to_string()), Some(max.to_string())),
            _ => (None, None),
        };
        let order_id = match self {
            ApiError::PurchaseOpen { order_id, .. } | ApiError::PurchaseUsed { order_id, .. } => *order_id,
            _ => None,
        };
        let order_id = order_id.map(|id| id.to_string());
        let (kind, title, status) = (format!("/problems/{code}"), self.to_string(), status.as_u16());
        let gateway_code = self.gateway_code();
        Problem { kind, title, status, code, errors, gateway_code, refundable_amount, order_id, min_amount, max_amount }
    }

    /// The gateway's own code, if it is about the order.
    fn gateway_code(&self) -> Option<String> {
        let (ApiError::OrderUnusable(error) | ApiError::CredentialRefused(error)) = self else { return None };
        let GatewayError::Refused { code, .. } = error else { return None };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        Some(code.clone()).filter(|code| (1..=64).contains(&code.len()) && code.bytes().all(fits))
    }

    /// The seconds after which a repeat makes sense, if it does.
    fn retry_after(&self) -> Option<HeaderValue> {
        let (status, _) = self.status();
        let wait = match self {
            ApiError::TooManyRequests { wait } => return Some(HeaderValue::from(*wait)),
            ApiError::RequestInFlight => "1",
            ApiError::StreamsFull | ApiError::TooManyStreams => "5",
            ApiError::TooManyExports => "10",
            // A person must act first.
            ApiError::GatewayMisconfigured(_) => "60",
            _ if status == StatusCode::SERVICE_UNAVAILABLE => "2",
            _ => return None,
        };
        Some(HeaderValue::from_static(wait))
    }

    /// The `WWW-Authenticate` header (RFC 6750, section 3).
    fn challenge(&self) -> Option<HeaderValue> {
        match self {
            // RFC 9470, section 3.
            ApiError::SignInAgain => {
                Some(HeaderValue::from_static("Bearer error=\"insufficient_user_authentication\", max_age=\"300\""))
            }
            ApiError::TokenMissing => Some(HeaderValue::from_static("Bearer")),
            ApiError::ScopeMissing(scopes) => {
                let scopes = words(scopes, " ");
                HeaderValue::try_from(format!("Bearer error=\"insufficient_scope\", scope=\"{scopes}\"")).ok()
            }
            ApiError::TokenInvalid | ApiError::TokenExpired => {
                Some(HeaderValue::from_static("Bearer error=\"invalid_token\""))
            }
            _ => None,
        }
    }

    /// Whether the error is a defect of the service, rather than of the request or the environment.
    pub(crate) fn is_defect(&self) -> bool {
        self.status().0 == StatusCode::INTERNAL_SERVER_ERROR
    }

    /// The error of an answer, for the layer that logs it.
    pub(crate) fn of(response: &Response) -> Option<&Arc<ApiError>> {
        response.extensions().get()
    }
}

/// The bare answer after a panic. The text of the panic goes only to the log.
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

impl Collision for ApiError {
    fn is_collision(&self) -> bool {
        matches!(self, ApiError::Db(error) if error.is_collision())
    }
}

/// The names of scopes, each once.
fn words(scopes: &[Scope], between: &str) -> String {
    let mut names: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    names.dedup();
    names.join(between)
}

/// Whether a repeat may succeed.
fn is_transient(error: &DbError) -> bool {
    matches!(error, DbError::Unavailable(_) | DbError::Again(_))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = render(self.status().0, self.problem());
        let headers = response.headers_mut();
        headers.extend(self.retry_after().map(|wait| (RETRY_AFTER, wait)));
        headers.extend(self.challenge().map(|challenge| (WWW_AUTHENTICATE, challenge)));
        response.extensions_mut().insert(Arc::new(self)); // The outer layer logs it once.
        response
    }
}
