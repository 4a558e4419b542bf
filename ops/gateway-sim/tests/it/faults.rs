//! Faults and schedules: what arrives, in which order, and what the ledger says of it.

use axum::http::StatusCode;
use gateway_sim::deliver::WECHAT_SCHEDULE;
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify::{self, Overrides, Wrong};
use serde_json::{Value, json};

use crate::world::{World, decode, uuid};

/// A WeChat Pay trade with `faults`, paid.
async fn paid(world: &World, faults: &Value) -> String {
    let number = uuid();
    let merchant = &world.keys.wechat[0];
    let order = json!({
        "appid": merchant.appids[0], "mchid": merchant.mchid, "description": "x", "out_trade_no": number,
        "notify_url": world.notify_url, "amount": { "total": 100 },
    });
    assert_eq!(world.wechat("POST", "/v3/pay/transactions/native", Some(&order)).await.status, 200);
    world.control("PUT", "/sim/faults", &json!({ "scope": number, "callbacks": faults })).await;
    world.pay("wechat", &number).await;
    number
}

fn id(body: &[u8]) -> String {
    serde_json::from_slice::<Value>(body).unwrap()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_unanswered_notification_is_repeated_with_a_fresh_signature_until_the_schedule_ends() {
    let mut world = World::new(|_| (StatusCode::SERVICE_UNAVAILABLE, "{}")).await;
    let number = uuid();
    let merchant = &world.keys.wechat[0];
    let order = json!({
        "appid": merchant.appids[0], "mchid": merchant.mchid, "description": "x", "out_trade_no": number,
        "notify_url": world.notify_url, "amount": { "total": 100 },
    });
    world.wechat("POST", "/v3/pay/transactions/native", Some(&order)).await;
    world.pay("wechat", &number).await;
    let (first, second, third) = (world.callback().await, world.callback().await, world.callback().await);
    assert_eq!((id(&first.body), id(&first.body)), (id(&second.body), id(&third.body)));
    assert_ne!(first.headers["wechatpay-signature"], second.headers["wechatpay-signature"]);
    assert!(world.wechat_signed(&third.headers, &third.body));
    assert_eq!((WECHAT_SCHEDULE.len(), WECHAT_SCHEDULE.iter().sum::<u64>()), (15, 24 * 3_600 + 4 * 60));
}

#[tokio::test]
async fn wrong_callbacks_come_first_and_the_right_one_follows() {
    let mut world = World::content().await;
    for fault in ["tamper", "wrong_serial", "forged", "probe"] {
        let number = paid(&world, &json!({ fault: 1.0 })).await;
        let (wrong, right) = (world.callback().await, world.callback().await);
        assert!(!world.wechat_signed(&wrong.headers, &wrong.body), "{fault}");
        assert!(world.wechat_signed(&right.headers, &right.body), "{fault}");
        assert_eq!(id(&right.body).len(), 36);
        let probe = wrong.headers["wechatpay-signature"].to_str().unwrap().starts_with("WECHATPAY/SIGNTEST/");
        assert_eq!(probe, fault == "probe");
        let trade = world.control("GET", &format!("/sim/trades/wechat/{number}"), &json!({})).await;
        assert_eq!(trade["wrong_accepted"], 1, "this merchant accepts everything, and the ledger knows");
    }
    let counts = world.control("GET", "/sim/faults", &json!({})).await["injected"].clone();
    assert_eq!(counts, json!({ "tamper": 1, "wrong_serial": 1, "forged": 1, "probe": 1 }));
}

#[tokio::test]
async fn copies_carry_one_id() {
    let mut world = World::content().await;
    for faults in [json!({ "repeat": 3 }), json!({ "parallel": 4 })] {
        paid(&world, &faults).await;
        let first = id(&world.callback().await.body);
        for _ in 0..3 {
            assert_eq!(id(&world.callback().await.body), first);
        }
    }
}

#[tokio::test]
async fn api_faults_and_bad_fault_sets() {
    let world = World::content().await;
    world.control("PUT", "/sim/faults", &json!({ "api": { "error_5xx": 1.0 } })).await;
    let target = format!("/v3/pay/transactions/out-trade-no/NOSUCH1?mchid={}", world.keys.wechat[0].mchid);
    let answer = world.wechat("GET", &target, None).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (500, Some("SYSTEM_ERROR")));
    assert_eq!(world.alipay("alipay.trade.query", &json!({ "out_trade_no": "X" }), |_| {}).await.status, 502);
    for bad in ["", "{", "[]", r#"{"callbacks":{"lose":2}}"#, r#"{"callback":{}}"#, r#"{"api":{"slow_ms":-1}}"#] {
        let answer = world.send("PUT", "/sim/faults", &[], bad.as_bytes().to_vec()).await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    world.control("POST", "/sim/reset", &json!({})).await;
    assert_eq!(world.wechat("GET", &target, None).await.status, 404);
}

#[tokio::test]
async fn callbacks_can_be_rendered_without_a_server() {
    let world = World::content().await;
    let (alipay, wechat) = (&world.keys.alipay[0], &world.keys.wechat[0]);
    let mut trade = Trade::new(Product::Qr, "main", "LIB1", 8_888).paid();
    trade.notify_url = Some("https://pay.example.com/v1/callbacks/alipay/main".to_owned());
    let overrides = Overrides { amount_fen: Some(1), ..Overrides::default() };
    let callback = notify::alipay(alipay, &trade, &overrides);
    assert_eq!((callback.method, callback.path.as_str()), ("POST", "/v1/callbacks/alipay/main"));
    assert_eq!(decode(&callback.body)["total_amount"], "0.01");

    let trade = Trade::new(Product::H5, "main", "LIB2", 8_888).paid();
    let headers = |overrides: &Overrides| {
        let callback = notify::wechat(wechat, &trade, overrides);
        let headers = callback.headers.iter();
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        world.wechat_signed(&headers, &callback.body)
    };
    assert!(headers(&Overrides::default()));
    assert!(headers(&Overrides { body: Some("{broken".to_owned()), ..Overrides::default() }));
    for wrong in [Wrong::Tamper, Wrong::Forged, Wrong::WrongSerial, Wrong::Probe] {
        assert!(!headers(&Overrides { wrong: Some(wrong), ..Overrides::default() }), "{wrong:?}");
    }
}
