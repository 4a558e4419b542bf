//! Translates what Alipay posts to the payment's `notify_url`.
//!
//! Source: Alipay OpenAPI, "异步通知" of each product (00dn7l, 00f7nj, 00dn78, 0c2c19) and 00f7nu, read 2025-11-20.

use domain::message::callback::Callback;
use domain::{
    Fact, Merchant, Money, MoneyError, Notification, PaymentMethod, RefundReport, RefundState, ReturnedTrade, Source,
    TradeNo,
};
use time::OffsetDateTime;

use crate::alipay::form::Form;
use crate::alipay::{Account, parse_beijing};
use crate::error::CallbackError;
use crate::times::{self, Times};
use crate::verified::Verified;

/// Translates a callback whose signature has been checked.
pub(super) fn read(
    account: &Account,
    callback: &Verified<Callback>,
    now: OffsetDateTime,
) -> Result<Verified<Notification>, CallbackError> {
    let form = Form::parse(&callback.get().body)?;
    let mut times = Times::new(now);
    let fact = fact(&form, times::received(callback.get().received_at, now), &mut times)?;
    Ok(Verified::new(Notification {
        method: PaymentMethod::Alipay,
        account: account.name.clone(),
        notice_id: required(&form, "notify_id")?.to_owned(),
        source: Source::Notice,
        merchant: merchant(account, &form),
        order_no: required(&form, "out_trade_no")?.to_owned(),
        fact,
        doubt: times.doubt(),
    }))
}

/// Checks that signed fields are a notice: the parameters of the browser's return (see `return_page`) are signed, too.
pub(super) fn is_notice(callback: &Verified<Callback>) -> Result<(), CallbackError> {
    let form = Form::parse(&callback.get().body)?;
    let whole = ["notify_id", "notify_type"].iter().all(|name| form.get(name).is_some());
    if whole { Ok(()) } else { Err(CallbackError::Malformed("not a notice: no notify_id or notify_type")) }
}

/// Both the app and the payee must be ours, because an app can collect for several payees. A notice may omit the payee
/// (`seller_id` is optional, and we have nothing to compare `seller_email` with); it always names the app.
fn merchant(account: &Account, form: &Form<'_>) -> Merchant {
    let (app_id, seller_id) = (form.get("app_id"), form.get("seller_id"));
    let shown = |id: Option<&str>| id.unwrap_or("none").chars().take(32).collect::<String>();
    let ids = || format!("app_id {}, seller_id {}", shown(app_id), shown(seller_id));
    match app_id {
        _ if seller_id.is_some_and(|seller_id| seller_id != account.seller_id) => Merchant::Other(ids()),
        Some(app) if app == account.app_id => Merchant::Ours,
        Some(app) => Merchant::OtherApp { app: app.to_owned(), ids: ids() },
        None => Merchant::Other(ids()),
    }
}

/// Checks the value of `refund_fee` first, because only it identifies a refund. After a partial refund the state is
/// still `TRADE_SUCCESS`, after a full one `TRADE_CLOSED`, and some payments carry `refund_fee=0.00`.
fn fact(form: &Form<'_>, ours: OffsetDateTime, times: &mut Times) -> Result<Fact, CallbackError> {
    let paid = match form.get("trade_status") {
        Some("TRADE_SUCCESS" | "TRADE_FINISHED") => true,
        Some("TRADE_CLOSED") => false,
        _ => return Ok(Fact::Nothing),
    };
    let fee = form.get("refund_fee").map(amount).transpose()?;
    let returned = fee.is_some_and(|fee| fee.is_none_or(Money::is_positive));
    // Refunded, or closed although there was a payment: not a payment to rely on, and not unpaid either.
    if returned || (!paid && form.get("gmt_payment").is_some()) {
        let trade = returned_trade(form, fee.flatten(), paid, times)?;
        return Ok(match form.get("out_biz_no") {
            // `refund_fee` is the sum of all refunds so far, so the amount of this refund is unknown.
            Some(refund_no) => Fact::Refund {
                trade: Box::new(trade),
                refund_no: refund_no.to_owned(),
                report: RefundReport::of(RefundState::Processing),
            },
            None => Fact::PaidAndReturned(trade),
        });
    }
    if !paid {
        return Ok(Fact::ClosedUnpaid);
    }
    let amount = amount(required(form, "total_amount")?)?;
    let stated = |name: &'static str| (name, form.get(name));
    let paid_at = times.of_payment(stated("gmt_payment"), stated("notify_time"), ours, parse_beijing);
    Ok(Fact::Paid { trade_no: trade_no(form)?, amount, paid_at })
}

