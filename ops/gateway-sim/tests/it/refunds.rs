//! Refunds: what moves money and what does not, the limits, the notices and the faults.

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gateway_sim::ledger::{Product, RefundState, Trade};
use gateway_sim::notify::{self, Overrides};
use serde_json::{Value, json};

use crate::wechat::open;
use crate::world::{Callback, Pairs, World, decode, join, uuid};

pub const REFUNDS: &str = "/v3/refund/domestic/refunds";

pub async fn alipay_paid(world: &mut World) -> String {
    let number = uuid();
    let order = json!({
        "out_trade_no": number, "total_amount": "3.00", "subject": "x", "product_code": "QR_CODE_OFFLINE",
    });
    world.node(&world.alipay("alipay.trade.precreate", &order, |_| {}).await);
    world.pay("alipay", &number).await;
    world.callback().await;
    number
}

pub async fn wechat_paid(world: &mut World) -> String {
    let number = wechat_unpaid(world).await;
    world.pay("wechat", &number).await;
    world.callback().await;
    number
}

pub async fn wechat_unpaid(world: &World) -> String {
    let number = uuid();
    let merchant = &world.keys.wechat[0];
    let order = json!({
        "appid": merchant.appids[0], "mchid": merchant.mchid, "description": "x", "out_trade_no": number,
        "notify_url": world.notify_url, "amount": { "total": 300 },
    });
    assert_eq!(world.wechat("POST", "/v3/pay/transactions/native", Some(&order)).await.status, 200);
    number
}

pub async fn refund_alipay(world: &World, number: &str, request: Option<&str>, yuan: &str) -> Value {
    let mut biz = json!({ "out_trade_no": number, "refund_amount": yuan });
    if let Some(request) = request {
        biz["out_request_no"] = json!(request);
    }
    // The gateway wants 3 s between two refunds.
    world.control("POST", "/sim/refunds/age", &json!({ "seconds": 3 })).await;
    world.node(&world.alipay("alipay.trade.refund", &biz, |_| {}).await)
}

pub async fn query_alipay(world: &World, number: &str, request: &str) -> Value {
    let biz = json!({ "out_trade_no": number, "out_request_no": request });
    world.node(&world.alipay("alipay.trade.fastpay.refund.query", &biz, |_| {}).await)
}

pub fn refund_body(world: &World, number: &str, refund: &str, fen: i64) -> Value {
    json!({
        "out_trade_no": number, "out_refund_no": refund, "notify_url": world.notify_url, "reason": "破损",
        "amount": { "refund": fen, "total": 300, "currency": "CNY" },
    })
}

pub async fn refund_wechat(world: &World, body: &Value) -> (u16, Value) {
    let answer = world.wechat("POST", REFUNDS, Some(body)).await;
    (answer.status, answer.json())
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["code"].as_str().or(answer.1["status"].as_str()).unwrap())
}

pub async fn trade(world: &World, gateway: &str, number: &str) -> Value {
    world.control("GET", &format!("/sim/trades/{gateway}/{number}"), &json!({})).await
}

/// The next notice of WeChat Pay: its event, and what it tells.
pub async fn notice(world: &mut World) -> (String, Value) {
    let callback = world.callback().await;
    open(world, &callback)
}

/// The next notice of Alipay, verified.
pub async fn fields(world: &mut World) -> Pairs {
    let callback = world.callback().await;
    let mut fields = decode(&callback.body);
    let sign = fields.remove("sign").unwrap();
    fields.remove("sign_type").unwrap();
    assert!(world.alipay_key().accepts(join(&fields).as_bytes(), &sign));
    fields
}

