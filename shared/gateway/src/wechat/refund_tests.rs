//! Refunds at a mock gateway: what is sent, and what each answer means.

use domain::{Money, RefundState};
use secrecy::SecretString;
use serde_json::json;
use time::macros::datetime;

use crate::testing::{Reply, Seen, Server, refund_order, silent};
use crate::wechat::tests::{KEY_ID, account, assert_signed, body, impatient, signed, unsigned};
use crate::wechat::*;

const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);
const DONE: &str = r#"{"refund_id":"503","out_refund_no":"RF_1","transaction_id":"42","out_trade_no":"ORD_01","channel":"ORIGINAL","status":"SUCCESS","success_time":"2026-01-05T10:21:08+08:00","amount":{"total":300,"refund":100,"payer_total":290,"payer_refund":90,"currency":"CNY"}}"#;

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

/// The three calls, which have the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Refund,
    Query,
    Redirect,
}

const ALL: [Kind; 3] = [Kind::Refund, Kind::Query, Kind::Redirect];
const MOVING: [Kind; 2] = [Kind::Refund, Kind::Redirect];

async fn send(wechat: &Wechat, kind: Kind) -> Result<RefundReport, GatewayError> {
    let refund = refund_order();
    match kind {
        Kind::Refund => wechat.refund(&refund, NOW).await,
        Kind::Query => wechat.query_refund(&refund, NOW).await,
        Kind::Redirect => wechat.redirect_refund(&refund, "503", &RefundTarget::MerchantAccount, NOW).await,
    }
}

async fn requested(kind: Kind, reply: Reply) -> (Result<RefundReport, GatewayError>, Seen) {
    let server = Server::start(reply).await;
    let state = send(&account(&server.url), kind).await;
    assert_signed(&server.seen());
    (state, server.seen())
}

async fn class(kind: Kind, reply: Reply) -> &'static str {
    name(&requested(kind, reply).await.0.unwrap_err())
}

#[tokio::test]
async fn each_attempt_sends_the_same_body() {
    let server = Server::start(signed(200, DONE)).await;
    let long = RefundOrder { reason: Some("退".repeat(200)), ..refund_order() };
    account(&server.url).refund(&long, NOW).await.unwrap();
    let first = server.seen();
    account(&server.url).refund(&long, NOW).await.unwrap();
    assert_eq!(first.body, server.seen().body);
    assert_eq!((first.method.as_str(), first.target.as_str()), ("POST", "/v3/refund/domestic/refunds"));
    let whole = json!({
        "transaction_id": "42", "out_refund_no": "RF_1", "reason": "退".repeat(80),
        "notify_url": "https://pay.example.com/v1/callbacks/wechat/main",
        "amount": { "refund": 100, "total": 300, "currency": "CNY" },
    });
    assert_eq!(body(&first), whole);
}

#[tokio::test]
async fn a_query_names_our_number_and_no_merchant() {
    let (_, seen) = requested(Kind::Query, signed(200, DONE)).await;
    assert_eq!((seen.method.as_str(), seen.body.as_str()), ("GET", ""));
    assert_eq!(seen.target, "/v3/refund/domestic/refunds/RF_1");
}

#[tokio::test]
async fn each_word_is_one_state_of_each_call() {
    let report = |state| RefundReport { gateway_refund_no: Some("503".to_owned()), ..RefundReport::of(state) };
    let at = Some(datetime!(2026-01-05 02:21:08 UTC));
    let amount = Some(refund_order().amount);
    for kind in ALL {
        for (word, expected) in [
            ("SUCCESS", RefundReport { amount, at, ..report(RefundState::Succeeded) }),
            ("PROCESSING", report(RefundState::Processing)),
            ("CLOSED", report(RefundState::Closed)),
            ("ABNORMAL", report(RefundState::Abnormal)),
        ] {
            let (state, _) = requested(kind, signed(200, &DONE.replace("SUCCESS", word))).await;
            assert_eq!(state.unwrap(), expected, "{kind:?}");
        }
        assert_eq!(class(kind, signed(200, &DONE.replace("SUCCESS", "NEW"))).await, "protocol");
    }
}