/// The trade that was refunded. If a paid trade is closed and no sum is stated, the whole payment was returned.
fn returned_trade(
    form: &Form<'_>,
    fee: Option<Money>,
    open: bool,
    times: &mut Times,
) -> Result<ReturnedTrade, CallbackError> {
    let paid = form.get("total_amount").and_then(|yuan| amount(yuan).ok().flatten());
    let stated = fee.filter(|fee| fee.is_positive());
    Ok(ReturnedTrade {
        trade_no: trade_no(form)?,
        paid,
        paid_at: times.read("gmt_payment", form.get("gmt_payment"), parse_beijing),
        returned: if open { stated } else { stated.or(paid) },
    })
}

fn trade_no(form: &Form<'_>) -> Result<TradeNo, CallbackError> {
    TradeNo::parse(required(form, "trade_no")?).map_err(|error| undecodable("trade_no", &error.to_string()))
}

/// `None`: more than any order of ours can cost.
fn amount(yuan: &str) -> Result<Option<Money>, CallbackError> {
    match Money::from_yuan(yuan) {
        Ok(money) => Ok(Some(money)),
        Err(MoneyError::OutOfRange(_)) => Ok(None),
        Err(MoneyError::NotYuan) => Err(undecodable("an amount", "not yuan")),
    }
}

fn required<'f>(form: &'f Form<'_>, name: &'static str) -> Result<&'f str, CallbackError> {
    form.get(name).ok_or_else(|| undecodable(name, "absent"))
}

