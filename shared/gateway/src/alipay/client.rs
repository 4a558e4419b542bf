//! Makes one call of Alipay's gateway, from parameters to a judged answer.
//!
//! Source: Alipay OpenAPI, C:057k53 (parameters), C:02km9f (codes), read 2025-11-20.

use reqwest::Client;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use url::{Url, form_urlencoded};

use crate::adapter::Gateway as _;
pub(super) use crate::alipay::answer::Failure;
use crate::alipay::answer::{self, Answer as Signed};
use crate::alipay::sign;
use crate::alipay::{Account, Alipay, beijing_text};
use crate::error::GatewayError;
use crate::transport::http::Answer;
use crate::words;

/// The content of a call. An absent parameter is not sent, because implementations differ on whether they sign an empty
/// one.
pub(super) struct Call<'a> {
    pub method: &'a str,
    pub notify_url: Option<&'a str>,
    pub return_url: Option<&'a str>,
    /// The exact JSON text.
    pub biz_content: &'a str,
}

impl Call<'_> {
    /// The parameters other than `biz_content` and `sign`.
    pub(super) fn public_params(
        &self,
        account: &Account,
        now: OffsetDateTime,
    ) -> Result<Vec<(&'static str, String)>, GatewayError> {
        let mut params = vec![
            ("app_id", account.app_id.clone()),
            ("method", self.method.to_owned()),
            ("format", "JSON".to_owned()),
            ("charset", "utf-8".to_owned()),
            ("sign_type", "RSA2".to_owned()),
            ("timestamp", beijing_text(now)?),
            ("version", "1.0".to_owned()),
        ];
        if let Some(certificates) = account.certificates() {
            params.push(("app_cert_sn", certificates.app_sn.clone()));
            params.push(("alipay_root_cert_sn", certificates.root_sn.clone()));
        }
        params.extend(self.notify_url.map(|url| ("notify_url", url.to_owned())));
        params.extend(self.return_url.map(|url| ("return_url", url.to_owned())));
        Ok(params)
    }
}

/// The result of a call: an answer that Alipay signed, or an unsigned failure that anyone may have sent.
pub(super) enum Outcome {
    /// The response node as received, in its own charset.
    Signed(Vec<u8>),
    UnsignedFailure(Failure),
}

impl Alipay {
    /// Makes a call and judges what the answer proves.
    pub(super) async fn call(&self, call: &Call<'_>, now: OffsetDateTime) -> Result<Outcome, GatewayError> {
        let answer = self.exchange(call, now).await?;
        self.judge(call, &answer, now).await
    }

    /// Judges what an answer proves.
    pub(super) async fn judge(
        &self,
        call: &Call<'_>,
        answer: &Answer,
        now: OffsetDateTime,
    ) -> Result<Outcome, GatewayError> {
        if let Some(sn) = answer::cert_sn(&answer.body).filter(|sn| self.issued(sn, now).is_none()) {
            // The answer names a certificate that is not loaded; look it up once.
            self.look_for_key(&sn, now).await;
        }
        // The status is ignored: errors also come with 200. An answer that proves nothing leaves the outcome unknown.
        let opened = self
            .open(call.method, &answer.body, now)
            .map_err(|error| GatewayError::Unknown(format!("{error} (status {})", answer.status)))?;
        Ok(match opened {
            Signed::Signed { node, .. } => Outcome::Signed(node.to_vec()),
            Signed::UnsignedFailure(failure) => Outcome::UnsignedFailure(failure),
        })
    }

    /// Sends the public parameters in the URL, including `charset`. If it read `charset` from the body, the gateway
    /// would assume GBK.
    pub(super) async fn exchange(&self, call: &Call<'_>, now: OffsetDateTime) -> Result<Answer, GatewayError> {
        let mut params = call.public_params(&self.account, now)?;
        let covered = params.iter().map(|(name, value)| (*name, value.as_str()));
        let sign = sign::sign(&self.account.app_key, covered.chain([("biz_content", call.biz_content)]))?;
        params.push(("sign", sign));
        let body: String =
            form_urlencoded::Serializer::new(String::new()).append_pair("biz_content", call.biz_content).finish();
        let build = |client: &Client, url: &Url| {
            let mut url = url.clone();
            url.query_pairs_mut().extend_pairs(&params);
            Ok(client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded;charset=utf-8")
                .header("accept", "application/json")
                .body(body.clone()))
        };
        self.route.send(build).await
    }
}

