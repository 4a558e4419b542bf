//! Queries an order at WeChat Pay, and closes it.
//!
//! Source: WeChat Pay APIv3, "商户订单号查询订单" and "关闭订单" (D:4012791877 and its siblings), read 2025-11-20.

use domain::{Fact, Merchant, OrderNo, ReturnedTrade, TradeNo};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::error::GatewayError;
use crate::query::{CloseOutcome, Trade, TradeAnswer};
use crate::times::Times;
use crate::verified::Verified;
use crate::wechat::callback::{Amount, merchant_and_app};
use crate::wechat::client::{Failure, Outcome};
use crate::wechat::sign::Target;
use crate::wechat::{Wechat, parse_time};
use crate::words;

#[derive(Deserialize)]
struct Queried {
    mchid: String,
    appid: Option<String>,
    out_trade_no: String,
    trade_state: String,
    transaction_id: Option<String>,
    success_time: Option<String>,
    amount: Option<Amount>,
}

impl Wechat {
    /// For an order that WeChat Pay does not know, the answer is 404 `ORDER_NOT_EXIST`, unsigned like every 4xx:
    /// [`TradeAnswer::Absent`]. Other documentation pages and older systems spell the code differently.
    pub(super) async fn query_inner(
        &self,
        order_no: &OrderNo,
        now: OffsetDateTime,
    ) -> Result<TradeAnswer, GatewayError> {
        let path = format!("/v3/pay/transactions/out-trade-no/{order_no}?mchid={}", self.account.mchid);
        let target = Target { method: "GET", path_and_query: &path, body: "" };
        let body = match self.call(&target, now).await? {
            Outcome::Signed(body) => body,
            Outcome::Failed(failure) if is_absent(&failure) => return Ok(TradeAnswer::Absent { state: failure.code }),
            Outcome::Failed(failure) => return Err(failure.refused()),
        };
        let queried: Queried = words::read(&body).map_err(|_| protocol("the fields"))?;
        if queried.out_trade_no != order_no.as_str() || queried.mchid != self.account.mchid {
            return Err(GatewayError::Protocol("an answer about another order".to_owned()));
        }
        let mut times = Times::new(now);
        let fact = fact(&queried, now, &mut times)?;
        // We know which app queried, so an answer without the app is still valid.
        let merchant = match queried.appid.as_deref().filter(|appid| !appid.is_empty()) {
            None => Merchant::Ours,
            stated => merchant_and_app(&self.account, Some(&queried.mchid), stated),
        };
        let trade = Trade { fact, state: queried.trade_state, merchant, doubt: times.doubt() };
        Ok(TradeAnswer::Found(Verified::new(trade)))
    }

    pub(super) async fn close_inner(
        &self,
        order_no: &OrderNo,
        now: OffsetDateTime,
    ) -> Result<CloseOutcome, GatewayError> {
        let path = format!("/v3/pay/transactions/out-trade-no/{order_no}/close");
        let body = json!({ "mchid": self.account.mchid }).to_string();
        let target = Target { method: "POST", path_and_query: &path, body: &body };
        let failure = match self.call(&target, now).await? {
            Outcome::Signed(_) => return Ok(CloseOutcome::Closed),
            Outcome::Failed(failure) => failure,
        };
        if is_absent(&failure) {
            return Ok(CloseOutcome::NoTrade);
        }
        match (failure.status, failure.code.as_str()) {
            (_, "RESOURCE_NOT_EXISTS") => Ok(CloseOutcome::NoTrade),
            (401, _) | (_, "SIGN_ERROR" | "PARAM_ERROR" | "MCH_NOT_EXISTS" | "NO_AUTH") => Err(failure.refused()),
            // `ORDER_PAID`, `TRADE_ERROR`, `ORDER_CLOSED` …: the documentation pages disagree on which code and status
            // mean "paid". So every other refusal means that the caller must query.
            _ => Ok(CloseOutcome::NotClosed),
        }
    }
}

