//! The query string that a buyer's browser brings back from Alipay's cashier. It only identifies the order, to show a
//! page.
//!
//! It states no trade status, anyone who has the address can send it again, and it may never come.
//! Source: Alipay OpenAPI, "同步返回" of page pay and wap pay, read 2025-11-20.

use time::OffsetDateTime;

use crate::alipay::form::Form;
use crate::alipay::{Alipay, parse_beijing};
use crate::error::CallbackError;
use crate::verified::Verified;

/// A notification is signed by the same rule and the same key; only a return has one of these methods.
const METHODS: [&str; 2] = ["alipay.trade.page.pay.return", "alipay.trade.wap.pay.return"];

/// The parameter of a return that names our order. It is only a claim until the signature is checked.
pub const ORDER_NO: &str = "out_trade_no";

/// The documented fields of a return. Parameters that `return_url` already contained are not signed and not listed
/// here.
const FIELDS: [&str; 13] = [
    "app_id",
    "auth_app_id",
    "method",
    "charset",
    "timestamp",
    "version",
    "sign_type",
    "sign",
    "out_trade_no",
    "trade_no",
    "total_amount",
    "seller_id",
    "seller_email",
];

/// The order number of a return that Alipay signed for this account.
///
/// First treats every parameter as signed, because Alipay may add fields at any time. If that fails, checks only the
/// documented fields, so that a parameter in the merchant's own address does not break the check.
pub(super) fn read(alipay: &Alipay, query: &str) -> Result<Verified<String>, CallbackError> {
    let described: Vec<&str> = query.split('&').filter(|pair| is_described(pair)).collect();
    let described = described.join("&");
    let covered = match verify(alipay, query) {
        Ok(()) => query,
        Err(_) => {
            verify(alipay, &described)?;
            &described
        }
    };
    let form = Form::parse(covered.as_bytes())?;
    if !form.get("method").is_some_and(|method| METHODS.contains(&method)) {
        return Err(CallbackError::Malformed("not a return"));
    }
    let account = &alipay.account;
    let ours =
        form.get("app_id") == Some(&account.app_id) && form.get("seller_id").is_none_or(|id| id == account.seller_id);
    if !ours {
        return Err(CallbackError::Undecodable("the return of another merchant".to_owned()));
    }
    let order_no = form.get("out_trade_no").ok_or(CallbackError::Malformed("no out_trade_no"))?;
    Ok(Verified::new(order_no.to_owned()))
}

/// Uses the keys in force at the time that the return states. That time is only a claim, but a return opens a page at
/// most.
fn verify(alipay: &Alipay, query: &str) -> Result<(), CallbackError> {
    let stated = Form::parse(query.as_bytes())?.get("timestamp").and_then(parse_beijing);
    alipay.verify_form(query.as_bytes(), stated.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

fn is_described(pair: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    FIELDS.contains(&name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::form_urlencoded::Serializer;

    use super::super::tests::account;
    use super::*;
    use crate::adapter::Gateway as _;
    use crate::keys::SigningKey;

    const PLATFORM: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem");
    const OTHER: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_other_private_pkcs8.pem");
    const NOTIFICATIONS: &str = include_str!("../../tests/fixtures/vectors/alipay/notify_verify.json");

    /// The fields of a return, with one field changed.
    fn fields<'a>(changed: &'a str, to: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut fields = vec![
            ("app_id", "2021000122671080"),
            ("charset", "utf-8"),
            ("method", "alipay.trade.page.pay.return"),
            ("out_trade_no", "ORD_01"),
            ("seller_id", "2088621955702100"),
            ("timestamp", "2026-01-06 00:20:30"),
            ("total_amount", "88.80"),
            ("trade_no", "2026010522001400001000000002"),
            ("version", "1.0"),
        ];
        fields.retain(|(name, _)| *name != changed);
        fields.extend(Some((changed, to)).filter(|(name, _)| !name.is_empty()));
        fields.sort_unstable();
        fields
    }

    fn signed(key: &str, fields: &[(&str, &str)]) -> String {
        let text: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let sign = SigningKey::from_pem(key).unwrap().sign(text.join("&").as_bytes()).unwrap();
        let mut query = Serializer::new(String::new());
        query.extend_pairs(fields).append_pair("sign", &sign).append_pair("sign_type", "RSA2").finish()
    }

    fn order_no(query: &str) -> Result<String, CallbackError> {
        account("http://127.0.0.1:9/").verify_return(query).map(Verified::into_inner)
    }

    #[test]
    fn a_return_names_its_order_whatever_else_stands_in_the_address() {
        let plain = signed(PLATFORM, &fields("", ""));
        for query in [
            plain.clone(),
            format!("from=shop&{plain}"),
            format!("{plain}&order=1&view_token=2&order=3"),
            // A field that Alipay may add later is signed with the others.
            signed(PLATFORM, &fields("a_new_field", "大 + 50%")),
        ] {
            assert_eq!(order_no(&query).as_deref(), Ok("ORD_01"), "{query}");
        }
    }

    #[test]
    fn nothing_else_is_a_return() {
        let plain = signed(PLATFORM, &fields("", ""));
        assert_eq!(order_no(&signed(OTHER, &fields("", ""))), Err(CallbackError::BadSignature));
        assert_eq!(order_no(&plain.replace("ORD_01", "ORD_02")), Err(CallbackError::BadSignature));
        let twice = Err(CallbackError::Malformed("a field comes twice"));
        assert_eq!(order_no(&format!("{plain}&out_trade_no=ORD_02")), twice);
        assert_eq!(order_no(""), Err(CallbackError::Malformed("no sign")));
        for (name, value) in
            [("app_id", "2021000000000000"), ("seller_id", "2088000000000000"), ("method", "alipay.trade.refund")]
        {
            assert!(order_no(&signed(PLATFORM, &fields(name, value))).is_err(), "{name}");
        }
    }

    #[test]
    fn a_notification_is_not_a_return() {
        let file: serde_json::Value = serde_json::from_str(NOTIFICATIONS).unwrap();
        let accepted = file["cases"].as_array().unwrap().iter().filter(|case| case["expect"] == true);
        let mut seen = 0;
        for body in accepted.filter_map(|case| case["body"].as_str()) {
            assert!(order_no(body).is_err(), "{body}");
            seen += 1;
        }
        assert!(seen > 5);
    }

    proptest! {
        #[test]
        fn any_query_is_a_return_or_an_error(query in ".{0,300}", sign in "[A-Za-z0-9+/=%]{0,344}") {
            prop_assert!(order_no(&query).is_err());
            let forged = format!("{query}&sign={sign}&sign_type=RSA2");
            prop_assert!(order_no(&forged).is_err());
        }
    }
}
