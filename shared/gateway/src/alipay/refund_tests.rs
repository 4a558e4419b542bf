//! Refunds at a mock gateway: what is sent, and what each answer means.

use domain::{Money, RefundState};
use serde_json::json;
use time::macros::datetime;

use crate::alipay::answer::Failure;
use crate::alipay::refund::refund_error;
use crate::alipay::tests::{account, checked, impatient, param, reply};
use crate::alipay::*;
use crate::testing::{Reply, Server, refund_order, silent};

const NOW: OffsetDateTime = datetime!(2026-01-05 16:20:30 UTC);
/// A refund of 1 yuan from a payment of 3 yuan. `refund_fee` is the total refunded so far.
const DONE: &str = r#"{"code":"10000","trade_no":"42","out_trade_no":"ORD_01","buyer_logon_id":"a**","fund_change":"Y","refund_fee":"2.50","gmt_refund_pay":"2026-01-05 10:21:08"}"#;
const FOUND: &str = r#"{"code":"10000","trade_no":"42","out_trade_no":"ORD_01","out_request_no":"RF_1","refund_status":"REFUND_SUCCESS","total_amount":"3.00","refund_amount":"1.00","gmt_refund_pay":"2026-01-05 10:21:08"}"#;

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

fn succeeded(amount: Option<Money>) -> RefundReport {
    let at = Some(datetime!(2026-01-05 02:21:08 UTC));
    RefundReport { amount, at, ..RefundReport::of(RefundState::Succeeded) }
}

/// A refund that Alipay accepted, with the total refunded so far by its answer.
fn accepted(returned: Option<&str>) -> RefundReport {
    RefundReport { returned: returned.map(|yuan| Money::from_yuan(yuan).unwrap()), ..succeeded(None) }
}

async fn refund(reply: Reply) -> Result<RefundReport, GatewayError> {
    account(&Server::start(reply).await.url).refund(&refund_order(), NOW).await
}

async fn answered(node: &str) -> Result<RefundReport, GatewayError> {
    refund(reply("alipay_trade_refund", node, true)).await
}

async fn query(node: &str, signed: bool) -> Result<RefundReport, GatewayError> {
    let server = Server::start(reply("alipay_trade_fastpay_refund_query", node, signed)).await;
    account(&server.url).query_refund(&refund_order(), NOW).await
}

#[tokio::test]
async fn each_attempt_sends_the_same_parameters_and_our_number() {
    let server = Server::start(reply("alipay_trade_refund", DONE, true)).await;
    let alipay = account(&server.url);
    let long = RefundOrder { reason: Some("退".repeat(200)), ..refund_order() };
    let mut sent = Vec::new();
    for _ in 0..2 {
        alipay.refund(&long, NOW).await.unwrap();
        let seen = server.seen();
        let params = checked(&[seen.target.split_once('?').unwrap().1, &seen.body]);
        assert_eq!(param(&params, "method"), "alipay.trade.refund");
        assert!(params.iter().all(|(name, _)| name != "notify_url"));
        sent.push(param(&params, "biz_content").to_owned());
    }
    assert_eq!(sent[0], sent[1]);
    let biz: serde_json::Value = serde_json::from_str(&sent[0]).unwrap();
    let whole = json!({
        "trade_no": "42", "out_request_no": "RF_1", "refund_amount": "1.00", "refund_reason": "退".repeat(80),
    });
    assert_eq!(biz, whole);
}