#[tokio::test]
async fn alipay_says_what_moved_and_what_was_returned_in_all() {
    let mut world = World::content().await;
    let number = alipay_paid(&mut world).await;
    assert_eq!(query_alipay(&world, &number, "R1").await, json!({ "code": "10000", "msg": "Success" }));
    let first = refund_alipay(&world, &number, Some("R1"), "1.00").await;
    assert_eq!((&first["fund_change"], &first["refund_fee"]), (&json!("Y"), &json!("1.00")));
    let reported = fields(&mut world).await;
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_SUCCESS", "1.00"));
    assert_eq!((reported["out_biz_no"].as_str(), reported["total_amount"].as_str()), ("R1", "3.00"));
    assert_eq!((reported["gmt_refund"].len(), reported.contains_key("gmt_close")), (21, false));
    let again = refund_alipay(&world, &number, Some("R1"), "1.00").await;
    assert_eq!((&again["fund_change"], &again["refund_fee"]), (&json!("N"), &json!("1.00")));
    let other = refund_alipay(&world, &number, Some("R1"), "1.01").await;
    assert_eq!(other["sub_code"], "ACQ.DISCORDANT_REPEAT_REQUEST");
    let over = refund_alipay(&world, &number, Some("R2"), "2.01").await;
    assert_eq!(over["sub_code"], "ACQ.REASON_TRADE_REFUND_FEE_ERR");

    let rest = refund_alipay(&world, &number, Some("R2"), "2.00").await;
    assert_eq!((&rest["fund_change"], &rest["refund_fee"]), (&json!("Y"), &json!("3.00")));
    let reported = fields(&mut world).await;
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_CLOSED", "3.00"));
    assert!(reported.contains_key("gmt_close") && reported.contains_key("gmt_payment"));
    let found = query_alipay(&world, &number, "R2").await;
    assert_eq!((&found["refund_status"], &found["refund_amount"]), (&json!("REFUND_SUCCESS"), &json!("2.00")));
    let query = world.alipay("alipay.trade.query", &json!({ "out_trade_no": number }), |_| {}).await;
    let query = world.node(&query);
    assert_eq!(query["trade_status"], "TRADE_CLOSED");
    assert!(query["send_pay_date"].is_string());
    let more = refund_alipay(&world, &number, Some("R3"), "0.01").await;
    assert_eq!(more["sub_code"], "ACQ.TRADE_HAS_CLOSE");

    let books = trade(&world, "alipay", &number).await;
    assert_eq!((&books["refunded_fen"], &books["state"]), (&json!(300), &json!("paid")));
    assert_eq!(books["violations"], json!({ "other_parameters": 1, "over_total": 2 }));
    assert!(books["refunds"].as_array().unwrap().iter().all(|refund| refund["effects"] == 1));
}

#[tokio::test]
async fn alipay_swallows_a_second_refund_without_a_number() {
    let mut world = World::content().await;
    let number = alipay_paid(&mut world).await;
    assert_eq!(refund_alipay(&world, &number, None, "1.00").await["fund_change"], "Y");
    let second = refund_alipay(&world, &number, None, "0.50").await;
    assert_eq!((&second["fund_change"], &second["refund_fee"]), (&json!("N"), &json!("1.00")));
    assert_eq!(query_alipay(&world, &number, &number).await["refund_status"], "REFUND_SUCCESS");
    assert_eq!(trade(&world, "alipay", &number).await["violations"], json!({ "no_request_no": 1 }));
}

#[tokio::test]
async fn alipay_refuses_what_has_nothing_to_give() {
    let mut world = World::content().await;
    assert_eq!(refund_alipay(&world, "NOSUCH", Some("R"), "1.00").await["sub_code"], "ACQ.TRADE_NOT_EXIST");
    let number = alipay_paid(&mut world).await;
    let unpaid = uuid();
    let order = json!({
        "out_trade_no": unpaid, "total_amount": "3.00", "subject": "x", "product_code": "QR_CODE_OFFLINE",
    });
    world.alipay("alipay.trade.precreate", &order, |_| {}).await;
    assert_eq!(refund_alipay(&world, &unpaid, Some("R"), "1.00").await["sub_code"], "ACQ.TRADE_NOT_EXIST");
    world.control("POST", &format!("/sim/trades/alipay/{unpaid}/open"), &json!({})).await;
    assert_eq!(refund_alipay(&world, &unpaid, Some("R"), "1.00").await["sub_code"], "ACQ.TRADE_STATUS_ERROR");

    world.control("PUT", "/sim/balances/alipay/main", &json!({ "fen": 99 })).await;
    let poor = refund_alipay(&world, &number, Some("R"), "1.00").await;
    assert_eq!(poor["sub_code"], "ACQ.SELLER_BALANCE_NOT_ENOUGH");
    world.control("PUT", "/sim/balances/alipay/main", &json!({ "fen": null })).await;
    world.control("PUT", "/sim/faults", &json!({ "refund": { "processing_ms": 60_000 } })).await;
    assert_eq!(refund_alipay(&world, &number, Some("R"), "1.00").await["fund_change"], "N");
    assert_eq!(query_alipay(&world, &number, "R").await["refund_status"], json!(null));
    world.control("POST", &format!("/sim/trades/alipay/{number}/refunds/R/finish"), &json!({})).await;
    assert_eq!(query_alipay(&world, &number, "R").await["refund_status"], "REFUND_SUCCESS");
    world.control("POST", &format!("/sim/trades/alipay/{number}/age"), &json!({ "days": 366 })).await;
    let late = refund_alipay(&world, &number, Some("LATE"), "1.00").await;
    assert_eq!(late["sub_code"], "ACQ.TRADE_HAS_FINISHED");
}

