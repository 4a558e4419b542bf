//! Requests refunds from WeChat Pay, queries them, and redirects a refund that could not be delivered.
//!
//! Source: WeChat Pay APIv3, "申请退款" (D:4013071036, D:4012556457), "查询单笔退款", "发起异常退款", read 2025-11-20.

use domain::{RefundReport, RefundState};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::error::GatewayError;
use crate::keys::VerifyingKey;
use crate::refund::{RefundOrder, RefundTarget};
use crate::times::believed;
use crate::wechat::callback::{self, Amount};
use crate::wechat::client::{Failure, Outcome, refusal};
use crate::wechat::sensitive::{self, SensitiveError};
use crate::wechat::sign::Target;
use crate::wechat::{Wechat, parse_time};
use crate::words;

const PATH: &str = "/v3/refund/domestic/refunds";

/// The answer of all three calls.
#[derive(Deserialize)]
struct Refunded {
    refund_id: String,
    out_refund_no: String,
    transaction_id: String,
    out_trade_no: String,
    status: String,
    #[serde(default)]
    success_time: Option<String>,
    amount: Amount,
}

impl Wechat {
    pub(super) async fn refund_inner(
        &self,
        refund: &RefundOrder,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        refund.check()?;
        let mut body = json!({
            "transaction_id": refund.trade_no,
            "out_refund_no": refund.refund_no,
            // Without it the notice goes to the address set in the console, and uses another protocol.
            "notify_url": refund.notify_url,
            "amount": { "refund": refund.amount.fen(), "total": refund.total.fen(), "currency": "CNY" },
        });
        if let Some(reason) = refund.short_reason() {
            body["reason"] = json!(reason);
        }
        let target = Target { method: "POST", path_and_query: PATH, body: &body.to_string() };
        let outcome = self.call_money(&target, self.ring().public_key_id(), now).await?;
        accepted(refund, outcome, now)
    }

    pub(super) async fn query_refund_inner(
        &self,
        refund: &RefundOrder,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        let path = format!("{PATH}/{}", refund.refund_no);
        match self.call(&Target { method: "GET", path_and_query: &path, body: "" }, now).await? {
            Outcome::Signed(body) => report(refund, &body, now),
            Outcome::Failed(failure) if (failure.status, failure.code.as_str()) == (404, "RESOURCE_NOT_EXISTS") => {
                Ok(RefundReport::of(RefundState::Absent))
            }
            Outcome::Failed(failure) => Err(failure.refused()),
        }
    }

    pub(super) async fn redirect_inner(
        &self,
        refund: &RefundOrder,
        refund_id: &str,
        to: &RefundTarget,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        if callback::refund_id(refund_id).is_none() {
            return Err(refusal("refund_id", "not a number that WeChat Pay gives a refund"));
        }
        let ring = self.ring();
        let mut serial = ring.public_key_id();
        let body = match to {
            RefundTarget::MerchantAccount => json!({ "out_refund_no": refund.refund_no, "type": "MERCHANT_BANK_CARD" }),
            RefundTarget::BuyerCard { bank_type, account, name } => {
                // The request was not sent: a certificate may be fetched soon.
                let none = || GatewayError::Unavailable("no key to encrypt a card with".to_owned());
                let (id, key) = ring.encrypting(now).ok_or_else(none)?;
                serial = Some(id);
                json!({
                    "out_refund_no": refund.refund_no,
                    "type": "USER_BANK_CARD",
                    "bank_type": bank_type,
                    "bank_account": sealed(key, "bank_account", account)?,
                    "real_name": sealed(key, "real_name", name)?,
                })
            }
        };
        let path = format!("{PATH}/{refund_id}/apply-abnormal-refund");
        let target = Target { method: "POST", path_and_query: &path, body: &body.to_string() };
        accepted(refund, self.call_money(&target, serial, now).await?, now)
    }
}

/// Both errors mean that the request was not sent.
fn sealed(key: &VerifyingKey, field: &str, text: &SecretString) -> Result<String, GatewayError> {
    sensitive::encrypt(key, text.expose_secret()).map_err(|error| match error {
        SensitiveError::TooLong { .. } => refusal(field, &error.to_string()),
        SensitiveError::Library => GatewayError::Unavailable(error.to_string()),
    })
}

fn accepted(refund: &RefundOrder, outcome: Outcome, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
    match outcome {
        Outcome::Signed(body) => report(refund, &body, now),
        Outcome::Failed(failure) => Err(refund_error(failure)),
    }
}

/// Judges an unsigned 4xx. The status of a code differs between calls, so the codes with an unknown outcome count under
/// any status.
fn refund_error(failure: Failure) -> GatewayError {
    match failure.code.as_str() {
        "NOT_ENOUGH" => failure.not_now(),
        "SYSTEM_ERROR" | "FREQUENCY_LIMITED" | "RATELIMIT_EXCEEDED" => GatewayError::Unknown(failure.text()),
        _ => failure.refused(),
    }
}

/// Status 200 only means that the request was accepted. The `status` field decides, and only in an answer about this
/// refund.
fn report(refund: &RefundOrder, body: &[u8], now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
    // An empty or foreign text is treated like an answer without the fields.
    let stated: Refunded = words::read(body).map_err(|_| protocol("the fields"))?;
    if stated.out_refund_no != refund.refund_no.as_str()
        || stated.transaction_id != refund.trade_no.as_str()
        || stated.out_trade_no != refund.order_no.as_str()
    {
        return Err(GatewayError::Protocol("an answer about another refund".to_owned()));
    }
    let amount = stated.amount.refund().flatten();
    // An amount that differs from ours is accepted only if money has moved. The settlement code compares it.
    let settles = stated.status == "SUCCESS" && amount.is_some();
    if stated.amount.total().flatten() != Some(refund.total) || !(settles || amount == Some(refund.amount)) {
        return Err(protocol("amount"));
    }
    let of =
        |state| RefundReport { gateway_refund_no: callback::refund_id(&stated.refund_id), ..RefundReport::of(state) };
    match stated.status.as_str() {
        "PROCESSING" => Ok(of(RefundState::Processing)),
        "SUCCESS" => {
            let at = believed(stated.success_time.as_deref().and_then(parse_time), now);
            Ok(RefundReport { amount, at, ..of(RefundState::Succeeded) })
        }
        "CLOSED" => Ok(of(RefundState::Closed)),
        "ABNORMAL" => Ok(of(RefundState::Abnormal)),
        _ => Err(protocol("status")),
    }
}

fn protocol(field: &str) -> GatewayError {
    GatewayError::Protocol(format!("{field} in a signed answer about a refund"))
}
