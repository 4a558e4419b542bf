//! Decrypts and translates what WeChat Pay posts.
//!
//! Source: WeChat Pay APIv3, "支付成功回调通知" (D:4012791861) and "退款结果回调通知", read 2025-11-20.

use std::borrow::Cow;

use domain::message::callback::Callback;
use domain::{
    Fact, Merchant, Money, Notification, PaymentMethod, RefundReport, RefundState, ReturnedTrade, Source, TradeNo,
};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::CallbackError;
use crate::times::{self, Times};
use crate::verified::Verified;
use crate::wechat::aead::{AeadError, Sealed};
use crate::wechat::{Account, parse_time};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    create_time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    resource: Sealed<'a>,
}

/// The decrypted part of a payment or refund notice. Bank names and trade types are open sets, so we do not read them.
#[derive(Deserialize)]
struct Resource {
    mchid: Option<String>,
    appid: Option<String>,
    out_trade_no: Option<String>,
    transaction_id: Option<String>,
    trade_state: Option<String>,
    success_time: Option<String>,
    refund_id: Option<String>,
    out_refund_no: Option<String>,
    refund_status: Option<String>,
    amount: Option<Amount>,
}

#[derive(Deserialize)]
pub(super) struct Amount {
    total: Option<i64>,
    refund: Option<i64>,
    currency: Option<String>,
}

impl Amount {
    /// The order's amount. The inner value is `None` for another currency and for an amount that no order of ours can
    /// have. `payer_total` has coupons deducted, so it is not the price.
    pub(super) fn total(&self) -> Option<Option<Money>> {
        self.total.map(|fen| self.money(fen))
    }

    /// The amount of one refund, by the same rule.
    pub(super) fn refund(&self) -> Option<Option<Money>> {
        self.refund.map(|fen| self.money(fen))
    }

    fn money(&self, fen: i64) -> Option<Money> {
        let cny = self.currency.as_deref().is_none_or(|currency| currency == "CNY");
        if cny { Money::from_fen(fen).ok() } else { None }
    }
}

enum Kind {
    Payment,
    Refund,
    Other,
}

/// Translates a callback whose signature has been checked.
pub(super) fn read(
    account: &Account,
    callback: &Verified<Callback>,
    now: OffsetDateTime,
) -> Result<Verified<Notification>, CallbackError> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(&callback.get().body).map_err(|error| not_json("the callback", &error))?;
    let kind = match envelope.event_type.as_ref() {
        "TRANSACTION.SUCCESS" => Kind::Payment,
        event if event.starts_with("REFUND.") => Kind::Refund,
        _ => Kind::Other,
    };
    let plaintext = open(account, &envelope.resource).map_err(|error| match error {
        AeadError::Algorithm => undecodable("resource.algorithm", "unknown"),
        AeadError::Forged => CallbackError::Unopened(error.to_string()),
        error => undecodable("decryption of the resource", &error.to_string()),
    })?;
    let notification = |merchant, order_no, fact, doubt| {
        Verified::new(Notification {
            method: PaymentMethod::Wechat,
            account: account.name.clone(),
            notice_id: envelope.id.clone().into_owned(),
            source: Source::Notice,
            merchant,
            order_no,
            fact,
            doubt,
        })
    };
    if let Kind::Other = kind {
        // Authentic, but an event that we do not use, of unknown shape. It need not be about an order at all.
        let resource: Value = serde_json::from_slice(&plaintext).unwrap_or_default();
        let order_no = resource["out_trade_no"].as_str().unwrap_or_default().to_owned();
        let merchant = merchant_by_number(account, resource["mchid"].as_str());
        return Ok(notification(merchant, order_no, Fact::Nothing, None));
    }
    let resource: Resource = serde_json::from_slice(&plaintext).map_err(|error| not_json("the resource", &error))?;
    let order_no = required("out_trade_no", resource.out_trade_no.as_deref())?.to_owned();
    let mut times = Times::new(now);
    let (merchant, fact) = match kind {
        Kind::Payment => {
            let received_at = times::received(callback.get().received_at, now);
            let merchant = merchant_and_app(account, resource.mchid.as_deref(), resource.appid.as_deref());
            (merchant, payment(&resource, envelope.create_time.as_deref(), received_at, &mut times)?)
        }
        // A refund notice names no app.
        _ => (merchant_by_number(account, resource.mchid.as_deref()), refund(&resource, &mut times)?),
    };
    Ok(notification(merchant, order_no, fact, times.doubt()))
}