#[tokio::test]
async fn wechat_accepts_processes_and_tells() {
    let mut world = World::content().await;
    let number = wechat_paid(&mut world).await;
    let body = refund_body(&world, &number, "R@1", 100);
    let target = format!("{REFUNDS}/R%401");
    let missing = world.wechat("GET", &target, None).await;
    assert_eq!((missing.status, missing.json()["code"].as_str()), (404, Some("RESOURCE_NOT_EXISTS")));
    let accepted = refund_wechat(&world, &body).await;
    assert_eq!(code(&accepted), (200, "PROCESSING"));
    assert!(accepted.1.get("success_time").is_none());

    let callback = world.callback().await;
    assert!(world.wechat_signed(&callback.headers, &callback.body));
    let (event, reported) = open(&world, &callback);
    assert_eq!((event.as_str(), reported["refund_status"].as_str()), ("REFUND.SUCCESS", Some("SUCCESS")));
    let amount = json!({ "total": 300, "refund": 100, "payer_total": 300, "payer_refund": 100 });
    assert_eq!((&reported["amount"], reported.get("status"), reported.get("appid")), (&amount, None, None));
    let found = world.wechat("GET", &target, None).await.json();
    assert_eq!((&found["status"], &found["success_time"]), (&json!("SUCCESS"), &reported["success_time"]));
    assert_eq!(code(&refund_wechat(&world, &body).await), (200, "SUCCESS"), "a repeat shows what is");
    let mut other = body.clone();
    other["amount"]["refund"] = json!(101);
    assert_eq!(code(&refund_wechat(&world, &other).await), (400, "INVALID_REQUEST"));

    let query = format!("/v3/pay/transactions/out-trade-no/{number}?mchid={}", world.keys.wechat[0].mchid);
    assert_eq!(world.wechat("GET", &query, None).await.json()["trade_state"], "REFUND");
    let books = trade(&world, "wechat", &number).await;
    assert_eq!((&books["refunded_fen"], &books["refunds"][0]["effects"]), (&json!(100), &json!(1)));
    let again = format!("/sim/trades/wechat/{number}/notify?refund=R%401");
    assert_eq!(world.control("POST", &again, &json!({ "amount_fen": 7 })).await["accepted"], true);
    assert_eq!(notice(&mut world).await.1["amount"]["refund"], 7);
}

