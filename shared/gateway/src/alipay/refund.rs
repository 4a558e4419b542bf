//! Requests refunds from Alipay, and queries their state.
//!
//! Source: Alipay OpenAPI, `alipay.trade.refund` (02ekfs, support/01rawa), `alipay.trade.fastpay.refund.query`
//! (02ekft), read 2025-11-20.

use domain::{Money, RefundReport, RefundState};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::alipay::answer::Failure;
use crate::alipay::client::{Answered, Call, signed_error};
use crate::alipay::{Alipay, parse_beijing};
use crate::error::GatewayError;
use crate::refund::RefundOrder;
use crate::times::believed;
use crate::transport::http::may_have_happened;

/// The answer to a refund request. It does not state the amount of this refund.
#[derive(Deserialize)]
struct Refunded {
    trade_no: String,
    out_trade_no: String,
    #[serde(default)]
    fund_change: Option<String>,
    #[serde(default)]
    gmt_refund_pay: Option<String>,
    /// The sum of all refunds of the trade so far. Text on most documentation pages, a number on some.
    #[serde(default)]
    refund_fee: Option<Box<RawValue>>,
}

/// The answer to a refund query. If there is no refund, all fields may be absent.
#[derive(Deserialize)]
struct Queried {
    #[serde(default)]
    trade_no: Option<String>,
    #[serde(default)]
    out_trade_no: Option<String>,
    #[serde(default)]
    out_request_no: Option<String>,
    #[serde(default)]
    refund_status: Option<String>,
    /// The amount of this refund. Text on most documentation pages, a number on some.
    #[serde(default)]
    refund_amount: Option<Box<RawValue>>,
    #[serde(default)]
    gmt_refund_pay: Option<String>,
}

impl Alipay {
    pub(super) async fn refund_inner(
        &self,
        refund: &RefundOrder,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        refund.check()?;
        // Without `out_request_no` Alipay would treat the second partial refund of a trade as a repeat of the first.
        let mut biz_content = json!({
            "trade_no": refund.trade_no,
            "out_request_no": refund.refund_no,
            "refund_amount": refund.amount.to_string(),
        });
        if let Some(reason) = refund.short_reason() {
            biz_content["refund_reason"] = json!(reason);
        }
        let biz_content = biz_content.to_string();
        let outcome = self.call(&call("alipay.trade.refund", &biz_content), now).await?;
        match outcome.answered::<Refunded>().map_err(may_have_happened)? {
            Answered::Success(refunded) => refunded_report(refund, &refunded, now),
            Answered::Failure(failure) => Err(refund_error(failure)),
        }
    }

    pub(super) async fn query_refund_inner(
        &self,
        refund: &RefundOrder,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        let biz_content = json!({
            "trade_no": refund.trade_no,
            "out_request_no": refund.refund_no,
            "query_options": ["gmt_refund_pay"],
        })
        .to_string();
        let outcome = self.call(&call("alipay.trade.fastpay.refund.query", &biz_content), now).await?;
        queried_report(refund, &outcome.success()?, now)
    }
}

fn call<'a>(method: &'a str, biz_content: &'a str) -> Call<'a> {
    Call { method, notify_url: None, return_url: None, biz_content }
}

/// Only `Y` says that this call moved money. A repeat of a finished refund answers `N`, which is no failure: query it.
fn refunded_report(
    refund: &RefundOrder,
    refunded: &Refunded,
    now: OffsetDateTime,
) -> Result<RefundReport, GatewayError> {
    if refunded.trade_no != refund.trade_no.as_str() || refunded.out_trade_no != refund.order_no.as_str() {
        return Err(another());
    }
    Ok(match refunded.fund_change.as_deref() {
        Some("Y") => RefundReport {
            returned: yuan(refunded.refund_fee.as_deref()),
            at: believed(refunded.gmt_refund_pay.as_deref().and_then(parse_beijing), now),
            ..RefundReport::of(RefundState::Succeeded)
        },
        _ => RefundReport::of(RefundState::Processing),
    })
}

/// `REFUND_SUCCESS` is the only proof. An unknown status does not permit sending the refund again.
fn queried_report(refund: &RefundOrder, queried: &Queried, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
    let numbers = [
        (&queried.trade_no, refund.trade_no.as_str()),
        (&queried.out_trade_no, refund.order_no.as_str()),
        (&queried.out_request_no, refund.refund_no.as_str()),
    ];
    let numbers = numbers.map(|(stated, requested)| (stated.as_deref().unwrap_or_default(), requested));
    if numbers.iter().any(|(stated, requested)| !stated.is_empty() && stated != requested) {
        return Err(another());
    }
    match queried.refund_status.as_deref() {
        None | Some("") => Ok(RefundReport::of(RefundState::Absent)),
        Some("REFUND_SUCCESS") => {
            if numbers.iter().any(|(stated, _)| stated.is_empty()) {
                return Err(protocol("the numbers"));
            }
            let amount = yuan(queried.refund_amount.as_deref()).ok_or_else(|| protocol("refund_amount"))?;
            let at = believed(queried.gmt_refund_pay.as_deref().and_then(parse_beijing), now);
            Ok(RefundReport { amount: Some(amount), at, ..RefundReport::of(RefundState::Succeeded) })
        }
        Some(_) => Ok(RefundReport::of(RefundState::Processing)),
    }
}

fn yuan(amount: Option<&RawValue>) -> Option<Money> {
    Money::from_yuan(amount?.get().trim_matches('"')).ok()
}

/// A signed failure of a refund. A refusal may concern a repeat of a refund that was already done, so it decides
/// nothing by itself.
pub(super) fn refund_error(failure: Failure) -> GatewayError {
    match (failure.code.as_str(), failure.short_sub_code()) {
        ("40004", "SELLER_BALANCE_NOT_ENOUGH" | "REFUND_CHARGE_ERROR") => failure.not_now(),
        _ => may_have_happened(signed_error(failure)),
    }
}

fn another() -> GatewayError {
    GatewayError::Protocol("an answer about another refund".to_owned())
}

fn protocol(field: &str) -> GatewayError {
    GatewayError::Protocol(format!("{field} in a signed answer about a refund"))
}