/// Names the field and never its value.
fn undecodable(field: &str, why: &str) -> CallbackError {
    CallbackError::Undecodable(format!("{field}: {why}"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const PAID: &[(&str, &str)] = &[
        ("trade_status", "TRADE_SUCCESS"),
        ("trade_no", "2026010522001400001000000001"),
        ("total_amount", "88.8"),
        ("gmt_payment", "2026-01-05 10:21:08"),
        ("notify_time", "2026-01-05 10:21:10"),
    ];

    const OURS: OffsetDateTime = datetime!(2026-01-05 02:21:12 UTC);

    fn fact_of(change: &[(&str, &str)]) -> Result<Fact, CallbackError> {
        let changed = |name: &str| change.iter().any(|(n, _)| *n == name);
        let kept = PAID.iter().filter(|(name, _)| !changed(name));
        let body: String =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(kept.chain(change)).finish();
        let now = datetime!(2026-01-05 03:00:00 UTC);
        fact(&Form::parse(body.as_bytes()).unwrap(), OURS, &mut Times::new(now))
    }

    #[test]
    fn a_payment_is_stated_by_success_and_finished() {
        for status in ["TRADE_SUCCESS", "TRADE_FINISHED"] {
            for refund_fee in ["", "0", "0.00"] {
                let fact = fact_of(&[("trade_status", status), ("refund_fee", refund_fee)]).unwrap();
                let Fact::Paid { amount, paid_at, .. } = fact else { panic!("{status} {refund_fee} {fact:?}") };
                assert_eq!(amount.unwrap().fen(), 8880);
                assert_eq!(paid_at, datetime!(2026-01-05 02:21:08 UTC));
            }
        }
        let Fact::Paid { paid_at, .. } = fact_of(&[("gmt_payment", "")]).unwrap() else { panic!() };
        assert_eq!(paid_at, datetime!(2026-01-05 02:21:10 UTC));
    }

    #[test]
    fn a_refund_is_stated_by_its_fee_in_every_state() {
        for status in ["TRADE_SUCCESS", "TRADE_FINISHED", "TRADE_CLOSED"] {
            let fact = fact_of(&[("trade_status", status), ("refund_fee", "0.01"), ("out_biz_no", "RF_1")]).unwrap();
            assert!(
                matches!(&fact, Fact::Refund { refund_no, report, .. }
                    if refund_no == "RF_1" && *report == RefundReport::of(RefundState::Processing)),
                "{fact:?}"
            );
            let sums = |trade: &ReturnedTrade| (trade.paid.map(Money::fen), trade.returned.map(Money::fen));
            assert_eq!(fact.returned_trade().map(sums), Some((Some(8880), Some(1))));
            let fact = fact_of(&[("trade_status", status), ("refund_fee", "0.01")]).unwrap();
            let Fact::PaidAndReturned(trade) = fact else { panic!("{fact:?}") };
            assert_eq!(sums(&trade), (Some(8880), Some(1)));
        }
    }

    #[test]
    fn closed_is_unpaid_only_without_any_payment() {
        assert_eq!(fact_of(&[("trade_status", "TRADE_CLOSED"), ("gmt_payment", "")]), Ok(Fact::ClosedUnpaid));
        let fact = fact_of(&[("trade_status", "TRADE_CLOSED")]).unwrap();
        let Fact::PaidAndReturned(trade) = fact else { panic!("{fact:?}") };
        assert_eq!(trade.returned.map(Money::fen), Some(8880), "a closed trade went back whole");
        // A sum that no order of ours can have is ignored.
        let fact = fact_of(&[("refund_fee", "100000000.00")]).unwrap();
        assert_eq!(fact.returned_trade().map(|trade| trade.returned), Some(None));
    }

    #[test]
    fn a_payment_whose_time_cannot_be_is_a_payment_at_our_own_time() {
        for odd in [
            "0000-01-01 00:00:00",
            "1999-12-31 23:59:59",
            "2026-01-06 11:00:01",
            "9999-12-31 23:59:59",
            "-0001-01-01 00:00:00",
            "2026-02-30 00:00:00",
            "secret",
        ] {
            let fact = fact_of(&[("gmt_payment", odd)]).unwrap();
            assert!(matches!(fact, Fact::Paid { paid_at, .. } if paid_at == OURS), "{odd} {fact:?}");
            let fact = fact_of(&[("gmt_payment", ""), ("notify_time", odd)]).unwrap();
            assert!(matches!(fact, Fact::Paid { paid_at, .. } if paid_at == OURS), "{odd} {fact:?}");
        }
    }

    #[test]
    fn other_states_change_nothing() {
        for status in ["WAIT_BUYER_PAY", "TRADE_PENDING", ""] {
            assert_eq!(fact_of(&[("trade_status", status)]), Ok(Fact::Nothing));
        }
    }

    #[test]
    fn a_paid_callback_that_cannot_be_read_is_an_error_without_its_values() {
        for change in [
            ("total_amount", ""),
            ("total_amount", "-1"),
            ("total_amount", "1e3"),
            ("refund_fee", "secret"),
            ("trade_no", ""),
            ("trade_no", "secret 1"),
        ] {
            let Err(CallbackError::Undecodable(text)) = fact_of(&[change]) else { panic!("{change:?}") };
            assert!(!text.contains("secret"), "{text}");
        }
        let Fact::Paid { amount, .. } = fact_of(&[("total_amount", "100000000.00")]).unwrap() else { panic!() };
        assert_eq!(amount, None);
    }
}