#[tokio::test]
async fn wechat_keeps_its_limits() {
    let mut world = World::at_speed(30.0, |_| (StatusCode::OK, "success")).await;
    let number = wechat_paid(&mut world).await;
    let refund = async |refund: &str, fen| refund_wechat(&world, &refund_body(&world, &number, refund, fen)).await;
    assert_eq!(code(&refund("OVER", 301).await), (400, "INVALID_REQUEST"));
    world.control("PUT", "/sim/balances/wechat/main", &json!({ "fen": 0 })).await;
    assert_eq!(code(&refund("R1", 100).await), (403, "NOT_ENOUGH"));
    world.control("PUT", "/sim/balances/wechat/main", &json!({ "fen": 200 })).await;
    assert_eq!(code(&refund("R1", 100).await), (200, "PROCESSING"));
    assert_eq!(code(&refund("R2", 100).await), (429, "FREQUENCY_LIMITED"), "a minute is 2 s here");
    world.control("POST", "/sim/refunds/age", &json!({ "seconds": 3 })).await;
    assert_eq!(code(&refund("R2", 100).await), (200, "PROCESSING"));
    assert_eq!(world.control("GET", "/sim/balances/wechat/main", &json!({})).await, json!({ "fen": 0 }));
    let mut total = refund_body(&world, &number, "R3", 1);
    total["amount"]["total"] = json!(301);
    assert_eq!(code(&refund_wechat(&world, &total).await), (400, "INVALID_REQUEST"));
    total["amount"]["currency"] = json!("USD");
    assert_eq!(code(&refund_wechat(&world, &total).await), (400, "PARAM_ERROR"));
    let unpaid = wechat_unpaid(&world).await;
    for number in [unpaid.as_str(), "NOSUCH01"] {
        let answer = refund_wechat(&world, &refund_body(&world, number, "R4", 1)).await;
        assert_eq!(code(&answer), (404, "RESOURCE_NOT_EXISTS"));
    }
    world.control("POST", &format!("/sim/trades/wechat/{number}/age"), &json!({ "days": 366 })).await;
    assert_eq!(code(&refund("R5", 1).await), (400, "TRADE_OVERDUE"));
    let books = trade(&world, "wechat", &number).await;
    assert_eq!(books["violations"], json!({ "other_total": 1, "over_total": 1, "too_old": 1, "too_soon": 1 }));
}

#[tokio::test]
async fn a_refund_that_cannot_be_delivered_goes_another_way() {
    let mut world = World::content().await;
    world.control("PUT", "/sim/faults", &json!({ "refund": { "abnormal": 1 } })).await;
    let number = wechat_paid(&mut world).await;
    let accepted = refund_wechat(&world, &refund_body(&world, &number, "R1", 100)).await.1;
    assert_eq!(notice(&mut world).await.0, "REFUND.ABNORMAL");
    let target = format!("{REFUNDS}/{}/apply-abnormal-refund", accepted["refund_id"].as_str().unwrap());
    let mut body = json!({
        "out_refund_no": "R1", "type": "USER_BANK_CARD", "bank_type": "ICBC_DEBIT",
        "bank_account": "6222", "real_name": "张三",
    });
    assert_eq!(world.wechat("POST", &target, Some(&body)).await.status, 400, "in plain text, under no serial");
    for (name, value) in [("bank_account", "6222"), ("real_name", "张三")] {
        body[name] = json!(seal(&world, value));
    }
    let bytes = body.to_string().into_bytes();
    let authorization = world.authorization("POST", &target, &bytes, 0);
    let serial = world.keys.wechat[0].signing_keys[0].0.clone();
    let headers = [("authorization", authorization.as_str()), ("accept", "*/*"), ("wechatpay-serial", serial.as_str())];
    let answer = world.send("POST", &target, &headers, bytes).await;
    assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("PROCESSING")), "{}", answer.text);
    assert_eq!(notice(&mut world).await.0, "REFUND.SUCCESS");
    let own = json!({ "out_refund_no": "R1", "type": "MERCHANT_BANK_CARD" });
    assert_eq!(world.wechat("POST", &target, Some(&own)).await.json()["code"], "INVALID_REQUEST");

    world.control("PUT", "/sim/faults", &json!({ "refund": { "closed": 1 } })).await;
    let number = wechat_paid(&mut world).await;
    refund_wechat(&world, &refund_body(&world, &number, "C1", 300)).await;
    assert_eq!(notice(&mut world).await.0, "REFUND.CLOSED");
    let books = trade(&world, "wechat", &number).await;
    assert_eq!((&books["refunded_fen"], &books["refunds"][0]["effects"]), (&json!(0), &json!(0)));
}

fn seal(world: &World, text: &str) -> String {
    let pem = world.read("keys/wechat_main_public_1.pem");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = PublicEncryptingKey::from_der(&STANDARD.decode(body).unwrap()).unwrap();
    let key = OaepPublicEncryptingKey::new(key).unwrap();
    let mut sealed = vec![0; key.ciphertext_size()];
    STANDARD.encode(key.encrypt(&OAEP_SHA1_MGF1SHA1, text.as_bytes(), &mut sealed, None).unwrap())
}

