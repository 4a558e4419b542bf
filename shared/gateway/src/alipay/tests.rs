//! Tests the adapter against a mock gateway on loopback.

use bytes::Bytes;
use domain::{Fact, Merchant, Money, Scene, Subject};
use proptest::prelude::*;
use reqwest::Client;
use time::macros::datetime;
use url::Url;

use crate::alipay::form::Form;
use crate::alipay::sign::string_to_sign;
use crate::alipay::*;
use crate::testing::{Reply, Server, impatient_client};
use crate::transport::http::{Transport, client};
use crate::transport::route;

macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/vectors/keys/", $name))
    };
}

const NOW: OffsetDateTime = datetime!(2026-01-05 16:20:30 UTC);

pub(super) fn account(gateway_url: &str) -> Alipay {
    with_client(gateway_url, client(Transport::Loopback).unwrap())
}

pub(super) fn impatient(gateway_url: &str) -> Alipay {
    with_client(gateway_url, impatient_client())
}

fn with_client(gateway_url: &str, client: Client) -> Alipay {
    let account = Account {
        name: AccountName::parse("main").unwrap(),
        gateway_url: Url::parse(gateway_url).unwrap(),
        app_id: "2021000122671080".to_owned(),
        seller_id: "2088621955702100".to_owned(),
        qr_product_code: "FACE_TO_FACE_PAYMENT".to_owned(),
        app_key: SigningKey::from_pem(key!("alipay_app_private_pkcs8.pem")).unwrap(),
        trust: Trust::PublicKey(VerifyingKey::from_spki_pem(key!("alipay_platform_public.pem")).unwrap()),
        previous_key: None,
    };
    Alipay::new(account, route::tests::to(client, &[gateway_url]), Arc::default())
}

fn order(scene: Scene) -> PrepayOrder {
    PrepayOrder {
        order_no: OrderNo::parse("ORD_01").unwrap(),
        subject: Subject::parse("大乐透 + 50% off").unwrap(),
        amount: Money::from_fen(8880).unwrap(),
        scene,
        expires_at: datetime!(2026-01-05 16:50:30.5 UTC),
        notify_url: "https://pay.example.com/v1/callbacks/alipay/main".to_owned(),
        return_url: Some("https://shop.example.com/done".to_owned()),
        openid: None,
        client_ip: None,
    }
}