/// The content of an answer that Alipay signed.
pub(super) enum Answered<T> {
    /// The fields of a success.
    Success(T),
    /// The code and text of a failure.
    Failure(Failure),
}

impl Outcome {
    /// The fields of a success.
    pub(super) fn success<T: DeserializeOwned>(self) -> Result<T, GatewayError> {
        match self.answered()? {
            Answered::Success(fields) => Ok(fields),
            Answered::Failure(failure) => Err(signed_error(failure)),
        }
    }

    /// What Alipay signed. The caller decides which failures its method handles.
    pub(super) fn answered<T: DeserializeOwned>(self) -> Result<Answered<T>, GatewayError> {
        let node = match self {
            Outcome::Signed(node) => node,
            Outcome::UnsignedFailure(failure) => return Err(unsigned_error(failure)),
        };
        let code: Failure = parse(&node)?;
        if code.code == answer::SUCCESS { Ok(Answered::Success(parse(&node)?)) } else { Ok(Answered::Failure(code)) }
    }
}

fn parse<T: DeserializeOwned>(node: &[u8]) -> Result<T, GatewayError> {
    // State the category and the column, never the text: it may name the payer.
    words::read(node).map_err(|error| {
        GatewayError::Protocol(format!("{:?} error in a signed answer, column {}", error.classify(), error.column()))
    })
}

/// Judges a failure that Alipay signed. Unless the call was certainly refused or certainly not executed, the outcome
/// stays unknown. A refund moves money, so its code judges even more strictly.
pub(super) fn signed_error(failure: Failure) -> GatewayError {
    match failure.code.as_str() {
        "20000" | "10003" => unknown(failure),
        "40005" => unavailable(failure),
        // The official lists contain odd spellings: `aop.ACQ.SYSTEM_ERROR`, `AQC.SYSTEM_ERROR`.
        "40004" if failure.short_sub_code() == "SYSTEM_ERROR" => unknown(failure),
        "40001" | "40002" | "40003" | "40004" | "40006" | "20001" => failure.refused(),
        code => GatewayError::Protocol(format!("result code {}", shown(code))),
    }
}

/// Judges a failure without a signature. If the gateway cannot attribute a request (app id, signature, parameters), it
/// rejects the request unsigned and before it looks at any trade. So `isv.*` is a refusal; everything else proves
/// nothing.
pub(super) fn unsigned_error(failure: Failure) -> GatewayError {
    match failure.code.as_str() {
        "40005" => unavailable(failure),
        "40001" | "40002" | "40003" | "40006" if failure.sub_code.starts_with("isv.") => failure.refused(),
        _ => unknown(failure),
    }
}

impl Failure {
    /// The code without its prefixes: `ACQ.TRADE_NOT_EXIST` and the bare `TRADE_NOT_EXIST` are the same.
    pub(super) fn short_sub_code(&self) -> &str {
        self.sub_code.rsplit('.').next().unwrap_or_default()
    }

    /// A permanent refusal, classified by whose fault it is.
    fn refused(self) -> GatewayError {
        let ours = is_ours(&self);
        let (code, message) = self.words();
        match ours {
            true => GatewayError::Misconfigured { code, message },
            false => GatewayError::Refused { code, message },
        }
    }

    /// A refusal that may pass with time or after a top-up.
    pub(super) fn not_now(self) -> GatewayError {
        let (code, message) = self.words();
        GatewayError::NotNow { code, message }
    }

    /// The sub code and sub message if present, because they are more specific; otherwise the main ones.
    fn words(self) -> (String, String) {
        let code = if self.sub_code.is_empty() { self.code } else { self.sub_code };
        let message = if self.sub_msg.is_empty() { self.msg } else { self.sub_msg };
        (shown(&code), shown(&message))
    }

    fn text(&self) -> String {
        format!("{} {} {}", shown(&self.code), shown(&self.sub_code), shown(&self.sub_msg))
    }
}

