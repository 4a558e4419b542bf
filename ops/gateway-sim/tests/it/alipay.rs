//! Alipay: orders, refusals, the cashier and the notification.

use serde_json::{Value, json};
use time::Duration;

use crate::world::{World, beijing, decode, encode, join, now, uuid};

fn order(out_trade_no: &str) -> Value {
    json!({
        "out_trade_no": out_trade_no,
        "total_amount": "88.88",
        "subject": "手机壳 a+b <b>",
        "product_code": "QR_CODE_OFFLINE",
        "time_expire": beijing(now() + Duration::minutes(30)),
        "passback_params": "k%3Dv%26x",
    })
}

async fn query(world: &World, out_trade_no: &str) -> Value {
    let answer = world.alipay("alipay.trade.query", &json!({ "out_trade_no": out_trade_no }), |_| {}).await;
    world.node(&answer)
}

#[tokio::test]
async fn a_scanned_code_is_paid_and_notified_once() {
    let mut world = World::content().await;
    let order = order("QR1");
    let placed = world.node(&world.alipay("alipay.trade.precreate", &order, |_| {}).await);
    let code = placed["qr_code"].as_str().unwrap();
    assert!(code.starts_with("https://qr.alipay.com/bax"));
    assert_eq!(query(&world, "QR1").await["sub_code"], "ACQ.TRADE_NOT_EXIST");

    let opened = world.get(&format!("/pay?{}", encode(&[("code".to_owned(), code.to_owned())].into()))).await;
    let page = world.get(opened.headers["location"].to_str().unwrap()).await;
    assert!(page.text.contains("手机壳 a+b &lt;b&gt;") && page.text.contains("¥88.88"));
    assert_eq!(query(&world, "QR1").await["trade_status"], "WAIT_BUYER_PAY");

    let paid = world.send("POST", "/cashier/alipay/QR1/pay", &[], vec![]).await;
    assert_eq!(paid.status, 303);
    let callback = world.callback().await;
    let mut fields = decode(&callback.body);
    let sign = fields.remove("sign").unwrap();
    fields.remove("sign_type").unwrap();
    assert!(world.alipay_key().accepts(join(&fields).as_bytes(), &sign));
    for (name, value) in [
        ("trade_status", "TRADE_SUCCESS"),
        ("total_amount", "88.88"),
        ("app_id", world.keys.alipay[0].app_id.as_str()),
        ("seller_id", world.keys.alipay[0].seller_id.as_str()),
        ("passback_params", "k%3Dv%26x"),
        ("subject", "手机壳 a+b <b>"),
        ("notify_type", "trade_status_sync"),
        ("version", "1.0"),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    let answer = query(&world, "QR1").await;
    assert_eq!(answer["trade_no"], fields["trade_no"].as_str());
    assert_eq!(
        (answer["trade_status"].as_str(), answer["total_amount"].as_str()),
        (Some("TRADE_SUCCESS"), Some("88.88"))
    );

    let again = world.node(&world.alipay("alipay.trade.precreate", &order, |_| {}).await);
    assert_eq!(again["sub_code"], "ACQ.TRADE_HAS_SUCCESS");
    let close = world.alipay("alipay.trade.close", &json!({ "out_trade_no": "QR1" }), |_| {}).await;
    assert_eq!(world.node(&close)["sub_code"], "ACQ.TRADE_STATUS_ERROR");
}

#[tokio::test]
async fn a_page_sends_the_browser_back_with_signed_parameters() {
    let world = World::content().await;
    let mut order = order("PAGE1");
    order["product_code"] = json!("FAST_INSTANT_TRADE_PAY");
    let params = world.alipay_params("alipay.trade.page.pay", &order);
    let cashier = world.get(&format!("/gateway.do?{}", encode(&params))).await;
    assert_eq!(cashier.status, 303);
    assert_eq!(query(&world, "PAGE1").await["sub_code"], "ACQ.TRADE_NOT_EXIST");
    let paid = world.send("POST", "/cashier/alipay/PAGE1/pay", &[], vec![]).await;
    let back = paid.headers["location"].to_str().unwrap();
    let (base, parameters) = back.split_once("from=alipay&").unwrap();
    assert_eq!(base, "https://shop.example.com/done?");
    let mut fields = decode(parameters.as_bytes());
    let sign = fields.remove("sign").unwrap();
    fields.remove("sign_type");
    assert!(world.alipay_key().accepts(join(&fields).as_bytes(), &sign));
    assert_eq!(fields["method"], "alipay.trade.page.pay.return");

    let mut tampered = params;
    tampered.insert("biz_content".to_owned(), order.to_string().replace("88.88", "8.88"));
    let refused = world.get(&format!("/gateway.do?{}", encode(&tampered))).await;
    assert!(refused.text.contains("isv.invalid-signature") && !refused.text.contains("<b>"));
}

#[tokio::test]
async fn an_order_string_opens_the_cashier_of_the_app() {
    let world = World::content().await;
    let mut order = order("APP1");
    order["product_code"] = json!("QUICK_MSECURITY_PAY");
    let text = encode(&world.alipay_params("alipay.trade.app.pay", &order));
    let opened = world.send("POST", "/alipay/app", &[], text.clone().into_bytes()).await;
    assert_eq!(opened.json()["cashier"], "/cashier/alipay/APP1?account=main");
    for bad in [text.replace("88.88", "88.89"), String::new(), "\u{0}=%".to_owned()] {
        assert_eq!(world.send("POST", "/alipay/app", &[], bad.into_bytes()).await.status, 400);
    }
}

#[tokio::test]
async fn calls_that_the_gateway_does_not_believe_are_refused_unsigned() {
    let world = World::content().await;
    let cases: [(&str, &str, Option<&str>); 9] = [
        ("sign", "AAAA", Some("isv.invalid-signature")),
        ("sign", "", Some("isv.missing-signature")),
        ("app_id", "2021999999999999", Some("isv.invalid-app-id")),
        ("charset", "GBK", Some("isv.invalid-charset")),
        ("sign_type", "RSA", Some("isv.invalid-signature-type")),
        ("method", "", Some("isv.missing-method")),
        ("version", "2.0", Some("isv.invalid-version")),
        ("timestamp", "2026-01-01 00:00:00", Some("isv.invalid-signature")),
        ("extra", "1", Some("isv.invalid-signature")),
    ];
    for (name, value, sub_code) in cases {
        let change = |params: &mut crate::world::Pairs| {
            params.insert(name.to_owned(), value.to_owned());
        };
        let answer = world.alipay("alipay.trade.query", &json!({ "out_trade_no": "NONE" }), change).await;
        assert_eq!(world.node(&answer)["sub_code"].as_str(), sub_code, "{name}");
        assert!(answer.json().get("sign").is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_clock_in_another_zone_is_found() {
    let world = World::content().await;
    for (timestamp, passes) in [
        (beijing(now()), true),
        (beijing(now() - Duration::hours(8)), false),
        (beijing(now() + Duration::hours(8)), false),
        ("2026-11-23T10:00:00".to_owned(), false),
    ] {
        let change = |params: &mut crate::world::Pairs| {
            params.insert("timestamp".to_owned(), timestamp.clone());
            world.sign_alipay(params);
        };
        let answer = world.alipay("alipay.trade.query", &json!({ "out_trade_no": "NONE" }), change).await;
        let expected = if passes { "ACQ.TRADE_NOT_EXIST" } else { "isv.invalid-timestamp" };
        assert_eq!(world.node(&answer)["sub_code"], expected, "{timestamp}");
    }
}

#[tokio::test]
async fn wrong_fields_and_changed_repeats_are_refused() {
    let world = World::content().await;
    let good = order("FIELDS1");
    world.node(&world.alipay("alipay.trade.precreate", &good, |_| {}).await);
    let changes = [
        ("total_amount", json!("88.89"), "ACQ.CONTEXT_INCONSISTENT"),
        ("subject", json!("手机"), "ACQ.CONTEXT_INCONSISTENT"),
        ("total_amount", json!("0.001"), "ACQ.INVALID_PARAMETER"),
        ("total_amount", json!("100000000.01"), "ACQ.INVALID_PARAMETER"),
        ("total_amount", json!(88.88), "ACQ.INVALID_PARAMETER"),
        ("subject", json!("a=b"), "ACQ.INVALID_PARAMETER"),
        ("subject", json!(null), "ACQ.INVALID_PARAMETER"),
        ("out_trade_no", json!("a-b"), "ACQ.INVALID_PARAMETER"),
        ("out_trade_no", json!("x".repeat(65)), "ACQ.INVALID_PARAMETER"),
        ("product_code", json!("QUICK_WAP_WAY"), "ACQ.INVALID_PARAMETER"),
        ("time_expire", json!("2026-01-01T00:00:00+08:00"), "ACQ.INVALID_PARAMETER"),
        ("seller_id", json!("2088000000000000"), "ACQ.INVALID_PARAMETER"),
        ("amount", json!("1.00"), "ACQ.INVALID_PARAMETER"),
    ];
    for (name, value, sub_code) in changes {
        let mut order = good.clone();
        order[name] = value.clone();
        let answer = world.node(&world.alipay("alipay.trade.precreate", &order, |_| {}).await);
        assert_eq!(answer["sub_code"], sub_code, "{name} {value}");
        assert_eq!(answer["code"], "40004");
    }
    let mut late = order(&format!("L{}", uuid()));
    late["time_expire"] = json!(beijing(now() + Duration::days(16)));
    let answer = world.node(&world.alipay("alipay.trade.precreate", &late, |_| {}).await);
    assert_eq!(answer["sub_code"], "ACQ.INVALID_PARAMETER");
}

#[tokio::test]
async fn a_trade_closes_when_its_time_is_over() {
    let mut world = World::content().await;
    for number in ["EXP1", "EXP2"] {
        world.node(&world.alipay("alipay.trade.precreate", &order(number), |_| {}).await);
        world.control("POST", &format!("/sim/trades/alipay/{number}/open"), &json!({})).await;
    }
    world.control("POST", "/sim/trades/alipay/EXP1/expire", &json!({})).await;
    assert_eq!(query(&world, "EXP1").await["trade_status"], "TRADE_CLOSED");
    assert_eq!(world.send("POST", "/cashier/alipay/EXP1/pay", &[], vec![]).await.status, 409);
    world.control("POST", "/sim/trades/alipay/EXP2/close", &json!({})).await;
    let fields = decode(&world.callback().await.body);
    assert_eq!((fields["trade_status"].as_str(), fields.contains_key("gmt_payment")), ("TRADE_CLOSED", false));
}
