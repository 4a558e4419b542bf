//! One signed text can have several forms: a form that hides a field in another one is refused.

use bytes::Bytes;
use domain::{Fact, Merchant, Notification};
use proptest::prelude::*;
use time::macros::datetime;
use url::form_urlencoded::{Serializer, parse};

use crate::alipay::form::DECIDING;
use crate::alipay::sign::string_to_sign;
use crate::alipay::tests::account;
use crate::alipay::*;

const NOW: OffsetDateTime = datetime!(2026-01-05 16:20:30 UTC);
const PRIVATE: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem");
const NOTICES: &str = include_str!("../../tests/fixtures/vectors/alipay/notify_verify.json");
const HIDDEN: CallbackError = CallbackError::Malformed("a field may hide another field");

/// A notice of a partial refund, its fields sorted by name.
fn refunded() -> Vec<(&'static str, &'static str)> {
    vec![
        ("app_id", "2021000122671080"),
        ("body", "1+1=2"),
        ("fund_bill_list", r#"[{"amount":"88.88","fundChannel":"ALIPAYACCOUNT"}]"#),
        ("gmt_create", "2026-01-05 10:21:00"),
        ("gmt_payment", "2026-01-05 10:21:08"),
        ("notify_id", "2026010500222102109011230000000001"),
        ("notify_time", "2026-01-05 10:21:10"),
        ("notify_type", "trade_status_sync"),
        ("out_biz_no", "RF_1"),
        ("out_trade_no", "ORD_01"),
        ("passback_params", "shop=1&till=A & B"),
        ("receipt_amount", "88.88"),
        ("refund_fee", "1.10"),
        ("seller_id", "2088621955702100"),
        ("subject", "Salt & Pepper = 2 x 1%"),
        ("total_amount", "88.88"),
        ("trade_no", "2026010522001400001000000002"),
        ("trade_status", "TRADE_SUCCESS"),
    ]
}

/// Four notices: paid, partly refunded, fully refunded, and closed unpaid.
fn genuine(which: usize) -> Vec<(&'static str, &'static str)> {
    let mut fields = refunded();
    let dropped: &[&str] = match which {
        0 => &["out_biz_no", "refund_fee"],
        1 => &[],
        2 => &["out_biz_no", "trade_status"],
        _ => &["gmt_payment", "out_biz_no", "refund_fee", "trade_status"],
    };
    fields.retain(|(name, _)| !dropped.contains(name));
    if which > 1 {
        fields.push(("trade_status", "TRADE_CLOSED"));
    }
    fields
}

fn sign_of(fields: &[(&str, &str)]) -> String {
    SigningKey::from_pem(PRIVATE).unwrap().sign(string_to_sign(fields.iter().copied()).as_bytes()).unwrap()
}

fn form(fields: &[(String, String)], sign: &str) -> String {
    let mut form = Serializer::new(String::new());
    form.extend_pairs(fields).append_pair("sign", sign).append_pair("sign_type", "RSA2").finish()
}

fn read(alipay: &Alipay, body: &str) -> Result<Notification, CallbackError> {
    let callback = Callback {
        method: PaymentMethod::Alipay,
        account: AccountName::parse("main").unwrap(),
        headers: Vec::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        received_at: NOW,
        job_id: None,
    };
    let verified = alipay.verify(callback, Some(NOW))?;
    Ok(alipay.read(&verified, NOW)?.into_inner())
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The fields, with one field moved into the value of the field before it, or into that field's name.
fn hidden(fields: &[(&str, &str)], name: &str, into_name: bool) -> Vec<(String, String)> {
    let mut fields = owned(fields);
    let at = fields.iter().position(|(known, _)| known == name).unwrap();
    let (name, value) = fields.remove(at);
    let before = &mut fields[at - 1];
    if into_name {
        *before = (format!("{}={}&{name}", before.0, before.1), value);
    } else {
        before.1 = format!("{}&{name}={value}", before.1);
    }
    fields
}

#[test]
fn a_refund_hidden_in_another_field_is_refused() {
    let file: serde_json::Value = serde_json::from_str(NOTICES).unwrap();
    let case = file["cases"].as_array().unwrap().iter().find(|case| case["id"] == "valid-refund-partial").unwrap();
    let body = case["body"].as_str().unwrap();
    let mut fields: Vec<(String, String)> = parse(body.as_bytes()).into_owned().collect();
    fields.retain(|(name, _)| name != "refund_fee");
    let hidden = fields.iter_mut().find(|(name, _)| name == "receipt_amount").unwrap();
    hidden.1.push_str("&refund_fee=1.10");
    let hiding = Serializer::new(String::new()).extend_pairs(&fields).finish();
    let alipay = account("http://127.0.0.1:9/");
    assert!(matches!(read(&alipay, body).map(|notification| notification.fact), Ok(Fact::Refund { .. })));
    assert_eq!(read(&alipay, &hiding).map(|notification| notification.fact), Err(HIDDEN));
}

#[test]
fn no_deciding_field_hides_in_another_one() {
    let alipay = account("http://127.0.0.1:9/");
    for which in 0..4 {
        let fields = genuine(which);
        let sign = sign_of(&fields);
        read(&alipay, &form(&owned(&fields), &sign)).unwrap();
        for name in DECIDING.iter().filter(|name| fields.iter().skip(1).any(|(known, _)| known == *name)) {
            for into_name in [false, true] {
                let hiding = form(&hidden(&fields, name, into_name), &sign);
                assert_eq!(read(&alipay, &hiding).map(|notification| notification.fact), Err(HIDDEN), "{which} {name}");
            }
        }
    }
}

/// The hidden field would change the value of the deciding one.
#[test]
fn a_deciding_field_holds_no_other_one() {
    let alipay = account("http://127.0.0.1:9/");
    let mut fields = refunded();
    fields.insert(9, ("out_channel", "1"));
    let sign = sign_of(&fields);
    assert!(read(&alipay, &form(&owned(&fields), &sign)).is_ok());
    let hiding = form(&hidden(&fields, "out_channel", false), &sign);
    assert_eq!(read(&alipay, &hiding).map(|notification| notification.fact), Err(HIDDEN));
}

#[test]
fn free_text_may_hold_an_ampersand_and_no_deciding_name() {
    let alipay = account("http://127.0.0.1:9/");
    for (text, taken) in [
        ("Salt & Pepper", true),
        ("a=1&b=2", true),
        ("&total_amount", true),
        ("x&refund_fee_note=1", true),
        ("x&total_amount=1", false),
        ("x&&trade_status=", false),
        ("&refund_fee=", false),
    ] {
        for name in ["subject", "body", "passback_params", "a_new_field"] {
            let mut fields = refunded();
            fields.retain(|(known, _)| *known != name);
            fields.push((name, text));
            fields.sort_unstable();
            let notification = read(&alipay, &form(&owned(&fields), &sign_of(&fields)));
            assert_eq!(notification.map(|_| ()), if taken { Ok(()) } else { Err(HIDDEN) }, "{name} {text}");
        }
    }
}

#[test]
fn a_return_hides_no_field_either() {
    let alipay = account("http://127.0.0.1:9/");
    let fields = [
        ("app_id", "2021000122671080"),
        ("method", "alipay.trade.page.pay.return"),
        ("out_trade_no", "ORD_01"),
        ("seller_email", "a@example.com"),
        ("seller_id", "2088000000000000"),
        ("timestamp", "2026-01-06 00:20:30"),
    ];
    let sign = sign_of(&fields);
    let plain = alipay.verify_return(&form(&owned(&fields), &sign)).map(Verified::into_inner);
    assert!(matches!(plain, Err(CallbackError::Undecodable(_))), "the payee is another merchant: {plain:?}");
    let hiding = form(&hidden(&fields, "seller_id", false), &sign);
    assert_eq!(alipay.verify_return(&hiding).map(Verified::into_inner), Err(HIDDEN));
}

/// A field that the code reads but the list lacks could be hidden.
#[test]
fn every_field_that_is_read_is_a_deciding_one() {
    let mut seen = 0;
    for file in [include_str!("callback.rs"), include_str!("return_page.rs"), include_str!("trust.rs")] {
        let code = file.split("#[cfg(test)]").next().unwrap();
        for call in [".get(\"", "required(&form, \"", "required(form, \"", "stated(\"", "[\"notify_id\", \""] {
            for rest in code.split(call).skip(1) {
                let name = rest.split('"').next().unwrap();
                assert!(DECIDING.contains(&name), "{name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen}");
}

/// The content of a notice that matters to us.
fn said(notification: Notification) -> (Fact, String, String, Merchant) {
    (notification.fact, notification.order_no, notification.notice_id, notification.merchant)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Splits the signed text in other ways, at any `&` and any `=`.
    #[test]
    fn no_other_form_of_a_signed_text_says_something_else(
        which in 0usize..4,
        joined in proptest::collection::vec(proptest::bool::weighted(0.1), 40),
        equals in proptest::collection::vec(0usize..12, 40),
    ) {
        static ALIPAY: std::sync::OnceLock<Alipay> = std::sync::OnceLock::new();
        let alipay = ALIPAY.get_or_init(|| account("http://127.0.0.1:9/"));
        let fields = genuine(which);
        let sign = sign_of(&fields);
        let text = string_to_sign(fields.iter().copied());
        let mut parts: Vec<String> = Vec::new();
        for (part, joined) in text.split('&').zip(joined) {
            match parts.last_mut().filter(|_| joined || !part.contains('=')) {
                Some(before) => before.extend(["&", part]),
                None => parts.push(part.to_owned()),
            }
        }
        let split = |(part, nth): (&String, usize)| {
            let ends: Vec<usize> = part.match_indices('=').map(|(at, _)| at).collect();
            let end = ends.get(nth).copied().unwrap_or(ends[0]);
            (part[..end].to_owned(), part[end + 1..].to_owned())
        };
        let other: Vec<(String, String)> = parts.iter().zip(equals).map(split).collect();
        let plain = read(alipay, &form(&owned(&fields), &sign)).unwrap();
        if let Ok(notification) = read(alipay, &form(&other, &sign)) {
            prop_assert_eq!(said(notification), said(plain));
        }
    }
}