#[tokio::test]
async fn only_a_change_of_funds_is_a_refund() {
    assert_eq!(answered(DONE).await.unwrap(), accepted(Some("2.50")));
    let processing = RefundReport::of(RefundState::Processing);
    for (from, to) in [(r#""fund_change":"Y""#, r#""fund_change":"N""#), ("fund_change", "x"), (r#""Y""#, "null")] {
        assert_eq!(answered(&DONE.replace(from, to)).await.unwrap(), processing, "{to}");
    }
}

#[tokio::test]
async fn the_total_so_far_is_never_this_refunds_amount() {
    for (fee, returned) in [("1.00", Some("1.00")), ("3.00", Some("3.00")), ("0.00", Some("0.00")), ("x", None)] {
        let state = answered(&DONE.replace("2.50", fee)).await.unwrap();
        assert_eq!(state, accepted(returned), "{fee}");
    }
}

#[tokio::test]
async fn an_answer_about_another_refund_breaks_the_protocol() {
    for node in [DONE.replace("\"42\"", "\"43\""), DONE.replace("ORD_01", "ORD_02"), r#"{"code":"10000"}"#.to_owned()] {
        assert_eq!(name(&answered(&node).await.unwrap_err()), "protocol", "{node}");
    }
    for (from, to) in [
        ("\"42\"", "\"43\""),
        ("ORD_01", "ORD_02"),
        ("RF_1", "RF_2"),
        ("out_request_no", "x"),
        ("\"trade_no", "\"x"),
        ("out_trade_no", "x"),
        ("1.00", "-1"),
        ("refund_amount", "x"),
    ] {
        assert_eq!(name(&query(&FOUND.replace(from, to), true).await.unwrap_err()), "protocol", "{from} {to}");
    }
}

#[tokio::test]
async fn a_query_proves_a_refund_by_one_word_alone() {
    // An amount that differs from ours is reported as it is. The settlement code compares it.
    let other = query(&FOUND.replace("1.00", "1.01"), true).await.unwrap();
    assert_eq!(other, succeeded(Some(Money::from_fen(101).unwrap())));
    for amount in ["\"1.00\"", "1", "1.0"] {
        let state = query(&FOUND.replace("\"1.00\"", amount), true).await.unwrap();
        assert_eq!(state, succeeded(Some(refund_order().amount)));
    }
    for absent in [
        r#"{"code":"10000","msg":"Success"}"#.to_owned(),
        FOUND.replace("refund_status", "x"),
        FOUND.replace("REFUND_SUCCESS", ""),
    ] {
        assert_eq!(query(&absent, true).await.unwrap().state, RefundState::Absent, "{absent}");
    }
    let other = r#"{"code":"10000","out_request_no":"RF_2"}"#;
    assert_eq!(name(&query(other, true).await.unwrap_err()), "protocol");
    let state = query(&FOUND.replace("REFUND_SUCCESS", "REFUND_PROCESSING"), true).await.unwrap();
    assert_eq!(state, RefundReport::of(RefundState::Processing));
}

#[tokio::test]
async fn what_is_not_signed_proves_nothing() {
    assert_eq!(name(&refund(reply("alipay_trade_refund", DONE, false)).await.unwrap_err()), "unknown");
    assert_eq!(name(&query(FOUND, false).await.unwrap_err()), "unknown");
    assert_eq!(name(&query(r#"{"code":"10000"}"#, false).await.unwrap_err()), "unknown");
    let mut tampered = reply("alipay_trade_refund", DONE, true);
    tampered.body = tampered.body.replace("2.50", "2.51");
    assert_eq!(name(&refund(tampered).await.unwrap_err()), "unknown");
    let none = r#"{"code":"40004","sub_code":"ACQ.SELLER_BALANCE_NOT_ENOUGH"}"#;
    assert_eq!(name(&refund(reply("alipay_trade_refund", none, false)).await.unwrap_err()), "unknown");
    let limited = r#"{"code":"40005","sub_code":"isv.app-call-limited"}"#;
    assert_eq!(name(&refund(reply("alipay_trade_refund", limited, false)).await.unwrap_err()), "unknown");
    // The gateway refuses unsigned before it looks at any trade. A fault of our configuration says nothing about
    // the refund.
    for (sub_code, class) in [("isv.invalid-parameter", "refused"), ("isv.invalid-app-id", "misconfigured")] {
        let config = format!(r#"{{"code":"40002","sub_code":"{sub_code}"}}"#);
        assert_eq!(name(&refund(reply("alipay_trade_refund", &config, false)).await.unwrap_err()), class);
    }
    for sub_code in
        ["isv.invalid-signature", "isv.invalid-timestamp", "isv.insufficient-isv-permissions", "aop.invalid-auth-token"]
    {
        let node = format!(r#"{{"code":"40002","sub_code":"{sub_code}"}}"#);
        assert_eq!(name(&answered(&node).await.unwrap_err()), "misconfigured", "{sub_code}");
    }
}

/// Every code that the documentation lists for a refund.
#[test]
fn each_code_has_its_class() {
    let refused = "INVALID_PARAMETER TRADE_NOT_EXIST TRADE_HAS_CLOSE \
        TRADE_STATUS_ERROR REASON_TRADE_STATUS_INVALID REASON_ILLEGAL_STATUS DISCORDANT_REPEAT_REQUEST \
        REASON_TRADE_REFUND_FEE_ERR REFUND_AMT_NOT_EQUAL_TOTAL TRADE_HAS_FINISHED TRADE_NOT_ALLOW_REFUND \
        NOT_ALLOW_PARTIAL_REFUND ONLINE_TRADE_VOUCHER_NOT_ALLOW_REFUND BUYER_NOT_EXIST BUYER_ERROR \
        CUSTOMER_VALIDATE_ERROR REASON_TRADE_BEEN_FREEZEN USER_NOT_MATCH_ERR REFUND_FEE_ERROR \
        CURRENCY_NOT_SUPPORT REFUND_ACCOUNT_NOT_EXIST TRADE_SETTLE_ERROR ALLOC_AMOUNT_VALIDATE_ERROR \
        REFUNDALLOC_UNAUTH_LIMIT";
    let ours = ("misconfigured", "ACCESS_FORBIDDEN PARTNER_ERROR");
    let business = [ours, ("unknown", "SYSTEM_ERROR"), ("not now", "SELLER_BALANCE_NOT_ENOUGH REFUND_CHARGE_ERROR")];
    for (class, codes) in business.into_iter().chain([("refused", refused)]) {
        for code in codes.split_whitespace() {
            for prefix in ["ACQ.", "aop.ACQ.", "AQC.", ""] {
                assert_eq!(name(&refund_error(failure("40004", &format!("{prefix}{code}")))), class, "{code}");
            }
        }
    }
    for (code, sub_code, class) in [
        ("20000", "isp.unknow-error", "unknown"),
        ("20000", "ACQ.SELLER_BALANCE_NOT_ENOUGH", "unknown"),
        ("10003", "", "unknown"),
        ("40005", "isv.app-call-limited", "unknown"),
        ("20001", "aop.invalid-auth-token", "misconfigured"),
        ("40001", "isv.missing-method", "misconfigured"),
        ("40002", "isv.invalid-signature", "misconfigured"),
        ("40003", "isv.missing-signature-config", "misconfigured"),
        ("40006", "isv.insufficient-isv-permissions", "misconfigured"),
        ("50000", "", "protocol"),
    ] {
        assert_eq!(name(&refund_error(failure(code, sub_code))), class, "{code} {sub_code}");
    }
}

fn failure(code: &str, sub_code: &str) -> Failure {
    serde_json::from_value(json!({ "code": code, "msg": "m", "sub_code": sub_code })).unwrap()
}

#[tokio::test]
async fn a_failure_of_either_call_is_named_after_what_may_be_done() {
    let node = r#"{"code":"40004","sub_code":"ACQ.SELLER_BALANCE_NOT_ENOUGH","sub_msg":"m"}"#;
    let error = answered(node).await.unwrap_err();
    assert!(matches!(&error, GatewayError::NotNow { code, message } if code.ends_with("ENOUGH") && message == "m"));
    for (node, class) in [
        (r#"{"code":"40004","sub_code":"ACQ.SYSTEM_ERROR"}"#, "unknown"),
        (r#"{"code":"40004","sub_code":"ACQ.TRADE_NOT_EXIST"}"#, "refused"),
        (r#"{"code":"40005","sub_code":"isv.app-call-limited"}"#, "unavailable"),
    ] {
        assert_eq!(name(&query(node, true).await.unwrap_err()), class, "{node}");
    }
}

#[tokio::test]
async fn no_answer_in_time_is_unknown_and_no_connection_is_not() {
    let (_listener, url) = silent();
    assert_eq!(name(&impatient(&url).refund(&refund_order(), NOW).await.unwrap_err()), "unknown");
    assert_eq!(name(&impatient(&url).query_refund(&refund_order(), NOW).await.unwrap_err()), "unknown");
    let offline = account("http://127.0.0.1:1/");
    assert_eq!(name(&offline.refund(&refund_order(), NOW).await.unwrap_err()), "unavailable");
    for (status, body) in [(502, "<html>"), (200, ""), (429, "{}")] {
        let reply = Reply { status, headers: Vec::new(), body: body.to_owned() };
        assert_eq!(name(&refund(reply).await.unwrap_err()), "unknown", "{status}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let offline = account("http://127.0.0.1:1/");
    let order_no = OrderNo::parse("ORD_01").unwrap();
    for amount in [Money::ZERO, Money::from_fen(301).unwrap()] {
        let order = RefundOrder { amount, order_no: order_no.clone(), ..refund_order() };
        assert_eq!(name(&offline.refund(&order, NOW).await.unwrap_err()), "refused");
    }
    let redirected = offline.redirect_refund(&refund_order(), "1", &RefundTarget::MerchantAccount, NOW).await;
    assert_eq!(name(&redirected.unwrap_err()), "refused");
}
