//! Refunds that a person makes in a gateway's console. The service learns of them from a notice, from a query, or not at
//! all.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::refunds::{
    REFUNDS, alipay_paid, fields, notice, query_alipay, refund_alipay, refund_body, refund_wechat, trade, wechat_paid,
};
use crate::world::{World, decode, uuid};

/// A refund in the console that works.
async fn console(world: &World, gateway: &str, number: &str, body: Value) -> Value {
    world.control("POST", &format!("/sim/trades/{gateway}/{number}/refunds"), &body).await
}

async fn refused(world: &World, gateway: &str, number: &str, body: Value) -> u16 {
    let target = format!("/sim/trades/{gateway}/{number}/refunds");
    world.send("POST", &target, &[], body.to_string().into_bytes()).await.status
}

async fn state_at_wechat(world: &World, number: &str) -> Value {
    let query = format!("/v3/pay/transactions/out-trade-no/{number}?mchid={}", world.keys.wechat[0].mchid);
    world.wechat("GET", &query, None).await.json()["trade_state"].clone()
}

#[tokio::test]
async fn alipay_tells_of_a_part_and_of_the_whole_with_their_sum() {
    let mut world = World::content().await;
    let number = alipay_paid(&mut world).await;
    let part = console(&world, "alipay", &number, json!({ "amount_fen": 100 })).await;
    let name = part["out_refund_no"].as_str().unwrap().to_owned();
    let reported = fields(&mut world).await;
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_SUCCESS", "1.00"));
    assert_eq!(reported["out_biz_no"], name);
    assert_eq!(query_alipay(&world, &number, &name).await["refund_amount"], "1.00");

    console(&world, "alipay", &number, json!({ "amount_fen": 50, "named": false })).await;
    let reported = fields(&mut world).await;
    assert_eq!((reported["refund_fee"].as_str(), reported.contains_key("out_biz_no")), ("1.50", false));

    // The notice of the service's own refund states the sum of all.
    assert_eq!(refund_alipay(&world, &number, Some("OURS"), "0.50").await["refund_fee"], "2.00");
    assert_eq!(fields(&mut world).await["refund_fee"], "2.00");
    console(&world, "alipay", &number, json!({})).await;
    let reported = fields(&mut world).await;
    assert_eq!((reported["trade_status"].as_str(), reported["refund_fee"].as_str()), ("TRADE_CLOSED", "3.00"));
    let books = trade(&world, "alipay", &number).await;
    let outside: Vec<&Value> = books["refunds"].as_array().unwrap().iter().map(|refund| &refund["console"]).collect();
    assert_eq!(outside, [true, true, false, true]);
    assert_eq!((&books["refunded_fen"], &books["violations"]), (&json!(300), &json!({})));
    assert_eq!(refused(&world, "alipay", &number, json!({})).await, 409);
    assert_eq!(trade(&world, "alipay", &number).await["violations"], json!({}), "the service ran into no limit");
}

#[tokio::test]
async fn wechat_notifies_the_payments_address_or_none() {
    let mut world = World::content().await;
    let number = wechat_paid(&mut world).await;
    let silent = console(&world, "wechat", &number, json!({ "amount_fen": 100, "notify": false })).await;
    assert_eq!((&silent["refund"]["state"], &silent["refund"]["notified"]), (&json!("success"), &json!(0)));
    assert_eq!(state_at_wechat(&world, &number).await, "REFUND");
    let target = format!("{REFUNDS}/{}", silent["out_refund_no"].as_str().unwrap());
    assert_eq!(world.wechat("GET", &target, None).await.json()["amount"]["refund"], 100);

    console(&world, "wechat", &number, json!({ "amount_fen": 50, "out_refund_no": "DESK-1" })).await;
    let (event, reported) = notice(&mut world).await;
    assert_eq!((event.as_str(), reported["out_refund_no"].as_str()), ("REFUND.SUCCESS", Some("DESK-1")));
    assert_eq!(reported["amount"], json!({ "total": 300, "refund": 50, "payer_total": 300, "payer_refund": 50 }));
    for (body, status) in [
        (json!({ "amount_fen": 151 }), 409),
        (json!({ "amount_fen": 0 }), 400),
        (json!({ "amount_fen": 50, "out_refund_no": "DESK-1" }), 200),
        (json!({ "amount": 1 }), 400),
    ] {
        assert_eq!(refused(&world, "wechat", &number, body.clone()).await, status, "{body}");
    }
    // A minute between the refunds of the service does not bind the console, and the other way round.
    let own = refund_wechat(&world, &refund_body(&world, &number, "OURS", 1)).await;
    assert_eq!(own.0, 200, "{own:?}");
    assert_eq!(trade(&world, "wechat", &number).await["violations"], json!({}));
}

#[tokio::test]
async fn a_processing_one_ends_on_request() {
    let mut world = World::at_speed(0.001, |_| (StatusCode::OK, "success")).await;
    let number = wechat_paid(&mut world).await;
    let body = json!({ "amount_fen": 300, "out_refund_no": "DESK-2", "processing": true });
    assert_eq!(console(&world, "wechat", &number, body).await["refund"]["state"], "processing");
    assert_eq!(state_at_wechat(&world, &number).await, "REFUND", "it shows before it is done");
    world
        .control("POST", &format!("/sim/trades/wechat/{number}/refunds/DESK-2/finish"), &json!({ "state": "abnormal" }))
        .await;
    assert_eq!(notice(&mut world).await.0, "REFUND.ABNORMAL");
}

#[tokio::test]
async fn a_return_is_reported_before_its_payment() {
    let mut world = World::content().await;
    let number = uuid();
    let order = json!({
        "out_trade_no": number, "total_amount": "3.00", "subject": "x", "product_code": "QR_CODE_OFFLINE",
    });
    world.node(&world.alipay("alipay.trade.precreate", &order, |_| {}).await);
    world.control("POST", &format!("/sim/trades/alipay/{number}/pay"), &json!({ "notify": false })).await;
    console(&world, "alipay", &number, json!({})).await;
    assert_eq!(decode(&world.callback().await.body)["refund_fee"], "3.00");
    let again = format!("/sim/trades/alipay/{number}/notify?event=paid");
    assert_eq!(world.control("POST", &again, &json!({})).await["accepted"], true);
    let late = decode(&world.callback().await.body);
    assert_eq!((late["trade_status"].as_str(), late.contains_key("refund_fee")), ("TRADE_SUCCESS", false));
    let nothing = world.send("POST", &format!("/sim/trades/alipay/{number}/notify?event=closed"), &[], vec![]).await;
    assert_eq!(nothing.status, 404, "it was never closed");
}