/// Whether a refusal is about our keys, clock, application or contract. Then the gateway did not judge the trade.
///
/// `isv.*` is about the frame of the request, so an unknown `isv.*` code counts as our fault. The three in
/// `OF_THE_ORDER` are exceptions: they are about the content of the order. An unknown business code (`ACQ.*`) is about
/// the order.
/// Source: common codes (C:02km9f), precreate (05osv9) and its siblings, read 2025-11-20.
fn is_ours(failure: &Failure) -> bool {
    const OF_THE_ORDER: [&str; 3] = ["isv.invalid-parameter", "isv.invalid-biz-content", "isv.suspected-attack"];
    const OURS: [&str; 8] = [
        "ACCESS_FORBIDDEN",
        "PARTNER_ERROR",
        "SELLER_BEEN_BLOCKED",
        "ERROR_SELLER_CERTIFY_LEVEL_LIMIT",
        "MERCHANT_AGREEMENT_NOT_EXIST",
        "MERCHANT_AGREEMENT_INVALID",
        "MERCHANT_STATUS_NOT_NORMAL",
        "MERCHANT_PERM_RECEIPT_SUSPEND_LIMIT",
    ];
    let sub_code = failure.sub_code.as_str();
    match failure.code.as_str() {
        _ if OF_THE_ORDER.contains(&sub_code) => false,
        // These are about an authorisation, a missing parameter of the frame, a condition, and a permission.
        "20001" | "40001" | "40003" | "40006" => true,
        _ => {
            sub_code.starts_with("isv.")
                || sub_code == "aop.invalid-auth-token"
                || OURS.contains(&failure.short_sub_code())
        }
    }
}

fn unknown(failure: Failure) -> GatewayError {
    GatewayError::Unknown(failure.text())
}

fn unavailable(failure: Failure) -> GatewayError {
    GatewayError::Unavailable(failure.text())
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

pub(super) fn refusal(code: &str, message: &str) -> GatewayError {
    GatewayError::Refused { code: code.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str, sub_code: &str) -> Failure {
        Failure { code: code.to_owned(), msg: "m".to_owned(), sub_code: sub_code.to_owned(), sub_msg: String::new() }
    }

    fn name(error: &GatewayError) -> &'static str {
        match error {
            GatewayError::Refused { .. } => "refused",
            GatewayError::Misconfigured { .. } => "misconfigured",
            GatewayError::NotNow { .. } => "not now",
            GatewayError::Unavailable(_) => "unavailable",
            GatewayError::Unknown(_) => "unknown",
            GatewayError::Protocol(_) => "protocol",
        }
    }

    #[test]
    fn a_failure_is_named_after_what_may_be_done() {
        let table = [
            ("20000", "isp.unknow-error", "unknown", "unknown"),
            ("20001", "aop.invalid-auth-token", "misconfigured", "unknown"),
            ("40001", "isv.missing-method", "misconfigured", "misconfigured"),
            ("40002", "isv.invalid-signature", "misconfigured", "misconfigured"),
            ("40002", "isv.invalid-something-new", "misconfigured", "misconfigured"),
            ("40002", "isv.invalid-parameter", "refused", "refused"),
            ("40002", "isv.suspected-attack", "refused", "refused"),
            ("40002", "", "refused", "unknown"),
            ("40003", "isv.missing-signature-config", "misconfigured", "misconfigured"),
            ("40004", "ACQ.ACCESS_FORBIDDEN", "misconfigured", "unknown"),
            ("40004", "aop.ACQ.PARTNER_ERROR", "misconfigured", "unknown"),
            ("40004", "ACQ.TOTAL_FEE_EXCEED", "refused", "unknown"),
            ("40004", "ACQ.EXIST_FORBIDDEN_WORD", "refused", "unknown"),
            ("40004", "ACQ.SOMETHING_NEW", "refused", "unknown"),
            ("40004", "ACQ.SYSTEM_ERROR", "unknown", "unknown"),
            ("40004", "aop.ACQ.SYSTEM_ERROR", "unknown", "unknown"),
            ("40004", "ACQ.CONTEXT_INCONSISTENT", "refused", "unknown"),
            ("40005", "isv.app-call-limited", "unavailable", "unavailable"),
            ("40006", "isv.insufficient-isv-permissions", "misconfigured", "misconfigured"),
            ("50000", "x", "protocol", "unknown"),
        ];
        for (code, sub_code, signed, unsigned) in table {
            assert_eq!(name(&signed_error(failure(code, sub_code))), signed, "{code} {sub_code} signed");
            assert_eq!(name(&unsigned_error(failure(code, sub_code))), unsigned, "{code} {sub_code} unsigned");
        }
    }
}
