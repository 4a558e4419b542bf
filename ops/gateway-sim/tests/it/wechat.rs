//! WeChat Pay: orders, refusals, invoke parameters and the notification.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::world::{Callback, World, now};

const NATIVE: &str = "/v3/pay/transactions/native";

fn order(world: &World, out_trade_no: &str) -> Value {
    let merchant = &world.keys.wechat[0];
    json!({
        "appid": merchant.appids[0],
        "mchid": merchant.mchid,
        "description": "大米 <1 kg>",
        "out_trade_no": out_trade_no,
        "notify_url": world.notify_url,
        "amount": { "total": 100, "currency": "CNY" },
        "attach": "a\"b",
    })
}

/// Decrypts with a second reading of the paper, so that the test is no echo.
pub fn open(world: &World, callback: &Callback) -> (String, Value) {
    let envelope: Value = serde_json::from_slice(&callback.body).unwrap();
    let resource = &envelope["resource"];
    assert_eq!(resource["algorithm"], "AEAD_AES_256_GCM");
    let key = world.read("keys/wechat_main_apiv3_key");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(resource["nonce"].as_str().unwrap().as_bytes()).unwrap();
    let associated = Aad::from(resource["associated_data"].as_str().unwrap().as_bytes());
    let mut text = STANDARD.decode(resource["ciphertext"].as_str().unwrap()).unwrap();
    let open = serde_json::from_slice(key.open_in_place(nonce, associated, &mut text).unwrap()).unwrap();
    (envelope["event_type"].as_str().unwrap().to_owned(), open)
}

#[tokio::test]
async fn a_native_order_is_paid_queried_and_notified() {
    let mut world = World::content().await;
    let (number, encoded) = ("NATIVE|1*", "NATIVE%7C1*");
    let order = order(&world, number);
    let first = world.wechat("POST", NATIVE, Some(&order)).await.json();
    let second = world.wechat("POST", NATIVE, Some(&order)).await.json();
    assert_ne!(first, second, "a repeat gives a fresh code");
    let query = format!("/v3/pay/transactions/out-trade-no/{encoded}?mchid={}", world.keys.wechat[0].mchid);
    assert_eq!(world.wechat("GET", &query, None).await.json()["trade_state"], "NOTPAY");
    world.pay("wechat", encoded).await;

    let callback = world.callback().await;
    assert!(world.wechat_signed(&callback.headers, &callback.body));
    let (event, reported) = open(&world, &callback);
    assert_eq!(event, "TRANSACTION.SUCCESS");
    assert_eq!(
        reported["amount"],
        json!({ "total": 100, "payer_total": 100, "currency": "CNY", "payer_currency": "CNY" })
    );
    assert_eq!((reported["attach"].as_str(), reported["trade_type"].as_str()), (Some("a\"b"), Some("NATIVE")));
    assert_eq!(world.wechat("GET", &query, None).await.json(), reported);
    let by_id = format!(
        "/v3/pay/transactions/id/{}?mchid={}",
        reported["transaction_id"].as_str().unwrap(),
        world.keys.wechat[0].mchid
    );
    assert_eq!(world.wechat("GET", &by_id, None).await.json(), reported);
    assert_eq!(world.wechat("POST", NATIVE, Some(&order)).await.json()["code"], "ORDER_PAID");
}

#[tokio::test]
async fn a_closed_order_stays_closed_and_a_changed_repeat_is_refused() {
    let world = World::content().await;
    let good = order(&world, "CLOSE1");
    world.wechat("POST", NATIVE, Some(&good)).await;
    let mut other = good.clone();
    other["amount"]["total"] = json!(101);
    let refused = world.wechat("POST", NATIVE, Some(&other)).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (403, Some("OUT_TRADE_NO_USED")));
    assert_eq!(world.wechat("POST", "/v3/pay/transactions/app", Some(&good)).await.status, 403);

    let close = "/v3/pay/transactions/out-trade-no/CLOSE1/close";
    for _ in 0..2 {
        let closed = world.wechat("POST", close, Some(&json!({ "mchid": world.keys.wechat[0].mchid }))).await;
        assert_eq!((closed.status, closed.text.as_str()), (204, ""));
    }
    let refused = world.wechat("POST", NATIVE, Some(&good)).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (400, Some("ORDER_CLOSED")));
    assert_eq!(world.send("POST", "/sim/trades/wechat/CLOSE1/pay", &[], vec![]).await.status, 409);
}

#[tokio::test]
async fn calls_that_the_gateway_does_not_believe_are_refused() {
    let world = World::content().await;
    let body = order(&world, "AUTH001").to_string().into_bytes();
    let fresh = world.authorization("POST", NATIVE, &body, 0);
    let stale = world.authorization("POST", NATIVE, &body, 302);
    let early = world.authorization("POST", NATIVE, &body, -302);
    let other_path = world.authorization("POST", "/v3/pay/transactions/app", &body, 0);
    let other_serial = fresh.replace("serial_no=\"", "serial_no=\"0");
    let other_mchid = fresh.replace("mchid=\"", "mchid=\"9");
    for authorization in [stale, early, other_path, other_serial, other_mchid, "Bearer x".to_owned(), String::new()] {
        let headers = [("authorization", authorization.as_str()), ("accept", "application/json")];
        let answer = world.send("POST", NATIVE, &headers, body.clone()).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (401, Some("SIGN_ERROR")), "{authorization}");
        assert!(!answer.headers.contains_key("wechatpay-signature") && !answer.headers.contains_key("request-id"));
    }
    let headers = [("authorization", fresh.as_str()), ("accept", "application/json")];
    assert_eq!(world.send("POST", NATIVE, &headers, [&body[..], b" "].concat()).await.status, 401);
    let no_agent = [headers[0], headers[1], ("user-agent", "")];
    assert_eq!(world.send("POST", NATIVE, &no_agent, body.clone()).await.json()["code"], "INVALID_REQUEST");
    assert_eq!(world.send("POST", NATIVE, &headers, vec![b'x'; 65_537]).await.status, 413);
    assert_eq!(world.send("POST", NATIVE, &headers, body).await.status, 200);
}