/// Whether one of our keys decrypts a callback. If the body is not an envelope, the answer is yes, and [`read`] judges
/// it.
pub(super) fn opens(account: &Account, callback: &Verified<Callback>) -> Result<(), CallbackError> {
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(&callback.get().body) else { return Ok(()) };
    open(account, &envelope.resource).map(drop).map_err(|error| CallbackError::Unopened(error.to_string()))
}

/// Tries the newest key, then the previous one; the error is that of the newest key.
fn open(account: &Account, sealed: &Sealed<'_>) -> Result<Vec<u8>, AeadError> {
    let opened = account.apiv3_keys().map(|key| key.open(sealed));
    let opened = opened.reduce(|newest, previous| newest.or_else(|error| previous.map_err(|_| error)));
    opened.unwrap_or(Err(AeadError::Forged))
}

fn merchant_by_number(account: &Account, mchid: Option<&str>) -> Merchant {
    if mchid == Some(&account.mchid) { Merchant::Ours } else { Merchant::Other(format!("mchid {}", shown(mchid))) }
}

/// A payment states both the merchant and the app, in notices and in answers.
pub(super) fn merchant_and_app(account: &Account, mchid: Option<&str>, appid: Option<&str>) -> Merchant {
    let ids = || format!("mchid {}, appid {}", shown(mchid), shown(appid));
    match appid.filter(|appid| !appid.is_empty()) {
        _ if mchid != Some(&account.mchid) => Merchant::Other(ids()),
        Some(app) if account.apps.contains(app) => Merchant::Ours,
        Some(app) => Merchant::OtherApp { app: app.to_owned(), ids: ids() },
        None => Merchant::Other(ids()),
    }
}

fn shown(id: Option<&str>) -> String {
    id.unwrap_or("none").chars().take(32).collect()
}

/// The number of a refund, if it has the right form. The check matters because the number becomes part of a URL path.
pub(super) fn refund_id(text: &str) -> Option<String> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    fits.then(|| text.to_owned())
}

/// `create_time` says when WeChat Pay made the message, and `received_at` when it reached us.
fn payment(
    resource: &Resource,
    create_time: Option<&str>,
    received_at: OffsetDateTime,
    times: &mut Times,
) -> Result<Fact, CallbackError> {
    if resource.trade_state.as_deref() != Some("SUCCESS") {
        return Ok(Fact::Nothing);
    }
    let amount = resource.amount.as_ref().and_then(Amount::total);
    Ok(Fact::Paid {
        trade_no: trade_no(resource)?,
        amount: amount.ok_or_else(|| undecodable("amount.total", "absent"))?,
        paid_at: times.of_payment(
            ("success_time", resource.success_time.as_deref()),
            ("create_time", create_time),
            received_at,
            parse_time,
        ),
    })
}

fn refund(resource: &Resource, times: &mut Times) -> Result<Fact, CallbackError> {
    let amount = resource.amount.as_ref().and_then(Amount::refund).flatten();
    let state = match resource.refund_status.as_deref() {
        // A success without a comparable amount is only a hint; a query must confirm it.
        Some("SUCCESS") if amount.is_some() => RefundState::Succeeded,
        Some("CLOSED") => RefundState::Closed,
        Some("ABNORMAL") => RefundState::Abnormal,
        _ => RefundState::Processing,
    };
    let refund_no = required("out_refund_no", resource.out_refund_no.as_deref())?.to_owned();
    let paid = resource.amount.as_ref().and_then(Amount::total).flatten();
    Ok(Fact::Refund {
        // The notice does not state the sum of all refunds.
        trade: Box::new(ReturnedTrade { trade_no: trade_no(resource)?, paid, paid_at: None, returned: None }),
        refund_no,
        report: RefundReport {
            amount,
            gateway_refund_no: resource.refund_id.as_deref().and_then(refund_id),
            at: times.read("success_time", resource.success_time.as_deref(), parse_time),
            ..RefundReport::of(state)
        },
    })
}

fn trade_no(resource: &Resource) -> Result<TradeNo, CallbackError> {
    let text = required("transaction_id", resource.transaction_id.as_deref())?;
    TradeNo::parse(text).map_err(|error| undecodable("transaction_id", &error.to_string()))
}

fn required<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str, CallbackError> {
    value.filter(|text| !text.is_empty()).ok_or_else(|| undecodable(name, "absent"))
}

/// States the position of the error and never the text, which names the payer.
fn not_json(what: &str, error: &serde_json::Error) -> CallbackError {
    undecodable(what, &format!("{:?} error in JSON, line {} column {}", error.classify(), error.line(), error.column()))
}