#[tokio::test]
async fn an_answer_about_another_refund_breaks_the_protocol() {
    for (from, to) in [
        ("RF_1", "RF_2"),
        ("\"42\"", "\"43\""),
        ("ORD_01", "ORD_02"),
        ("\"refund\":100", "\"x\":100"),
        ("\"total\":300", "\"total\":100"),
        ("CNY", "USD"),
        ("\"amount\"", "\"x\""),
        ("out_refund_no", "x"),
        ("transaction_id", "x"),
    ] {
        for kind in ALL {
            assert_eq!(class(kind, signed(200, &DONE.replace(from, to))).await, "protocol", "{kind:?} {to}");
        }
    }
    // A different amount is a fact if money has moved, and the settlement code compares it. Otherwise the answer is
    // not about this refund.
    let other = DONE.replace("\"refund\":100", "\"refund\":101");
    for kind in ALL {
        let state = requested(kind, signed(200, &other)).await.0.unwrap();
        let stated = Money::from_fen(101).unwrap();
        assert_eq!((state.state, state.amount), (RefundState::Succeeded, Some(stated)), "{kind:?}");
        let unfinished = other.replace("SUCCESS", "PROCESSING");
        assert_eq!(class(kind, signed(200, &unfinished)).await, "protocol", "{kind:?}");
    }
    // An empty 204 answers a close, not a refund.
    assert_eq!(class(Kind::Refund, signed(204, "")).await, "protocol");
}

#[tokio::test]
async fn what_is_not_signed_proves_nothing() {
    for kind in ALL {
        assert_eq!(class(kind, unsigned(200, DONE)).await, "unknown");
        let mut tampered = signed(200, &DONE.replace("SUCCESS", "CLOSED"));
        tampered.body = DONE.to_owned();
        assert_eq!(class(kind, tampered).await, "unknown");
        let mut probe = signed(200, DONE);
        probe.headers[3].1 = "WECHATPAY/SIGNTEST/x".to_owned();
        assert_eq!(class(kind, probe).await, "unknown");
        // An unsigned success body with an error status is not a success.
        assert_eq!(class(kind, unsigned(404, DONE)).await, "unknown");
    }
}

fn says(code: &str) -> String {
    json!({ "code": code, "message": "m" }).to_string()
}

/// Every code that the documentation lists for a refund.
#[tokio::test]
async fn each_code_has_its_class() {
    for (status, code, expected) in [
        (400, "PARAM_ERROR", "refused"),
        (400, "INVALID_REQUEST", "refused"),
        (401, "SIGN_ERROR", "misconfigured"),
        (401, "SOMETHING_NEW", "misconfigured"),
        (403, "NOT_ENOUGH", "not now"),
        (400, "NOT_ENOUGH", "not now"),
        (403, "USER_ACCOUNT_ABNORMAL", "refused"),
        (403, "NO_AUTH", "misconfigured"),
        (403, "REQUEST_BLOCKED", "misconfigured"),
        (404, "RESOURCE_NOT_EXISTS", "refused"),
        (404, "MCH_NOT_EXISTS", "misconfigured"),
        (400, "MCH_NOT_EXISTS", "misconfigured"),
        (400, "TRADE_OVERDUE", "refused"),
        (403, "REFUND_FEE_MISMATCH", "refused"),
        (429, "FREQUENCY_LIMITED", "unknown"),
        (429, "RATELIMIT_EXCEEDED", "unknown"),
        (403, "RATELIMIT_EXCEEDED", "unknown"),
        (429, "", "unknown"),
        (500, "SYSTEM_ERROR", "unknown"),
        (400, "SYSTEM_ERROR", "unknown"),
        (500, "NOT_ENOUGH", "unknown"),
        (502, "", "unknown"),
        (503, "", "unknown"),
        (202, "", "unknown"),
        (302, "", "unknown"),
        (404, "", "unknown"),
    ] {
        for kind in MOVING {
            assert_eq!(class(kind, unsigned(status, &says(code))).await, expected, "{kind:?} {status} {code}");
        }
    }
    let (error, _) = requested(Kind::Refund, unsigned(403, &says("NOT_ENOUGH"))).await;
    assert!(matches!(error, Err(GatewayError::NotNow { code, message }) if code == "NOT_ENOUGH" && message == "m"));
}

