//! Makes one call of WeChat Pay's API, from a path to a judged answer.
//!
//! Source: WeChat Pay APIv3, "基本规则" and "错误码" pages, official Go SDK `core/error.go`, read 2025-11-20.

use bytes::Bytes;
use reqwest::{Client, Method};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use time::OffsetDateTime;
use tracing::info;
use url::Url;

use crate::adapter::Gateway as _;
use crate::error::CallbackError;
use crate::error::GatewayError;
use crate::keys::nonce;
use crate::transport::http::{self, Answer};
use crate::wechat::Wechat;
use crate::wechat::sign::{self, Merchant, Stamp, Target};
use crate::words;

/// The result of a call.
pub(super) enum Outcome {
    /// A 2xx answer that WeChat Pay signed; the body is empty for 204.
    Signed(Bytes),
    /// A 4xx answer, which is unsigned: it proves nothing about money.
    Failed(Failure),
}

/// The body of an error answer.
#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    #[serde(skip)]
    pub status: u16,
    #[serde(default, deserialize_with = "words::text")]
    pub code: String,
    #[serde(default, deserialize_with = "words::text")]
    pub message: String,
    /// Which member of the request the error is about, and what is wrong with it.
    #[serde(default, deserialize_with = "issue")]
    pub detail: String,
}

/// Any form is accepted, so that no odd detail hides the code. The `value` is left out: it may name the payer.
fn issue<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let detail = Value::deserialize(deserializer)?;
    let member = |name: &str| detail.get(name).and_then(Value::as_str).unwrap_or_default();
    Ok(format!("{} {}", member("field"), member("issue")).trim().to_owned())
}