#[tokio::test]
async fn wrong_fields_name_themselves() {
    let world = World::content().await;
    let changes = [
        ("/description", json!(""), "/description"),
        ("/description", json!("米".repeat(128)), "/description"),
        ("/attach", json!(null), "/attach"),
        ("/notify_url", json!("http://pay.example.com/n"), "/notify_url"),
        ("/notify_url", json!("https://pay.example.com/n?a=1"), "/notify_url"),
        ("/out_trade_no", json!("ABCDE"), "/out_trade_no"),
        ("/amount/total", json!(0), "/amount/total"),
        ("/amount/total", json!(1.5), "/amount/total"),
        ("/amount/total", json!("1"), "/amount/total"),
        ("/amount/currency", json!("USD"), "/amount/currency"),
        ("/time_expire", json!("2026-01-01 00:00:00"), "/time_expire"),
        ("/payer", json!({ "openid": "o" }), "/payer"),
        ("/unknown", json!(1), "/unknown"),
        ("/scene_info", json!({}), "/scene_info/payer_client_ip"),
    ];
    for (pointer, value, field) in changes {
        let mut order = order(&world, "FIELD01");
        match order.pointer_mut(pointer) {
            Some(place) => *place = value.clone(),
            None => order[&pointer[1..]] = value.clone(),
        }
        let answer = world.wechat("POST", NATIVE, Some(&order)).await;
        let error = answer.json();
        assert_eq!((answer.status, error["code"].as_str()), (400, Some("PARAM_ERROR")), "{pointer} {value}");
        assert_eq!(error["detail"]["field"], field);
    }
    let mut foreign = order(&world, "FIELD01");
    foreign["appid"] = json!(world.keys.wechat[1].appids[0]);
    let answer = world.wechat("POST", NATIVE, Some(&foreign)).await;
    assert_eq!(answer.json()["code"], "APPID_MCHID_NOT_MATCH");
    foreign["appid"] = json!(world.keys.wechat[0].appids[0]);
    foreign["mchid"] = json!(world.keys.wechat[1].mchid);
    assert_eq!(world.wechat("POST", NATIVE, Some(&foreign)).await.json()["code"], "PARAM_ERROR");
    let missing = "/v3/pay/transactions/out-trade-no/NOSUCH1?mchid=";
    let answer = world.wechat("GET", &format!("{missing}{}", world.keys.wechat[0].mchid), None).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some("ORDER_NOT_EXIST")));
    assert_eq!(world.wechat("GET", &format!("{missing}1"), None).await.json()["code"], "PARAM_ERROR");
}

#[tokio::test]
async fn an_invoked_prepay_id_opens_the_cashier() {
    let world = World::content().await;
    let mut body = order(&world, "JSAPI01");
    let refused = world.wechat("POST", "/v3/pay/transactions/jsapi", Some(&body)).await;
    assert_eq!(refused.json()["detail"]["field"], "/payer");
    body["payer"] = json!({ "openid": "oUser" });
    let placed = world.wechat("POST", "/v3/pay/transactions/jsapi", Some(&body)).await.json();
    let package = format!("prepay_id={}", placed["prepay_id"].as_str().unwrap());
    let at = now().unix_timestamp().to_string();
    let key = gateway_sim::crypto::Signer::from_pem(&world.read("keys/wechat_main_merchant_private.pem")).unwrap();
    let sign = key.sign(format!("{}\n{at}\nabc\n{package}\n", body["appid"].as_str().unwrap()).as_bytes());
    let mut params =
        json!({ "timeStamp": at, "nonceStr": "abc", "package": package, "signType": "RSA", "paySign": sign });
    let opened = world.control("POST", "/wechat/invoke", &params).await;
    assert_eq!(opened["cashier"], "/cashier/wechat/JSAPI01?account=main");
    params["nonceStr"] = json!("abd");
    let refused = world.send("POST", "/wechat/invoke", &[], params.to_string().into_bytes()).await;
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn the_wanted_serial_signs_the_answer() {
    let world = World::content().await;
    let body = order(&world, "SERIAL1").to_string().into_bytes();
    let second = world.keys.wechat[0].signing_keys[1].0.clone();
    let authorization = world.authorization("POST", NATIVE, &body, 0);
    let headers = [("authorization", authorization.as_str()), ("accept", "*/*"), ("wechatpay-serial", second.as_str())];
    let answer = world.send("POST", NATIVE, &headers, body).await;
    assert_eq!(answer.headers["wechatpay-serial"], second.as_str());
    assert!(world.wechat_signed(&answer.headers, answer.text.as_bytes()));
}