#[tokio::test]
async fn only_one_answer_says_that_a_refund_was_never_accepted() {
    let (state, _) = requested(Kind::Query, unsigned(404, &says("RESOURCE_NOT_EXISTS"))).await;
    assert_eq!(state.unwrap(), RefundReport::of(RefundState::Absent));
    for (status, code, expected) in [
        (400, "RESOURCE_NOT_EXISTS", "refused"),
        (404, "MCH_NOT_EXISTS", "misconfigured"),
        (401, "SIGN_ERROR", "misconfigured"),
        (404, "", "unknown"),
        (429, "FREQUENCY_LIMITED", "unavailable"),
        (500, "RESOURCE_NOT_EXISTS", "unknown"),
        (500, "SYSTEM_ERROR", "unknown"),
    ] {
        assert_eq!(class(Kind::Query, unsigned(status, &says(code))).await, expected, "{status} {code}");
    }
}

#[tokio::test]
async fn no_answer_in_time_is_unknown_and_no_connection_is_not() {
    let (_listener, url) = silent();
    for kind in ALL {
        assert_eq!(name(&send(&impatient(&url), kind).await.unwrap_err()), "unknown");
        assert_eq!(name(&send(&account("http://127.0.0.1:1"), kind).await.unwrap_err()), "unavailable");
    }
}

fn card(account: &str) -> RefundTarget {
    let (account, name) = (SecretString::from(account), SecretString::from("张三"));
    RefundTarget::BuyerCard { bank_type: "ICBC_DEBIT".to_owned(), account, name }
}

#[tokio::test]
async fn an_abnormal_refund_goes_to_the_merchant_or_to_a_card_that_is_sealed() {
    let (_, seen) = requested(Kind::Redirect, signed(200, DONE)).await;
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.target, "/v3/refund/domestic/refunds/503/apply-abnormal-refund");
    assert_eq!(body(&seen), json!({ "out_refund_no": "RF_1", "type": "MERCHANT_BANK_CARD" }));

    let server = Server::start(signed(200, &DONE.replace("SUCCESS", "PROCESSING"))).await;
    let wechat = account(&server.url);
    wechat.redirect_refund(&refund_order(), "503", &card("6222020200112233445"), NOW).await.unwrap();
    let seen = server.seen();
    assert_signed(&seen);
    assert_eq!(seen.header("wechatpay-serial"), KEY_ID);
    let sent = body(&seen);
    assert_eq!((&sent["type"], &sent["bank_type"]), (&json!("USER_BANK_CARD"), &json!("ICBC_DEBIT")));
    for (field, plain) in [("bank_account", "6222020200112233445"), ("real_name", "张三")] {
        assert_eq!(opened(sent[field].as_str().unwrap()), plain);
    }
}

/// Decrypts with another library than the one that encrypted.
fn opened(base64: &str) -> String {
    use base64::Engine as _;
    use rsa::pkcs8::DecodePrivateKey as _;
    let pem = include_str!("../../tests/fixtures/vectors/keys/wx_pubkey_private_pkcs8.pem");
    let key = rsa::RsaPrivateKey::from_pkcs8_pem(pem).unwrap();
    let sealed = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    String::from_utf8(key.decrypt(rsa::Oaep::new::<sha1::Sha1>(), &sealed).unwrap()).unwrap()
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let offline = account("http://127.0.0.1:1");
    for amount in [Money::ZERO, Money::from_fen(301).unwrap()] {
        let order = RefundOrder { amount, ..refund_order() };
        assert_eq!(name(&offline.refund(&order, NOW).await.unwrap_err()), "refused");
    }
    for id in ["", "../x", "5?a=b", "5#", "5 3", "５"] {
        let redirected = offline.redirect_refund(&refund_order(), id, &RefundTarget::MerchantAccount, NOW).await;
        assert_eq!(name(&redirected.unwrap_err()), "refused", "{id}");
    }
    let long = offline.redirect_refund(&refund_order(), "503", &card(&"6".repeat(215)), NOW).await;
    assert_eq!(name(&long.unwrap_err()), "refused");
}