impl Wechat {
    pub(super) fn merchant(&self) -> Merchant<'_> {
        Merchant {
            mchid: &self.account.mchid,
            serial_no: &self.account.merchant_serial_no,
            key: &self.account.merchant_key,
        }
    }

    /// Sends `method path_and_query` with a JSON body (empty for GET).
    pub(super) async fn call(&self, target: &Target<'_>, now: OffsetDateTime) -> Result<Outcome, GatewayError> {
        // The request names the public key. Otherwise WeChat Pay may sign its answers during a key rotation with a
        // certificate that is not loaded.
        let ring = self.ring();
        let answer = self.exchange(target, ring.public_key_id(), now).await?;
        self.look_if_signed_by_another(&answer, now).await;
        self.judge(&answer, now)
    }

    /// If an answer names a key that is not loaded, looks it up once.
    async fn look_if_signed_by_another(&self, answer: &Answer, now: OffsetDateTime) {
        let named = answer.headers.get(sign::SERIAL).and_then(|value| value.to_str().ok());
        if let Some(serial) = named
            && matches!(answer.status, 200 | 204)
            && self.ring().in_force(serial, now).is_err()
        {
            self.look_for_key(serial, now).await;
        }
    }

    /// Like [`Wechat::call`], for a call that moves money: the answer "too often" does not prove that nothing happened.
    /// `serial` names WeChat Pay's key.
    pub(super) async fn call_money(
        &self,
        target: &Target<'_>,
        serial: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Outcome, GatewayError> {
        let answer = self.exchange(target, serial, now).await?;
        self.look_if_signed_by_another(&answer, now).await;
        self.judge(&answer, now).map_err(http::may_have_happened)
    }

    pub(super) async fn exchange(
        &self,
        target: &Target<'_>,
        serial: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Answer, GatewayError> {
        let stamp = Stamp { timestamp: now.unix_timestamp(), nonce: &nonce()? };
        let authorization = sign::authorization(&self.merchant(), target, &stamp)?;
        let method: Method =
            target.method.parse().map_err(|_| GatewayError::Protocol("not an HTTP method".to_owned()))?;
        // The signature does not cover the host, so the same request is valid for both hosts.
        let build = |client: &Client, base: &Url| {
            let mut request = client
                .request(method.clone(), join(base, target.path_and_query)?)
                .header("authorization", &authorization)
                .header("accept", "application/json");
            if !target.body.is_empty() {
                request = request.header("content-type", "application/json").body(target.body.to_owned());
            }
            if let Some(serial) = serial {
                request = request.header("wechatpay-serial", serial);
            }
            Ok(request)
        };
        self.route.send(build).await
    }

    fn proved(&self, answer: &Answer, now: OffsetDateTime) -> Result<(), CallbackError> {
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        sign::verify(&self.ring(), header, &answer.body, Some(now))
    }

    /// Checks the status first, because only 2xx answers are signed.
    pub(super) fn judge(&self, answer: &Answer, now: OffsetDateTime) -> Result<Outcome, GatewayError> {
        log_request_id(answer);
        match answer.status {
            200 | 204 => {
                self.proved(answer, now).map_err(|error| unproved(&error, answer.status))?;
                Ok(Outcome::Signed(answer.body.clone()))
            }
            429 => Err(GatewayError::Unavailable(failure(answer).text())),
            400..=499 => {
                let failure = failure(answer);
                // An empty or foreign body comes from a front end, which did not look at the order.
                if failure.code.is_empty() {
                    Err(GatewayError::Unknown(failure.text()))
                } else {
                    Ok(Outcome::Failed(failure))
                }
            }
            // Accepted but not done, failed internally, or a redirect that we do not follow.
            _ => Err(GatewayError::Unknown(failure(answer).text())),
        }
    }
}

/// The sent target must equal the signed one, so it is appended as it is and must not be encoded again.
fn join(base: &Url, path_and_query: &str) -> Result<Url, GatewayError> {
    let url = format!("{}{path_and_query}", base.as_str().trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| GatewayError::Protocol(error.to_string()))?;
    let sent = url.as_str().ends_with(path_and_query);
    if sent { Ok(url) } else { Err(GatewayError::Protocol("a path that changes when it is sent".to_owned())) }
}

fn unproved(error: &CallbackError, status: u16) -> GatewayError {
    GatewayError::Unknown(format!("an answer that is not proved: {error} (status {status})"))
}

/// Logs the number by which WeChat Pay's support finds a call that failed. That a trade or a refund does not exist is no
/// failure.
fn log_request_id(answer: &Answer) {
    let (status, id) = (answer.status, answer.headers.get("request-id").and_then(|id| id.to_str().ok()));
    if let (false, Some(id)) = (matches!(status, 200 | 204 | 404), id) {
        info!(
            status,
            gateway_request_id = cut(id),
            "WeChat Pay answered {status}; its Request-ID is in gatewayRequestId"
        );
    }
}

fn failure(answer: &Answer) -> Failure {
    let empty = Failure { status: 0, code: String::new(), message: String::new(), detail: String::new() };
    let failure = words::read(&answer.body).unwrap_or(empty);
    Failure { status: answer.status, ..failure }
}

impl Failure {
    /// A permanent refusal, classified by whose fault it is.
    pub(super) fn refused(self) -> GatewayError {
        let (code, message) = (cut(&self.code), self.words());
        match self.is_ours() {
            true => GatewayError::Misconfigured { code, message },
            false => GatewayError::Refused { code, message },
        }
    }

    /// Whether a refusal is about our keys, apps, numbers or contract. Then WeChat Pay did not judge the request
    /// itself. Status 401 means this with any code. An unknown code is about the order.
    /// Source: WeChat Pay APIv3, common error codes and those of the prepay pages, read 2025-11-20.
    pub(super) fn is_ours(&self) -> bool {
        const OURS: [&str; 11] = [
            "SIGN_ERROR",
            "NO_AUTH",
            "ACCOUNT_ERROR",
            "ACCOUNTERROR",
            "APPID_MCHID_NOT_MATCH",
            "APPID_NOT_EXIST",
            "MCH_NOT_EXISTS",
            "MCHID_NOT_EXIST",
            // A rule of the contract, such as a missing H5 domain or the agreed request rate.
            "RULE_LIMIT",
            "RULELIMIT",
            "REQUEST_BLOCKED",
        ];
        self.status == 401 || OURS.contains(&self.code.as_str())
    }

    /// A refusal that may pass with time or after a top-up.
    pub(super) fn not_now(self) -> GatewayError {
        GatewayError::NotNow { code: cut(&self.code), message: self.words() }
    }

    pub(super) fn text(&self) -> String {
        format!("status {} {} {}", self.status, cut(&self.code), self.words())
    }

    /// The message, and which member of the request it is about.
    fn words(&self) -> String {
        let message = cut(&self.message);
        if self.detail.is_empty() { message } else { format!("{message} ({})", cut(&self.detail)) }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

pub(super) fn refusal(code: &str, message: &str) -> GatewayError {
    GatewayError::Refused { code: code.to_owned(), message: message.to_owned() }
}
