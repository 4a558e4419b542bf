//! Queries an order at Alipay, and closes it.
//!
//! Source: Alipay OpenAPI, `alipay.trade.query` (02ekfq), `alipay.trade.close` (02o6e8), read 2025-11-20.

use domain::{Fact, Merchant, Money, MoneyError, OrderNo, ReturnedTrade, TradeNo};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::alipay::client::{Answered, Call, signed_error};
use crate::alipay::{Alipay, parse_beijing};
use crate::error::GatewayError;
use crate::query::{CloseOutcome, Trade, TradeAnswer};
use crate::times::Times;
use crate::verified::Verified;

#[derive(Deserialize)]
struct Queried {
    trade_no: String,
    out_trade_no: String,
    trade_status: String,
    /// Text on most documentation pages, a number on some.
    total_amount: Box<RawValue>,
    #[serde(default)]
    send_pay_date: Option<String>,
    /// The documentation does not list this field, but its list is open. If an answer names the payee, it must be ours.
    #[serde(default)]
    seller_id: Option<String>,
    /// If the date is absent, these fields show that the buyer paid.
    #[serde(default)]
    buyer_pay_amount: Option<Box<RawValue>>,
    #[serde(default)]
    receipt_amount: Option<Box<RawValue>>,
    #[serde(default)]
    refund_fee: Option<Box<RawValue>>,
    #[serde(default)]
    fund_bill_list: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Closed {}

impl Alipay {
    pub(super) async fn query_inner(
        &self,
        order_no: &OrderNo,
        now: OffsetDateTime,
    ) -> Result<TradeAnswer, GatewayError> {
        let biz_content = json!({ "out_trade_no": order_no }).to_string();
        let outcome = self.call(&call("alipay.trade.query", &biz_content), now).await?;
        match outcome.answered::<Queried>()? {
            Answered::Success(queried) if queried.out_trade_no != order_no.as_str() => {
                Err(GatewayError::Protocol("an answer about another order".to_owned()))
            }
            Answered::Success(queried) => {
                let mut times = Times::new(now);
                let fact = fact(&queried, now, &mut times)?;
                let merchant = self.payee(queried.seller_id.as_deref());
                let trade = Trade { fact, state: queried.trade_status, merchant, doubt: times.doubt() };
                Ok(TradeAnswer::Found(Verified::new(trade)))
            }
            // There is no trade before the buyer arrives, and a buyer may still arrive until the order expires.
            Answered::Failure(failure) if failure.short_sub_code() == "TRADE_NOT_EXIST" => {
                Ok(TradeAnswer::Absent { state: "TRADE_NOT_EXIST".to_owned() })
            }
            Answered::Failure(failure) => Err(signed_error(failure)),
        }
    }

    /// The querying app is ours, but the answer may name another payee.
    fn payee(&self, seller_id: Option<&str>) -> Merchant {
        match seller_id.filter(|id| !id.is_empty()) {
            Some(id) if id != self.account.seller_id => {
                Merchant::Other(format!("seller_id {}", id.chars().take(32).collect::<String>()))
            }
            _ => Merchant::Ours,
        }
    }

    pub(super) async fn close_inner(
        &self,
        order_no: &OrderNo,
        now: OffsetDateTime,
    ) -> Result<CloseOutcome, GatewayError> {
        let biz_content = json!({ "out_trade_no": order_no }).to_string();
        let outcome = self.call(&call("alipay.trade.close", &biz_content), now).await?;
        let failure = match outcome.answered::<Closed>()? {
            Answered::Success(Closed {}) => return Ok(CloseOutcome::Closed),
            Answered::Failure(failure) => failure,
        };
        match failure.short_sub_code() {
            "TRADE_NOT_EXIST" => Ok(CloseOutcome::NoTradeYet),
            "TRADE_STATUS_ERROR"
            | "REASON_TRADE_STATUS_INVALID"
            | "REASON_ILLEGAL_STATUS"
            | "TRADE_HAS_SUCCESS"
            | "TRADE_HAS_FINISHED"
            | "TRADE_HAS_CLOSE" => Ok(CloseOutcome::NotClosed),
            _ => Err(signed_error(failure)),
        }
    }
}

fn call<'a>(method: &'a str, biz_content: &'a str) -> Call<'a> {
    Call { method, notify_url: None, return_url: None, biz_content }
}

/// `TRADE_CLOSED` means never paid or fully refunded. Only a paid trade has a date, an amount that a buyer paid, or
/// fund bills. The date is optional: if a paid trade has no date or an impossible one, `now` is used.
fn fact(queried: &Queried, now: OffsetDateTime, times: &mut Times) -> Result<Fact, GatewayError> {
    let paid_at = queried.send_pay_date.as_deref().filter(|text| !text.is_empty());
    match queried.trade_status.as_str() {
        "TRADE_SUCCESS" | "TRADE_FINISHED" => Ok(Fact::Paid {
            trade_no: trade_no(queried)?,
            amount: amount(queried)?,
            paid_at: times.read("send_pay_date", paid_at, parse_beijing).unwrap_or(now),
        }),
        "TRADE_CLOSED" if paid_at.is_some() || shows_money(queried) => {
            let paid = amount(queried)?;
            let paid_at = times.read("send_pay_date", paid_at, parse_beijing);
            Ok(Fact::PaidAndReturned(ReturnedTrade { trade_no: trade_no(queried)?, paid, paid_at, returned: paid }))
        }
        "TRADE_CLOSED" => Ok(Fact::ClosedUnpaid),
        _ => Ok(Fact::Nothing),
    }
}

/// Whether the answer shows, apart from the date, money that a buyer paid.
fn shows_money(queried: &Queried) -> bool {
    let amounts = [&queried.buyer_pay_amount, &queried.receipt_amount, &queried.refund_fee];
    let texts = amounts.into_iter().flatten().map(|amount| amount.get().trim_matches('"'));
    let some = texts.filter_map(|text| Money::from_yuan(text).ok()).any(Money::is_positive);
    // A list, on some documentation pages as text.
    let bills = queried.fund_bill_list.as_ref().map(|list| list.get().trim_matches(['"', '[', ']', ' ']));
    some || bills.is_some_and(|bills| !matches!(bills, "" | "null"))
}

fn trade_no(queried: &Queried) -> Result<TradeNo, GatewayError> {
    TradeNo::parse(queried.trade_no.as_str()).map_err(|_| protocol("trade_no"))
}

fn amount(queried: &Queried) -> Result<Option<Money>, GatewayError> {
    match Money::from_yuan(queried.total_amount.get().trim_matches('"')) {
        Ok(money) => Ok(Some(money)),
        Err(MoneyError::OutOfRange(_)) => Ok(None),
        Err(MoneyError::NotYuan) => Err(protocol("total_amount")),
    }
}

fn protocol(field: &str) -> GatewayError {
    GatewayError::Protocol(format!("{field} in a signed answer to a query"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-05 03:00:00 UTC);

    fn fact_of(status: &str, total_amount: &str, send_pay_date: &str) -> Result<Fact, GatewayError> {
        let text = format!(
            r#"{{"trade_no":"2026","out_trade_no":"ORD_01","trade_status":"{status}","total_amount":{total_amount},
                "send_pay_date":"{send_pay_date}","another":{{"x":[]}}}}"#
        );
        fact(&serde_json::from_str(&text).unwrap(), NOW, &mut Times::new(NOW))
    }

