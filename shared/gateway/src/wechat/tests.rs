//! Tests the adapter against a mock gateway on loopback.

use std::net::{IpAddr, Ipv4Addr};

use domain::{Fact, Money, Subject};
use reqwest::Client;
use time::macros::datetime;

use crate::keys::{Certificate, VerifyingKey};
use crate::testing::{Reply, Seen, Server, impatient_client};
use crate::transport::http::{Transport, client};
use crate::transport::route;
use crate::wechat::sign::{Stamp, Target, request_text};
use crate::wechat::*;

macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/vectors/keys/", $name))
    };
}

pub(super) const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);
pub(super) const APIV3: &str = "0123456789abcdef0123456789abcdef";
pub(super) const KEY_ID: &str = "PUB_KEY_ID_1";
const SERIAL_NO: &str = "510FBE783019212C010D88F4DD891E848C8F4B35";

pub(super) fn account(base_url: &str) -> Wechat {
    with_client(base_url, client(Transport::Loopback).unwrap())
}

pub(super) fn impatient(base_url: &str) -> Wechat {
    with_client(base_url, impatient_client())
}

fn with_client(base_url: &str, client: Client) -> Wechat {
    let mut verify_keys = KeyRing::default();
    verify_keys.insert(KEY_ID.to_owned(), VerifyingKey::from_spki_pem(key!("wx_pubkey_public.pem")).unwrap());
    with_keys(verify_keys, route::tests::to(client, &[base_url]))
}

pub(super) fn with_keys(verify_keys: KeyRing, route: Route) -> Wechat {
    let account = Account {
        name: AccountName::parse("main").unwrap(),
        mchid: "1900000109".to_owned(),
        appids: PaymentMethod::Wechat.scenes().iter().map(|scene| (*scene, format!("wx{scene}"))).collect(),
        apps: PaymentMethod::Wechat.scenes().iter().map(|scene| format!("wx{scene}")).collect(),
        merchant_serial_no: SERIAL_NO.to_owned(),
        merchant_key: SigningKey::from_pem(key!("wx_merchant_private_pkcs8.pem")).unwrap(),
        apiv3_key: aead::ApiV3Key::new(APIV3).unwrap(),
        previous_apiv3_key: None,
        verify_keys,
        fetches: true,
    };
    Wechat::new(account, route, Arc::default())
}

fn order(scene: Scene) -> PrepayOrder {
    PrepayOrder {
        order_no: OrderNo::parse("ORD_01").unwrap(),
        subject: Subject::parse("大".repeat(50)).unwrap(),
        amount: Money::from_fen(100).unwrap(),
        scene,
        expires_at: datetime!(2026-01-05 16:50:30.5 UTC),
        notify_url: "https://pay.example.com/v1/callbacks/wechat/main".to_owned(),
        return_url: Some("https://shop.example.com/done".to_owned()),
        openid: Some("oUpF8".to_owned()),
        client_ip: Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))),
    }
}

/// An answer signed with WeChat Pay's test key.
pub(super) fn signed(status: u16, body: &str) -> Reply {
    let timestamp = NOW.unix_timestamp();
    let key = SigningKey::from_pem(key!("wx_pubkey_private_pkcs8.pem")).unwrap();
    let signature = key.sign(format!("{timestamp}\nn\n{body}\n").as_bytes()).unwrap();
    let headers = [
        ("Wechatpay-Timestamp", timestamp.to_string()),
        ("Wechatpay-Nonce", "n".to_owned()),
        ("Wechatpay-Serial", KEY_ID.to_owned()),
        ("Wechatpay-Signature", signature),
    ];
    Reply { status, headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(), body: body.to_owned() }
}

pub(super) fn unsigned(status: u16, body: &str) -> Reply {
    Reply { status, headers: Vec::new(), body: body.to_owned() }
}

/// Checks the signature over the received request, as WeChat Pay would.
pub(super) fn assert_signed(seen: &Seen) {
    let authorization = seen.header("authorization");
    let field = |name: &str| {
        let start = authorization.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
        authorization[start..].split('"').next().unwrap()
    };
    assert_eq!((field("mchid"), field("serial_no")), ("1900000109", SERIAL_NO));
    let stamp = Stamp { timestamp: field("timestamp").parse().unwrap(), nonce: field("nonce_str") };
    let target = Target { method: &seen.method, path_and_query: &seen.target, body: &seen.body };
    let certificate = Certificate::from_pem(key!("wx_merchant_cert.pem")).unwrap();
    assert!(certificate.key.verify(request_text(&target, &stamp).as_bytes(), field("signature")));
    assert_eq!(seen.header("wechatpay-serial"), KEY_ID);
    assert!(!seen.header("user-agent").is_empty());
}