/// An answer whose node is signed with Alipay's test key, or unsigned.
pub(super) fn reply(method: &str, node: &str, signed: bool) -> Reply {
    let sign = SigningKey::from_pem(key!("alipay_platform_private_pkcs8.pem")).unwrap().sign(node.as_bytes()).unwrap();
    let sign = if signed { format!(r#","sign":"{sign}""#) } else { String::new() };
    let body = format!(r#"{{"{method}_response":{node}{sign}}}"#);
    Reply { status: 200, headers: Vec::new(), body }
}

/// Checks the signature over all parameters as the gateway would, and returns the parameters.
pub(super) fn checked(texts: &[&str]) -> Vec<(String, String)> {
    let mut params = Vec::new();
    for text in texts {
        let form = Form::parse(text.as_bytes()).unwrap();
        let owned = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        params.extend(form.fields().map(|(name, value)| (owned(name), owned(value))));
    }
    let sign = &params.iter().find(|(name, _)| name == "sign").unwrap().1;
    let covered = string_to_sign(params.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let app = VerifyingKey::from_spki_pem(key!("alipay_app_public.pem")).unwrap();
    assert!(app.verify(covered.as_bytes(), sign));
    assert!(params.iter().all(|(_, value)| !value.is_empty()));
    params
}

pub(super) fn param<'a>(params: &'a [(String, String)], name: &str) -> &'a str {
    &params.iter().find(|(known, _)| known == name).unwrap().1
}

#[test]
fn gateway_time_is_beijing_time() {
    let at = datetime!(2026-01-05 16:20:30.987 UTC);
    assert_eq!(beijing_text(at).unwrap(), "2026-01-06 00:20:30");
    assert_eq!(parse_beijing("2026-01-06 00:20:30"), Some(datetime!(2026-01-05 16:20:30 UTC)));
    assert_eq!(
        parse_beijing("2026-01-06 00:20:30.987"),
        Some(datetime!(2026-01-05 16:20:30 UTC)),
        "as `gmt_refund` is"
    );
    for text in ["", "2026-01-06", "2026-01-06T00:20:30", "2026-13-06 00:20:30"] {
        assert_eq!(parse_beijing(text), None, "{text}");
    }
}

#[tokio::test]
async fn page_and_wap_are_signed_addresses_and_the_same_parameters_each_time() {
    let alipay = account("https://gateway.example/gateway.do");
    for (scene, code) in [(Scene::Page, "FAST_INSTANT_TRADE_PAY"), (Scene::Wap, "QUICK_WAP_WAY")] {
        let request = alipay.prepay_request(&order(scene)).unwrap();
        let stored = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert!(request == stored);
        let Payment::Redirect { url } = alipay.prepay(&stored, NOW).await.unwrap() else { panic!() };
        let params = checked(&[url.strip_prefix("https://gateway.example/gateway.do?").unwrap()]);
        assert_eq!(param(&params, "timestamp"), "2026-01-06 00:20:30");
        assert_eq!(param(&params, "return_url"), "https://shop.example.com/done");
        let biz: serde_json::Value = serde_json::from_str(param(&params, "biz_content")).unwrap();
        assert_eq!(biz["product_code"], code);
        assert_eq!(biz["time_expire"], "2026-01-06 00:50:30");
        assert_eq!(biz["total_amount"], "88.80");
        assert_eq!(biz["out_trade_no"], "ORD_01");
        let order = serde_json::to_value(&request).unwrap();
        assert_eq!(crate::app_of_order(PaymentMethod::Alipay, &order), Some("2021000122671080"));
    }
}

#[tokio::test]
async fn an_app_gets_an_order_string() {
    let alipay = account("https://gateway.example/gateway.do");
    let request = alipay.prepay_request(&order(Scene::App)).unwrap();
    let Payment::Invoke { params } = alipay.prepay(&request, NOW).await.unwrap() else { panic!() };
    let order_string = params["order_string"].as_str().unwrap();
    assert!(!order_string.contains('+') && !order_string.contains("return_url"));
    assert!(param(&checked(&[order_string]), "biz_content").contains("大乐透 + 50% off"));
}

#[tokio::test]
async fn a_qr_code_is_requested_and_its_answer_checked() {
    let node = r#"{"code":"10000","out_trade_no":"ORD_01","qr_code":"https:\/\/qr.alipay.com\/bax1"}"#;
    let server = Server::start(reply("alipay_trade_precreate", node, true)).await;
    let alipay = account(&format!("{}/gateway.do", server.url));
    let request = alipay.prepay_request(&order(Scene::Qr)).unwrap();
    let payment = alipay.prepay(&request, NOW).await.unwrap();
    assert_eq!(payment, Payment::Qr { code_url: "https://qr.alipay.com/bax1".to_owned() });
    let seen = server.seen();
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded;charset=utf-8");
    let query = seen.target.strip_prefix("/gateway.do?").unwrap();
    assert!(query.contains("charset=utf-8") && seen.body.starts_with("biz_content="));
    let params = checked(&[query, &seen.body]);
    assert!(param(&params, "biz_content").contains("FACE_TO_FACE_PAYMENT"));
    let other = alipay.prepay_request(&PrepayOrder { order_no: OrderNo::parse("ORD_02").unwrap(), ..order(Scene::Qr) });
    assert!(matches!(alipay.prepay(&other.unwrap(), NOW).await, Err(GatewayError::Protocol(_))));
    let ours = r#"{"code":"40002","msg":"Invalid","sub_code":"isv.invalid-signature","sub_msg":"x"}"#;
    for signed in [true, false] {
        let server = Server::start(reply("alipay_trade_precreate", ours, signed)).await;
        let spoilt = account(&format!("{}/gateway.do", server.url)).prepay(&request, NOW).await;
        let ours = matches!(&spoilt, Err(GatewayError::Misconfigured { code, .. }) if code == "isv.invalid-signature");
        assert!(ours, "our key's fault ends no order: {spoilt:?}");
    }
    let node = node.replace("qr.alipay.com", "qr.alipay.com.evil.example");
    let server = Server::start(reply("alipay_trade_precreate", &node, true)).await;
    let astray = account(&format!("{}/gateway.do", server.url)).prepay(&request, NOW).await;
    assert!(matches!(astray, Err(GatewayError::Protocol(_))), "{astray:?}");
}

#[tokio::test]
async fn what_an_order_lacks_is_refused_before_anything_is_sent() {
    let alipay = account("https://gateway.example/gateway.do");
    let free = PrepayOrder { amount: Money::ZERO, ..order(Scene::Page) };
    assert!(matches!(alipay.prepay_request(&free), Err(GatewayError::Refused { .. })));
    assert!(matches!(alipay.prepay_request(&order(Scene::Native)), Err(GatewayError::Refused { .. })));
}

async fn query(node: &str, signed: bool) -> Result<TradeAnswer, GatewayError> {
    let server = Server::start(reply("alipay_trade_query", node, signed)).await;
    account(&server.url).query(&OrderNo::parse("ORD_01").unwrap(), NOW).await
}

#[tokio::test]
async fn a_query_believes_only_what_is_signed_and_about_this_order() {
    let paid = r#"{"code":"10000","trade_no":"2026","out_trade_no":"ORD_01","trade_status":"TRADE_SUCCESS","total_amount":"88.80","send_pay_date":"2026-01-05 10:21:08"}"#;
    let trade = query(paid, true).await.unwrap().found().unwrap().into_inner();
    assert!(matches!(trade.fact, Fact::Paid { .. }), "{trade:?}");
    assert!(matches!(query(paid, false).await, Err(GatewayError::Unknown(_))));
    assert!(matches!(query(&paid.replace("ORD_01", "ORD_02"), true).await, Err(GatewayError::Protocol(_))));
    assert!(matches!(query("{}", true).await, Err(GatewayError::Protocol(_))));

    let payee = |id: &str| paid.replacen('{', &format!(r#"{{"seller_id":"{id}","#), 1);
    for ours in ["2088621955702100", ""] {
        assert_eq!(query(&payee(ours), true).await.unwrap().found().unwrap().into_inner().merchant, Merchant::Ours);
    }
    let other = query(&payee("2088000000000000"), true).await.unwrap().found().unwrap().into_inner();
    assert_eq!(other.merchant, Merchant::Other("seller_id 2088000000000000".to_owned()));

    let none = r#"{"code":"40004","msg":"Business Failed","sub_code":"ACQ.TRADE_NOT_EXIST","sub_msg":"交易不存在"}"#;
    assert_eq!(query(none, true).await.unwrap(), TradeAnswer::Absent { state: "TRADE_NOT_EXIST".to_owned() });
    assert!(matches!(query(none, false).await, Err(GatewayError::Unknown(_))));

    let config = r#"{"code":"40002","msg":"Invalid Arguments","sub_code":"isv.invalid-app-id","sub_msg":"x"}"#;
    assert!(
        matches!(query(config, false).await, Err(GatewayError::Misconfigured { code, .. }) if code == "isv.invalid-app-id")
    );
}

#[tokio::test]
async fn a_close_says_whether_anyone_can_still_pay() {
    for (node, expected) in [
        (r#"{"code":"10000","trade_no":"2026","out_trade_no":"ORD_01"}"#, CloseOutcome::Closed),
        (r#"{"code":"40004","sub_code":"ACQ.TRADE_NOT_EXIST"}"#, CloseOutcome::NoTradeYet),
        (r#"{"code":"40004","sub_code":"ACQ.TRADE_STATUS_ERROR"}"#, CloseOutcome::NotClosed),
        (r#"{"code":"40004","sub_code":"ACQ.REASON_TRADE_STATUS_INVALID"}"#, CloseOutcome::NotClosed),
    ] {
        let server = Server::start(reply("alipay_trade_close", node, true)).await;
        let outcome = account(&server.url).close(&OrderNo::parse("ORD_01").unwrap(), NOW).await.unwrap();
        assert_eq!(outcome, expected, "{node}");
    }
    let node = r#"{"code":"20000","sub_code":"isp.unknow-error"}"#;
    let server = Server::start(reply("alipay_trade_close", node, true)).await;
    let outcome = account(&server.url).close(&OrderNo::parse("ORD_01").unwrap(), NOW).await;
    assert!(matches!(outcome, Err(GatewayError::Unknown(_))));
}

#[tokio::test]
async fn an_answer_that_is_no_answer_leaves_the_outcome_unknown() {
    for (status, body) in [(502, "<html>"), (200, ""), (200, "[]"), (302, "{}")] {
        let reply = Reply { status, headers: Vec::new(), body: body.to_owned() };
        let server = Server::start(reply).await;
        let outcome = account(&server.url).query(&OrderNo::parse("ORD_01").unwrap(), NOW).await;
        assert!(matches!(outcome, Err(GatewayError::Unknown(_))), "{status} {body} {outcome:?}");
    }
}

#[test]
fn nothing_secret_is_shown() {
    assert_eq!(format!("{:?}", account("https://gateway.example/")), "Alipay(main, app 2021000122671080)");
}

fn read(body: &[u8]) -> Result<Verified<Notification>, CallbackError> {
    static ALIPAY: std::sync::OnceLock<Alipay> = std::sync::OnceLock::new();
    let callback = Callback {
        method: PaymentMethod::Alipay,
        account: AccountName::parse("main").unwrap(),
        headers: Vec::new(),
        body: Bytes::copy_from_slice(body),
        received_at: NOW,
        job_id: None,
    };
    ALIPAY.get_or_init(|| account("https://gateway.example/")).read(&Verified::new(callback), NOW)
}

#[tokio::test]
async fn what_the_key_before_signed_counts_as_long_as_it_is_on_file() {
    let now = Some(NOW);
    let by = |key: &str| {
        let fields = [("notify_id", "n"), ("out_trade_no", "ORD_01"), ("trade_status", "TRADE_SUCCESS")];
        // A callback's signature does not cover `sign_type`.
        let sign = SigningKey::from_pem(key).unwrap().sign(string_to_sign(fields).as_bytes()).unwrap();
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        let body = form.extend_pairs(fields).extend_pairs([("sign_type", "RSA2"), ("sign", &sign)]).finish();
        let account = AccountName::parse("main").unwrap();
        let (method, body) = (PaymentMethod::Alipay, Bytes::from(body));
        Callback { method, account, headers: Vec::new(), body, received_at: NOW, job_id: None }
    };
    let (today, before) = (by(key!("alipay_platform_private_pkcs8.pem")), by(key!("alipay_other_private_pkcs8.pem")));
    let mut alipay = account("https://gateway.example/");
    alipay.verify(today.clone(), now).unwrap();
    assert_eq!(alipay.verify(before.clone(), now).map(|_| ()), Err(CallbackError::BadSignature));
    alipay.account.previous_key = Some(VerifyingKey::from_spki_pem(key!("alipay_other_public.pem")).unwrap());
    assert_eq!(alipay.key_of(&alipay.verify(today, now).unwrap()), "public_key");
    assert_eq!(alipay.key_of(&alipay.verify(before, now).unwrap()), "previous_public_key");
    let stranger = by(key!("wx_other_private_pkcs8.pem"));
    assert_eq!(alipay.verify(stranger, now).map(|_| ()), Err(CallbackError::BadSignature));
}

#[test]
fn a_notice_names_both_the_app_and_the_payee() {
    let merchant = |ids: &str| {
        let body = format!("notify_id=n&out_trade_no=ORD_01&trade_status=WAIT_BUYER_PAY{ids}");
        read(body.as_bytes()).unwrap().into_inner().merchant
    };
    for ids in [
        "&app_id=2021000122671080&seller_id=2088621955702100",
        "&app_id=2021000122671080",
        "&app_id=2021000122671080&seller_id=",
        "&app_id=2021000122671080&seller_email=shop%40example.com",
    ] {
        assert_eq!(merchant(ids), Merchant::Ours, "{ids}");
    }
    for ids in
        ["", "&seller_id=2088621955702100", "&app_id=2021000122671080&seller_id=2088", "&app_id=1&seller_id=2088"]
    {
        assert!(matches!(merchant(ids), Merchant::Other(_)), "{ids}");
    }
    for ids in ["&app_id=1&seller_id=2088621955702100", "&app_id=1"] {
        assert!(matches!(merchant(ids), Merchant::OtherApp { app, .. } if app == "1"), "{ids}");
    }
    for absent in ["notify_id=n", "out_trade_no=ORD_01", "notify_id=n&out_trade_no="] {
        assert!(matches!(read(absent.as_bytes()), Err(CallbackError::Undecodable(_))), "{absent}");
    }
}

/// Source: Alipay OpenAPI, "异步通知" (00f7nu), read 2025-11-20: every field that the page lists as optional.
const OPTIONAL: [(&str, &str); 21] = [
    ("receipt_amount", "88.80"),
    ("buyer_pay_amount", "88.80"),
    ("invoice_amount", "88.80"),
    ("point_amount", "0.00"),
    ("refund_fee", "0.00"),
    ("send_back_fee", "0.00"),
    ("seller_id", "2088621955702100"),
    ("seller_email", "shop@example.com"),
    ("buyer_id", "2088102122524333"),
    ("buyer_open_id", "074a1CcTG1LelxKe4xQC0zgNdId0nxi95b5lsNpazWYoCo5"),
    ("buyer_logon_id", "159****5620"),
    ("subject", "月卡"),
    ("body", "月卡"),
    ("passback_params", "a%3D1"),
    ("gmt_create", "2026-01-05 10:21:00"),
    ("gmt_payment", "2026-01-05 10:21:08"),
    ("gmt_close", "2026-04-05 10:21:08"),
    ("fund_bill_list", r#"[{"amount":"88.80","fundChannel":"ALIPAYACCOUNT"}]"#),
    ("voucher_detail_list", "[]"),
    ("notify_action_type", "payByAccountAction"),
    ("auth_app_id", "2021000122671080"),
];

#[test]
fn a_notice_tells_the_same_without_any_one_of_its_optional_fields() {
    const NEEDED: [(&str, &str); 7] = [
        ("notify_id", "n"),
        ("notify_time", "2026-01-05 10:21:10"),
        ("app_id", "2021000122671080"),
        ("trade_no", "2026010522001400001000000001"),
        ("out_trade_no", "ORD_01"),
        ("trade_status", "TRADE_SUCCESS"),
        ("total_amount", "88.80"),
    ];
    let read_without = |left_out: &dyn Fn(&str) -> bool| {
        let kept = OPTIONAL.iter().filter(|(name, _)| !left_out(name));
        let body =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(NEEDED.iter().chain(kept)).finish();
        read(body.as_bytes()).unwrap().into_inner()
    };
    let whole = read_without(&|_| false);
    let paid_at = |notification: &Notification| match &notification.fact {
        Fact::Paid { paid_at, .. } => *paid_at,
        other => panic!("{other:?}"),
    };
    assert_eq!((&whole.merchant, &whole.doubt), (&Merchant::Ours, &None));
    assert_eq!(paid_at(&whole), datetime!(2026-01-05 02:21:08 UTC));
    for (absent, _) in OPTIONAL.iter().filter(|(name, _)| *name != "gmt_payment") {
        assert_eq!(read_without(&|name| name == *absent), whole, "{absent}");
    }
    for sent in [read_without(&|name| name == "gmt_payment"), read_without(&|_| true)] {
        assert_eq!(paid_at(&sent), datetime!(2026-01-05 02:21:10 UTC), "the time of the notice");
        assert_eq!((sent.merchant, sent.doubt), (Merchant::Ours, None));
    }
}

#[tokio::test]
async fn an_answer_to_a_query_tells_the_same_without_any_one_of_its_optional_fields() {
    // Source: Alipay OpenAPI, `alipay.trade.query` (02ekfq), read 2025-11-20.
    let optional = [
        ("buyer_user_id", r#""2088102122524333""#),
        ("buyer_open_id", r#""074a1CcTG1LelxKe4xQC""#),
        ("buyer_logon_id", r#""159****5620""#),
        ("receipt_amount", r#""88.80""#),
        ("buyer_pay_amount", r#""88.80""#),
        ("invoice_amount", r#""88.80""#),
        ("point_amount", r#""0.00""#),
        ("fund_bill_list", r#"[{"fund_channel":"ALIPAYACCOUNT","amount":"88.80"}]"#),
        ("store_name", r#""店""#),
        ("ext_infos", r#""{}""#),
        ("msg", r#""Success""#),
        ("seller_id", r#""2088621955702100""#),
        ("send_pay_date", r#""2026-01-05 10:21:08""#),
    ];
    let needed = r#""code":"10000","trade_no":"2026","out_trade_no":"ORD_01","trade_status":"TRADE_SUCCESS","total_amount":"88.80""#;
    let whole = |left_out: &str, null: bool| {
        let kept = optional.iter().filter(|(name, _)| *name != left_out);
        let members: String = kept.map(|(name, value)| format!(r#","{name}":{value}"#)).collect();
        let null = if null { format!(r#","{left_out}":null"#) } else { String::new() };
        format!("{{{needed}{members}{null}}}")
    };
    let all = query(&whole("", false), true).await.unwrap().found().unwrap().into_inner();
    for (absent, _) in optional {
        for null in [false, true] {
            let trade = query(&whole(absent, null), true).await.unwrap().found().unwrap().into_inner();
            if absent == "send_pay_date" {
                assert!(matches!(trade.fact, Fact::Paid { paid_at, .. } if paid_at == NOW), "{trade:?}");
            } else {
                assert_eq!(trade, all, "{absent}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_authentic_bytes_are_a_notice_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&body);
    }

    #[test]
    fn any_authentic_values_are_a_notice_or_an_error(values in proptest::collection::vec(".{0,20}", 7)) {
        let names = ["notify_id", "out_trade_no", "trade_no", "total_amount", "refund_fee", "gmt_payment", "out_biz_no"];
        let mut body = url::form_urlencoded::Serializer::new("trade_status=TRADE_SUCCESS".to_owned());
        let body = body.extend_pairs(names.iter().zip(&values)).finish();
        if let Ok(notification) = read(body.as_bytes()) {
            prop_assert_eq!(&notification.get().order_no, &values[1]);
        }
    }
}