#[tokio::test]
async fn an_answer_is_lost_after_its_effect_and_a_refusal_has_none() {
    let mut world = World::content().await;
    let number = wechat_paid(&mut world).await;
    let fault = async |fault: Value| {
        world.control("PUT", "/sim/faults", &json!({ "scope": number, "refund": fault })).await;
    };
    let body = refund_body(&world, &number, "R1", 100);
    fault(json!({ "rate_limited": 1 })).await;
    assert_eq!(code(&refund_wechat(&world, &body).await), (429, "FREQUENCY_LIMITED"));
    fault(json!({ "error_5xx": 1 })).await;
    assert_eq!(code(&refund_wechat(&world, &body).await), (500, "SYSTEM_ERROR"));
    assert_eq!(world.wechat("GET", &format!("{REFUNDS}/R1"), None).await.status, 404);

    fault(json!({ "effect_then_timeout": 1, "hold_ms": 20, "query_5xx": 1 })).await;
    let bytes = body.to_string().into_bytes();
    let authorization = world.authorization("POST", REFUNDS, &bytes, 0);
    let client = reqwest::Client::builder().no_proxy().user_agent("merchant/1.0").build().unwrap();
    let request = client.post(format!("{}{REFUNDS}", world.url)).body(bytes);
    let request = request.header("authorization", authorization).header("accept", "application/json");
    assert!(request.send().await.is_err(), "the connection is cut");
    assert_eq!(world.wechat("GET", &format!("{REFUNDS}/R1"), None).await.status, 500);
    fault(json!({})).await;
    assert_eq!(world.wechat("GET", &format!("{REFUNDS}/R1"), None).await.status, 200);
    world.callback().await;

    let number = alipay_paid(&mut world).await;
    let fault = async |fault: Value| {
        world.control("PUT", "/sim/faults", &json!({ "scope": number, "refund": fault })).await;
    };
    let biz = json!({ "out_trade_no": number, "out_request_no": "R1", "refund_amount": "1.00" });
    fault(json!({ "rate_limited": 1 })).await;
    assert_eq!(world.node(&world.alipay("alipay.trade.refund", &biz, |_| {}).await)["code"], "40005");
    fault(json!({ "error_5xx_after": 1, "query_lag_ms": 600_000, "no_notice": true })).await;
    assert_eq!(world.alipay("alipay.trade.refund", &biz, |_| {}).await.status, 502);
    assert_eq!(query_alipay(&world, &number, "R1").await["refund_status"], json!(null), "too young");
    fault(json!({})).await;
    assert_eq!(query_alipay(&world, &number, "R1").await["refund_status"], "REFUND_SUCCESS");
    let injected = world.control("GET", "/sim/faults", &json!({})).await["injected"].clone();
    assert_eq!(
        injected,
        json!({
            "refund_rate_limited": 2, "refund_error_5xx": 1, "refund_effect_then_timeout": 1,
            "refund_error_5xx_after": 1, "refund_query_5xx": 1,
        })
    );
    let refunds = world.control("GET", "/sim/refunds?state=success", &json!({})).await;
    assert_eq!(refunds.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_close_meets_a_payment() {
    let mut world = World::content().await;
    world.control("PUT", "/sim/faults", &json!({ "api": { "pay_before_close": 1 } })).await;
    let number = wechat_unpaid(&world).await;
    let close = format!("/v3/pay/transactions/out-trade-no/{number}/close");
    let body = json!({ "mchid": world.keys.wechat[0].mchid });
    assert_eq!(world.wechat("POST", &close, Some(&body)).await.json()["code"], "ORDER_PAID");
    world.callback().await;
    let number = uuid();
    let order = json!({
        "out_trade_no": number, "total_amount": "3.00", "subject": "x", "product_code": "QR_CODE_OFFLINE",
    });
    world.alipay("alipay.trade.precreate", &order, |_| {}).await;
    let close = world.alipay("alipay.trade.close", &json!({ "out_trade_no": number }), |_| {}).await;
    assert_eq!(world.node(&close)["sub_code"], "ACQ.TRADE_STATUS_ERROR");
    assert_eq!(decode(&world.callback().await.body)["trade_status"], "TRADE_SUCCESS");
}

#[tokio::test]
async fn the_notice_of_a_refund_overtakes_that_of_the_payment() {
    let mut world = World::content().await;
    world.control("PUT", "/sim/faults", &json!({ "callbacks": { "refund_first": true } })).await;
    let number = wechat_unpaid(&world).await;
    world.pay("wechat", &number).await;
    refund_wechat(&world, &refund_body(&world, &number, "R1", 300)).await;
    assert_eq!(notice(&mut world).await.0, "REFUND.SUCCESS");
    let (event, reported) = notice(&mut world).await;
    assert_eq!((event.as_str(), reported["trade_state"].as_str()), ("TRANSACTION.SUCCESS", Some("SUCCESS")));
}

#[tokio::test]
async fn refund_notices_can_be_rendered_without_a_server() {
    let world = World::content().await;
    let paid = |product| {
        let mut trade = Trade::new(product, "main", "LIB1", 300).paid();
        trade.notify_url = Some("https://pay.example.com/v1/callbacks/any/main".to_owned());
        trade
    };
    let partly = paid(Product::Qr).refunded("R1", 100, RefundState::Success);
    let reported = decode(&notify::alipay(&world.keys.alipay[0], &partly, &Overrides::default()).body);
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_SUCCESS", "1.00"));
    let wholly = partly.refunded("R2", 200, RefundState::Success);
    let reported = decode(&notify::alipay(&world.keys.alipay[0], &wholly, &Overrides::default()).body);
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_CLOSED", "3.00"));
    let first = wholly.telling_of("R1").unwrap();
    let reported = decode(&notify::alipay(&world.keys.alipay[0], &first, &Overrides::default()).body);
    assert_eq!(reported["out_biz_no"], "R1");

    for state in [RefundState::Success, RefundState::Abnormal, RefundState::Closed] {
        let trade = paid(Product::Native).refunded("R1", 100, state);
        let callback = notify::wechat(&world.keys.wechat[0], &trade, &Overrides::default());
        assert_eq!(callback.path, "/v1/callbacks/any/main");
        let headers = callback.headers.iter();
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let (event, reported) = open(&world, &Callback { headers, body: callback.body });
        assert_eq!(
            (event, reported["refund_status"].as_str()),
            (format!("REFUND.{}", state.wechat()), Some(state.wechat()))
        );
        assert_eq!(reported.get("success_time").is_some(), state == RefundState::Success);
    }
}

#[tokio::test]
async fn a_number_that_is_paid_twice_has_two_trades_and_each_is_returned_by_its_own_number() {
    let mut world = World::content().await;
    let number = wechat_paid(&mut world).await;
    let path = format!("/sim/trades/wechat/{number}/pay-again");
    let again = world.control("POST", &path, &json!({})).await;
    world.callback().await;
    let first = trade(&world, "wechat", &number).await;
    assert_ne!(first["trade_no"], again["trade_no"]);
    let both = [&first, &again].map(|trade| trade["trade_no"].as_str().unwrap().to_owned());
    for (n, transaction_id) in both.iter().enumerate() {
        let mut body = refund_body(&world, &number, &format!("R{n}"), 300);
        body["transaction_id"] = json!(transaction_id);
        assert_eq!(code(&refund_wechat(&world, &body).await), (200, "PROCESSING"), "{n}");
        world.callback().await;
    }
    for nth in 0..2 {
        let view = world.control("GET", &format!("/sim/trades/wechat/{number}?nth={nth}"), &json!({})).await;
        assert_eq!((&view["refunded_fen"], &view["violations"]), (&json!(300), &json!({})), "{view}");
    }
    // What waits for its buyer cannot be paid again, and a closed one gives way to the payment after it.
    let waiting = wechat_unpaid(&world).await;
    let path = format!("/sim/trades/wechat/{waiting}");
    assert_eq!(world.send("POST", &format!("{path}/pay-again"), &[], b"{}".to_vec()).await.status, 409);
    world.control("POST", &format!("{path}/close"), &json!({})).await;
    world.control("POST", &format!("{path}/pay-again"), &json!({ "notify": false })).await;
    let merchant = &world.keys.wechat[0];
    let query = format!("/v3/pay/transactions/out-trade-no/{waiting}?mchid={}", merchant.mchid);
    assert_eq!(world.wechat("GET", &query, None).await.json()["trade_state"], "SUCCESS");
}