    #[test]
    fn a_paid_trade_has_its_amount_as_text_or_number() {
        for amount in [r#""88.80""#, "88.8", "88.80"] {
            let Fact::Paid { amount, paid_at, .. } = fact_of("TRADE_SUCCESS", amount, "2026-01-05 10:21:08").unwrap()
            else {
                panic!()
            };
            assert_eq!(amount.unwrap().fen(), 8880);
            assert_eq!(paid_at, datetime!(2026-01-05 02:21:08 UTC));
        }
        assert!(matches!(fact_of("TRADE_SUCCESS", "1", ""), Ok(Fact::Paid { paid_at, .. }) if paid_at == NOW));
        for odd in ["soon", "0000-01-01 00:00:00", "9999-12-31 23:59:59"] {
            assert!(
                matches!(fact_of("TRADE_SUCCESS", "1", odd), Ok(Fact::Paid { paid_at, .. }) if paid_at == NOW),
                "{odd}"
            );
        }
        for amount in ["1e2", r#""""#] {
            let fact = fact_of("TRADE_FINISHED", amount, "2026-01-05 10:21:08");
            assert!(matches!(fact, Err(GatewayError::Protocol(_))), "{amount}");
        }
    }

    #[test]
    fn a_closed_trade_is_distinguished_by_its_date_of_payment() {
        assert_eq!(fact_of("TRADE_CLOSED", "1", "").unwrap(), Fact::ClosedUnpaid);
        let Ok(Fact::PaidAndReturned(trade)) = fact_of("TRADE_CLOSED", "1", "2026-01-05 10:21:08") else { panic!() };
        assert_eq!((trade.paid, trade.returned), (Money::from_fen(100).ok(), Money::from_fen(100).ok()));
        assert_eq!(trade.paid_at, Some(datetime!(2026-01-05 02:21:08 UTC)));
    }

    /// The date is optional, and a trade that was paid and fully refunded must not look unpaid.
    #[test]
    fn a_closed_trade_without_a_date_was_paid_when_anything_shows_money() {
        let fact_of = |member: &str| {
            let text = format!(
                r#"{{"trade_no":"2026","out_trade_no":"ORD_01","trade_status":"TRADE_CLOSED","total_amount":"1"{member}}}"#
            );
            fact(&serde_json::from_str(&text).unwrap(), NOW, &mut Times::new(NOW)).unwrap()
        };
        for paid in [
            r#","buyer_pay_amount":"1.00""#,
            r#","receipt_amount":0.01"#,
            r#","refund_fee":"1.00""#,
            r#","fund_bill_list":[{"fund_channel":"ALIPAYACCOUNT","amount":"1.00"}]"#,
            r#","fund_bill_list":"[{\"fundChannel\":\"PCREDIT\"}]""#,
        ] {
            assert!(matches!(fact_of(paid), Fact::PaidAndReturned(_)), "{paid}");
        }
        for unpaid in [
            "",
            r#","buyer_pay_amount":"0.00","receipt_amount":"0","refund_fee":null"#,
            r#","buyer_pay_amount":"","fund_bill_list":[]"#,
            r#","fund_bill_list":"[]""#,
            r#","fund_bill_list":null"#,
        ] {
            assert_eq!(fact_of(unpaid), Fact::ClosedUnpaid, "{unpaid}");
        }
    }

    #[test]
    fn a_waiting_or_unknown_trade_changes_nothing() {
        for status in ["WAIT_BUYER_PAY", "TRADE_PENDING"] {
            assert_eq!(fact_of(status, "1", "").unwrap(), Fact::Nothing);
        }
    }
}