fn undecodable(field: &str, why: &str) -> CallbackError {
    CallbackError::Undecodable(format!("{field}: {why}"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn resource(text: &str) -> Resource {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn only_yuan_that_an_order_can_cost_is_an_amount() {
        for (amount, fen) in [
            (r#"{"total":100,"payer_total":90}"#, Some(Some(100))),
            (r#"{"total":100,"currency":"CNY"}"#, Some(Some(100))),
            (r#"{"total":100,"currency":"USD"}"#, Some(None)),
            (r#"{"total":-1}"#, Some(None)),
            (r#"{"total":10000000000}"#, Some(None)),
            (r#"{"payer_total":90}"#, None),
        ] {
            let amount: Amount = serde_json::from_str(amount).unwrap();
            assert_eq!(amount.total().map(|money| money.map(Money::fen)), fen);
        }
    }

    const WHOLE: &str = r#"{"trade_state":"SUCCESS","transaction_id":"42","amount":{"total":1},"success_time":"2026-01-05T10:21:08+08:00"}"#;
    const NOW: OffsetDateTime = datetime!(2026-01-05 03:00:00 UTC);
    const OURS: OffsetDateTime = datetime!(2026-01-05 02:21:12 UTC);

    fn paid(text: &str) -> Result<Fact, CallbackError> {
        payment(&resource(text), None, OURS, &mut Times::new(NOW))
    }

    fn returned(text: &str) -> Result<Fact, CallbackError> {
        refund(&resource(text), &mut Times::new(NOW))
    }

    #[test]
    fn a_payment_whose_time_cannot_be_is_a_payment_at_our_own_time() {
        for odd in ["9999-12-31T23:59:59-08:00", "0000-01-01T00:00:00+08:00", "2026-01-06T11:00:01+08:00", "secret"] {
            let fact = paid(&WHOLE.replace("2026-01-05T10:21:08+08:00", odd)).unwrap();
            assert!(matches!(fact, Fact::Paid { paid_at, .. } if paid_at == OURS), "{odd} {fact:?}");
        }
        let without = WHOLE.replace("success_time", "x");
        for (created, at) in [("2026-01-05T10:21:10+08:00", datetime!(2026-01-05 02:21:10 UTC)), ("secret", OURS)] {
            let fact = payment(&resource(&without), Some(created), OURS, &mut Times::new(NOW)).unwrap();
            assert!(matches!(fact, Fact::Paid { paid_at, .. } if paid_at == at), "{created} {fact:?}");
        }
        assert!(matches!(paid(&without), Ok(Fact::Paid { paid_at, .. }) if paid_at == OURS));
    }

    #[test]
    fn a_refund_whose_time_cannot_be_has_none() {
        let text = r#"{"transaction_id":"42","out_refund_no":"RF_1","refund_status":"SUCCESS","amount":{"refund":1},"success_time":"9999-12-31T23:59:59-08:00"}"#;
        let fact = returned(text).unwrap();
        let Fact::Refund { report, .. } = fact else { panic!("{fact:?}") };
        assert_eq!((report.at, report.state), (None, RefundState::Succeeded));
    }

    #[test]
    fn a_payment_without_what_it_must_have_cannot_be_read() {
        assert!(matches!(paid(WHOLE), Ok(Fact::Paid { .. })));
        for (from, to) in [("transaction_id", "x"), ("amount", "x"), ("\"42\"", "\"secret 2\"")] {
            let fact = paid(&WHOLE.replace(from, to));
            let Err(CallbackError::Undecodable(text)) = fact else { panic!("{from} {fact:?}") };
            assert!(!text.contains("secret"), "{text}");
        }
        for state in ["NOTPAY", "CLOSED", "NEW"] {
            assert_eq!(paid(&WHOLE.replace("SUCCESS", state)), Ok(Fact::Nothing));
        }
    }

    #[test]
    fn a_refund_of_unknown_state_is_a_hint() {
        let text = r#"{"transaction_id":"42","out_refund_no":"RF_1","refund_status":"PROCESSING"}"#;
        let fact = returned(text).unwrap();
        let hint = RefundReport::of(RefundState::Processing);
        assert!(matches!(&fact, Fact::Refund { report, .. } if *report == hint), "{fact:?}");
        assert!(returned(&text.replace("out_refund_no", "x")).is_err());
        // A success with an amount that no order of ours can have, or in another currency, is no proof either.
        let done = text.replace("PROCESSING", "SUCCESS");
        for amount in [r#"{"refund":10000000000}"#, r#"{"refund":100,"currency":"USD"}"#, "{}"] {
            let stated = returned(&done.replacen('{', &format!(r#"{{"amount":{amount},"#), 1)).unwrap();
            assert!(matches!(&stated, Fact::Refund { report, .. } if *report == hint), "{stated:?}");
        }
    }
}