async fn prepay(scene: Scene, answer: &str) -> (Payment, Seen) {
    let server = Server::start(signed(200, answer)).await;
    let wechat = account(&server.url);
    let request = wechat.prepay_request(&order(scene)).unwrap();
    let stored = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
    assert!(request == stored);
    let payment = wechat.prepay(&stored, NOW).await.unwrap();
    let seen = server.seen();
    assert_signed(&seen);
    (payment, seen)
}

pub(super) fn body(seen: &Seen) -> serde_json::Value {
    serde_json::from_str(&seen.body).unwrap()
}

#[tokio::test]
async fn native_is_a_code() {
    let (payment, seen) = prepay(Scene::Native, r#"{"code_url":"weixin://x"}"#).await;
    assert_eq!(payment, Payment::Qr { code_url: "weixin://x".to_owned() });
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/v3/pay/transactions/native"));
    assert_eq!(seen.header("content-type"), "application/json");
    insta::assert_snapshot!(seen.body, @r#"{"amount":{"currency":"CNY","total":100},"appid":"wxnative","description":"大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大大","mchid":"1900000109","notify_url":"https://pay.example.com/v1/callbacks/wechat/main","out_trade_no":"ORD_01","time_expire":"2026-01-06T00:50:30+08:00"}"#);
}

#[tokio::test]
async fn h5_names_the_buyers_address_and_comes_back() {
    let (payment, seen) = prepay(Scene::H5, r#"{"h5_url":"https://wx.tenpay.com/x?a=1"}"#).await;
    let url = "https://wx.tenpay.com/x?a=1&redirect_url=https%3A%2F%2Fshop.example.com%2Fdone".to_owned();
    assert_eq!(payment, Payment::Redirect { url });
    assert_eq!(body(&seen)["scene_info"]["payer_client_ip"], "203.0.113.9");
    assert_eq!(body(&seen)["payer"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_prepay_that_our_own_key_spoils_may_be_repeated() {
    let reply = Reply { status: 401, headers: Vec::new(), body: r#"{"code":"SIGN_ERROR","message":"x"}"#.to_owned() };
    let server = Server::start(reply).await;
    let wechat = account(&server.url);
    let request = wechat.prepay_request(&order(Scene::Native)).unwrap();
    let refused = wechat.prepay(&request, NOW).await;
    assert!(matches!(refused, Err(GatewayError::Misconfigured { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_refused_prepay_says_whose_fault_it_is() {
    for (status, code, ours) in [
        (400, "APPID_MCHID_NOT_MATCH", true),
        (403, "NO_AUTH", true),
        (403, "ACCOUNT_ERROR", true),
        (403, "RULE_LIMIT", true),
        (401, "SOMETHING_NEW", true),
        (400, "PARAM_ERROR", false),
        (400, "INVALID_REQUEST", false),
        (400, "SOMETHING_NEW", false),
        (403, "no_auth", false),
    ] {
        let body = format!(r#"{{"code":"{code}","message":"x"}}"#);
        let server = Server::start(unsigned(status, &body)).await;
        let wechat = account(&server.url);
        let request = wechat.prepay_request(&order(Scene::Native)).unwrap();
        let outcome = match wechat.prepay(&request, NOW).await {
            Err(GatewayError::Misconfigured { code, .. }) => (true, code),
            Err(GatewayError::Refused { code, .. }) => (false, code),
            other => panic!("{other:?}"),
        };
        assert_eq!(outcome, (ours, code.to_owned()), "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_leads_elsewhere_is_not_handed_on() {
    for (scene, answer) in [
        (Scene::H5, r#"{"h5_url":"https://evil.example/x"}"#),
        (Scene::H5, r#"{"h5_url":"http://wx.tenpay.com/x"}"#),
        (Scene::Native, r#"{"code_url":"https://evil.example/x"}"#),
    ] {
        let server = Server::start(signed(200, answer)).await;
        let wechat = account(&server.url);
        let request = wechat.prepay_request(&order(scene)).unwrap();
        let handed_on = wechat.prepay(&request, NOW).await;
        assert!(matches!(handed_on, Err(GatewayError::Protocol(_))), "{answer}: {handed_on:?}");
    }
}

#[tokio::test]
async fn jsapi_mini_and_app_are_invoked_with_signed_parameters() {
    for (scene, path) in [(Scene::Jsapi, "jsapi"), (Scene::Mini, "jsapi"), (Scene::App, "app")] {
        let (payment, seen) = prepay(scene, r#"{"prepay_id":"wx1"}"#).await;
        let Payment::Invoke { params } = payment else { panic!() };
        assert_eq!(seen.target, format!("/v3/pay/transactions/{path}"));
        assert_eq!(body(&seen)["appid"], format!("wx{scene}"));
        assert!(params.as_object().unwrap().values().all(serde_json::Value::is_string), "{params}");
        match scene {
            Scene::App => assert_eq!((&params["prepayid"], &params["package"]), (&"wx1".into(), &"Sign=WXPay".into())),
            _ => {
                assert_eq!(params["package"], "prepay_id=wx1");
                assert_eq!(body(&seen)["payer"]["openid"], "oUpF8");
                assert_eq!(params.get("appId").is_some(), scene == Scene::Jsapi);
            }
        }
    }
}

#[test]
fn what_an_order_lacks_is_refused_before_anything_is_sent() {
    let wechat = account("https://api.example");
    for order in [
        PrepayOrder { amount: Money::ZERO, ..order(Scene::Native) },
        PrepayOrder { openid: None, ..order(Scene::Jsapi) },
        PrepayOrder { openid: Some(String::new()), ..order(Scene::Mini) },
        PrepayOrder { client_ip: None, ..order(Scene::H5) },
        order(Scene::Page),
    ] {
        assert!(matches!(wechat.prepay_request(&order), Err(GatewayError::Refused { .. })), "{}", order.scene);
    }
}

async fn query(reply: Reply) -> Result<TradeAnswer, GatewayError> {
    let server = Server::start(reply).await;
    let trade = account(&server.url).query(&OrderNo::parse("ORD_01").unwrap(), NOW).await;
    let seen = server.seen();
    assert_eq!(seen.target, "/v3/pay/transactions/out-trade-no/ORD_01?mchid=1900000109");
    assert_eq!((seen.method.as_str(), seen.body.as_str()), ("GET", ""));
    assert_signed(&seen);
    trade
}

#[tokio::test]
async fn a_query_believes_only_what_is_signed_and_about_this_order() {
    let paid = r#"{"mchid":"1900000109","out_trade_no":"ORD_01","trade_state":"SUCCESS","transaction_id":"42","success_time":"2026-01-05T10:21:08+08:00","amount":{"total":100}}"#;
    let trade = query(signed(200, paid)).await.unwrap().found().unwrap().into_inner();
    assert!(matches!(trade.fact, Fact::Paid { .. }), "{trade:?}");
    assert!(matches!(query(unsigned(200, paid)).await, Err(GatewayError::Unknown(_))));
    let mut tampered = signed(200, paid);
    tampered.body = paid.replace("100", "101");
    assert!(matches!(query(tampered).await, Err(GatewayError::Unknown(_))));
    let mut probe = signed(200, paid);
    probe.headers[3].1 = "WECHATPAY/SIGNTEST/x".to_owned();
    assert!(matches!(query(probe).await, Err(GatewayError::Unknown(_))));
    for other in [paid.replace("ORD_01", "ORD_02"), paid.replace("1900000109", "1900000110"), "{}".to_owned()] {
        assert!(matches!(query(signed(200, &other)).await, Err(GatewayError::Protocol(_))), "{other}");
    }
}

#[tokio::test]
async fn an_unsigned_failure_is_named_after_what_may_be_done() {
    let refused = |code: &str| format!(r#"{{"code":"{code}","message":"m","detail":[1]}}"#);
    let cases = [
        (404, refused("MCH_NOT_EXISTS"), "Misconfigured"),
        (400, refused("RESOURCE_NOT_EXISTS"), "Refused"),
        (500, refused("ORDER_NOT_EXIST"), "Unknown"),
        (401, refused("SIGN_ERROR"), "Misconfigured"),
        (429, refused("FREQUENCY_LIMITED"), "Unavailable"),
        (500, refused("SYSTEM_ERROR"), "Unknown"),
        (503, String::new(), "Unknown"),
        (202, String::new(), "Unknown"),
        (302, String::new(), "Unknown"),
        (404, String::new(), "Unknown"),
        (405, "<html>".to_owned(), "Unknown"),
    ];
    for (status, body, expected) in cases {
        let error = query(unsigned(status, &body)).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{status} {body} {error:?}");
    }
}

/// The documentation and the systems spell the code in several ways. Under each of them, an order that never reached
/// WeChat Pay must be found absent.
#[tokio::test]
async fn an_order_that_is_not_there_is_absent_by_whatever_name() {
    for code in ["ORDER_NOT_EXIST", "ORDER_NOT_EXISTS", "ORDERNOTEXIST", "RESOURCE_NOT_EXISTS"] {
        let body = format!(r#"{{"code":"{code}","message":"m"}}"#);
        let answer = query(unsigned(404, &body)).await.unwrap();
        assert_eq!(answer, TradeAnswer::Absent { state: code.to_owned() });
        let server = Server::start(unsigned(404, &body)).await;
        let closed = account(&server.url).close(&OrderNo::parse("ORD_01").unwrap(), NOW).await;
        assert_eq!(closed.ok(), Some(CloseOutcome::NoTrade), "{code}");
    }
}

#[tokio::test]
async fn an_answer_to_a_query_tells_the_same_without_any_one_of_its_optional_fields() {
    // Source: WeChat Pay APIv3, "商户订单号查询订单", read 2025-11-20: the fields that the page does not call always present.
    let optional = [
        ("trade_type", r#""NATIVE""#),
        ("trade_state_desc", r#""支付成功""#),
        ("bank_type", r#""OTHERS""#),
        ("attach", r#""x""#),
        ("payer", r#"{"openid":"o"}"#),
        ("scene_info", r#"{"device_id":"1"}"#),
        ("promotion_detail", r#"[{"amount":10}]"#),
        ("appid", r#""wxnative""#),
        ("success_time", r#""2026-01-05T10:21:08+08:00""#),
    ];
    let whole = |left_out: &str, null: bool| {
        let kept = optional.iter().filter(|(name, _)| *name != left_out);
        let members: String = kept.map(|(name, value)| format!(r#","{name}":{value}"#)).collect();
        let null = if null { format!(r#","{left_out}":null"#) } else { String::new() };
        format!(
            r#"{{"mchid":"1900000109","out_trade_no":"ORD_01","transaction_id":"42","trade_state":"SUCCESS","amount":{{"total":100}}{members}{null}}}"#
        )
    };
    let trade_of = async |text: String| query(signed(200, &text)).await.unwrap().found().unwrap().into_inner();
    let all = trade_of(whole("", false)).await;
    for (absent, _) in optional {
        for null in [false, true] {
            let trade = trade_of(whole(absent, null)).await;
            if absent == "success_time" {
                assert!(matches!(trade.fact, Fact::Paid { paid_at, .. } if paid_at == NOW), "{trade:?}");
            } else {
                assert_eq!(trade, all, "{absent}");
            }
        }
    }
    let foreign = trade_of(whole("", false).replace("wxnative", "wxother")).await;
    assert!(matches!(&foreign.merchant, domain::Merchant::OtherApp { app, .. } if app == "wxother"), "{foreign:?}");
}

#[tokio::test]
async fn a_code_counts_whatever_its_words_are_written_in() {
    use crate::wechat::client::Outcome;
    let answer =
        |body: Vec<u8>| crate::transport::http::Answer { status: 404, headers: Default::default(), body: body.into() };
    let gbk = encoding_rs::GB18030.encode("订单不存在誠").0.into_owned();
    for words in [&gbk[..], b"\xff\xfe", b"\xe8\xae", b"a\x01", br"\ud83d"] {
        let body = [br#"{"detail":null,"message":""#, words, br#"","code":"ORDER_NOT_EXIST"}"#].concat();
        let judged = account("https://api.example").judge(&answer(body), NOW).unwrap();
        assert!(matches!(&judged, Outcome::Failed(failure) if failure.code == "ORDER_NOT_EXIST"), "{words:x?}");
    }
    let none = account("https://api.example").judge(&answer(gbk), NOW);
    assert!(matches!(none, Err(GatewayError::Unknown(_))));
}

#[tokio::test]
async fn a_close_says_whether_anyone_can_still_pay() {
    for (reply, expected) in [
        (signed(204, ""), Some(CloseOutcome::Closed)),
        (unsigned(404, r#"{"code":"ORDER_NOT_EXIST"}"#), Some(CloseOutcome::NoTrade)),
        (unsigned(400, r#"{"code":"ORDER_PAID"}"#), Some(CloseOutcome::NotClosed)),
        (unsigned(403, r#"{"code":"TRADE_ERROR"}"#), Some(CloseOutcome::NotClosed)),
        (unsigned(401, r#"{"code":"SIGN_ERROR"}"#), None),
        (unsigned(204, ""), None),
        (unsigned(500, r#"{"code":"SYSTEM_ERROR"}"#), None),
    ] {
        let server = Server::start(reply.clone()).await;
        let outcome = account(&server.url).close(&OrderNo::parse("ORD_01").unwrap(), NOW).await;
        assert_eq!(outcome.ok(), expected, "{reply:?}");
        let seen = server.seen();
        assert_eq!(seen.target, "/v3/pay/transactions/out-trade-no/ORD_01/close");
        assert_eq!(seen.body, r#"{"mchid":"1900000109"}"#);
        assert_signed(&seen);
    }
}

#[test]
fn nothing_secret_is_shown() {
    assert_eq!(format!("{:?}", account("https://api.example")), "Wechat(main, mchid 1900000109)");
}