/// Whether a 4xx says that WeChat Pay does not know the order. `MCH_NOT_EXISTS` and the like are about us, not about
/// the order.
fn is_absent(failure: &Failure) -> bool {
    match failure.code.as_str() {
        "ORDER_NOT_EXIST" | "ORDER_NOT_EXISTS" | "ORDERNOTEXIST" => true,
        "RESOURCE_NOT_EXISTS" | "RESOURCE_NOT_EXIST" => failure.status == 404,
        _ => false,
    }
}

/// `REFUND` means a paid order that was partly or fully refunded. Only the four states matched here are final. If a
/// payment has no plausible time, `now` is used.
fn fact(queried: &Queried, now: OffsetDateTime, times: &mut Times) -> Result<Fact, GatewayError> {
    match queried.trade_state.as_str() {
        "SUCCESS" => Ok(Fact::Paid {
            trade_no: trade_no(queried)?,
            amount: queried.amount.as_ref().and_then(Amount::total).ok_or_else(|| protocol("amount.total"))?,
            paid_at: times.read("success_time", queried.success_time.as_deref(), parse_time).unwrap_or(now),
        }),
        // The answer does not state the refunded amount.
        "REFUND" => Ok(Fact::PaidAndReturned(ReturnedTrade {
            trade_no: trade_no(queried)?,
            paid: queried.amount.as_ref().and_then(Amount::total).flatten(),
            paid_at: times.read("success_time", queried.success_time.as_deref(), parse_time),
            returned: None,
        })),
        "CLOSED" | "REVOKED" => Ok(Fact::ClosedUnpaid),
        _ => Ok(Fact::Nothing),
    }
}

fn trade_no(queried: &Queried) -> Result<TradeNo, GatewayError> {
    TradeNo::parse(queried.transaction_id.as_deref().unwrap_or_default()).map_err(|_| protocol("transaction_id"))
}

fn protocol(field: &str) -> GatewayError {
    GatewayError::Protocol(format!("{field} in a signed answer to a query"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use domain::Money;

    const NOW: OffsetDateTime = datetime!(2026-01-05 03:00:00 UTC);

    fn fact_of(state: &str) -> Result<Fact, GatewayError> {
        fact_at(state, r#""2026-01-05T10:21:08+08:00""#)
    }

    fn fact_at(state: &str, success_time: &str) -> Result<Fact, GatewayError> {
        let text = format!(
            r#"{{"mchid":"1","out_trade_no":"ORD_01","trade_state":"{state}","transaction_id":"42","bank_type":"NEW",
                "success_time":{success_time},"amount":{{"total":100,"payer_total":90,"currency":"CNY"}}}}"#
        );
        fact(&serde_json::from_str(&text).unwrap(), NOW, &mut Times::new(NOW))
    }

    #[test]
    fn a_payment_without_a_time_that_can_be_was_made_by_now() {
        for odd in [
            "null",
            r#""""#,
            r#""soon""#,
            r#""9999-12-31T23:59:59-08:00""#,
            r#""0000-01-01T00:00:00+08:00""#,
            r#""2026-01-06T11:00:01+08:00""#,
        ] {
            let fact = fact_at("SUCCESS", odd);
            assert!(matches!(fact, Ok(Fact::Paid { paid_at, .. }) if paid_at == NOW), "{odd} {fact:?}");
        }
        let fact = fact_of("SUCCESS");
        assert!(matches!(fact, Ok(Fact::Paid { paid_at, .. }) if paid_at == datetime!(2026-01-05 02:21:08 UTC)));
    }

    #[test]
    fn each_state_of_a_trade_is_one_fact() {
        assert!(matches!(fact_of("SUCCESS"), Ok(Fact::Paid { amount: Some(amount), .. }) if amount.fen() == 100));
        let Ok(Fact::PaidAndReturned(trade)) = fact_of("REFUND") else { panic!() };
        assert_eq!((trade.paid.map(Money::fen), trade.returned, trade.paid_at.is_some()), (Some(100), None, true));
        for state in ["CLOSED", "REVOKED"] {
            assert_eq!(fact_of(state).unwrap(), Fact::ClosedUnpaid);
        }
        for state in ["NOTPAY", "USERPAYING", "PAYERROR", "ACCEPT", "NEW"] {
            assert_eq!(fact_of(state).unwrap(), Fact::Nothing);
        }
    }
}
