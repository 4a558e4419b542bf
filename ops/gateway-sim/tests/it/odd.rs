//! Odd words: absent fields, impossible values, other charsets, refusals of choice; and what the merchant asked, counted.

use gateway_sim::ledger::MAX_CODES;
use serde_json::{Value, json};

use crate::refunds::{alipay_paid, wechat_paid};
use crate::wechat::open;
use crate::world::{Answer, World, decode, uuid};

async fn odd(world: &World, scope: &str, odd: Value) {
    world.control("PUT", "/sim/faults", &json!({ "scope": scope, "odd": odd })).await;
}

fn code_order(number: &str) -> Value {
    json!({ "out_trade_no": number, "total_amount": "3.00", "subject": "x", "product_code": "QR_CODE_OFFLINE" })
}

async fn query(world: &World, number: &str) -> Answer {
    world.alipay("alipay.trade.query", &json!({ "out_trade_no": number }), |_| {}).await
}

/// The bytes of the node, whose signature over these very bytes holds.
fn signed_node<'a>(world: &World, answer: &'a Answer) -> &'a [u8] {
    let head = br#"{"alipay_trade_query_response":"#;
    let tail = answer.bytes.windows(9).rposition(|window| window == br#","sign":""#).unwrap();
    let sign = std::str::from_utf8(&answer.bytes[tail + 9..answer.bytes.len() - 2]).unwrap();
    let node = &answer.bytes[head.len()..tail];
    assert!(answer.bytes.starts_with(head) && world.alipay_key().accepts(node, sign), "{answer:?}");
    node
}

#[tokio::test]
async fn fields_are_left_out_and_changed_and_the_signature_holds() {
    let mut world = World::content().await;
    let set = json!({
        "notices": { "seller_id": null, "gmt_payment": "0000-01-01 00:00:00", "/success_time": "9999-12-31T23:59:59-08:00", "/payer": null },
        "answers": { "send_pay_date": null, "total_amount": "3", "no_such_member": "1", "/success_time": null, "/payer/openid": "o" },
    });
    odd(&world, "all", set).await;
    let number = uuid();
    world.node(&world.alipay("alipay.trade.precreate", &code_order(&number), |_| {}).await);
    world.pay("alipay", &number).await;
    let reported = decode(&world.callback().await.body);
    assert_eq!((reported.get("seller_id"), reported["gmt_payment"].as_str()), (None, "0000-01-01 00:00:00"));
    assert!(!reported.contains_key("/success_time"), "a pointer is a word of the other gateway");
    let answer = query(&world, &number).await;
    let node: Value = serde_json::from_slice(signed_node(&world, &answer)).unwrap();
    assert_eq!(
        (node.get("send_pay_date"), node.get("no_such_member"), &node["total_amount"]),
        (None, None, &json!("3"))
    );
    assert_eq!(node["receipt_amount"], "3.00");

    let number = wechat_paid_with(&mut world).await;
    let target = format!("/v3/pay/transactions/out-trade-no/{number}?mchid={}", world.keys.wechat[0].mchid);
    let answer = world.wechat("GET", &target, None).await.json();
    assert_eq!((answer.get("success_time"), &answer["payer"]["openid"]), (None, &json!("o")));
}

/// A paid order whose notice came with the odd fields.
async fn wechat_paid_with(world: &mut World) -> String {
    let number = crate::refunds::wechat_unpaid(world).await;
    world.pay("wechat", &number).await;
    let callback = world.callback().await;
    assert!(world.wechat_signed(&callback.headers, &callback.body));
    let (_, reported) = open(world, &callback);
    assert_eq!((&reported["success_time"], reported.get("payer")), (&json!("9999-12-31T23:59:59-08:00"), None));
    number
}

#[tokio::test]
async fn a_trade_has_its_own_oddities_before_its_account_and_all() {
    let mut world = World::content().await;
    let own = alipay_paid(&mut world).await;
    let other = alipay_paid(&mut world).await;
    odd(&world, "alipay/main", json!({ "answers": { "send_pay_date": null } })).await;
    odd(&world, &own, json!({ "answers": { "trade_no": null } })).await;
    let (own, other) = (world.node(&query(&world, &own).await), world.node(&query(&world, &other).await));
    assert!(own["send_pay_date"].is_string() && own.get("trade_no").is_none());
    assert!(other.get("send_pay_date").is_none() && other["trade_no"].is_string());
}

#[tokio::test]
async fn alipay_answers_in_gbk_with_and_without_its_name_and_in_no_charset() {
    let world = World::content().await;
    // 交易不存在, in GBK.
    let words: &[u8] = &[0xbd, 0xbb, 0xd2, 0xd7, 0xb2, 0xbb, 0xb4, 0xe6, 0xd4, 0xda];
    for (charset, content_type) in
        [("gbk", "text/html;charset=GBK"), ("gbk_unnamed", "text/html"), ("garbage", "text/html;charset=utf-8")]
    {
        odd(&world, "all", json!({ "charset": charset })).await;
        let answer = query(&world, "NOSUCH").await;
        assert_eq!(answer.headers["content-type"], content_type);
        let node = signed_node(&world, &answer);
        assert!(std::str::from_utf8(node).is_err());
        assert_eq!(node.windows(words.len()).any(|window| window == words), charset != "garbage");
        let text = String::from_utf8_lossy(node);
        assert!(text.contains(r#""code":"40004""#) && text.contains(r#""sub_code":"ACQ.TRADE_NOT_EXIST""#), "{text}");
    }
}

#[tokio::test]
async fn calls_are_refused_by_a_code_of_choice() {
    let mut world = World::content().await;
    let number = alipay_paid(&mut world).await;
    let refuse = json!({ "refuse": [{ "call": "prepay", "code": "40004", "sub_code": "ACQ.ACCESS_FORBIDDEN" }] });
    odd(&world, "alipay/main", refuse).await;
    let refused = world.node(&world.alipay("alipay.trade.precreate", &code_order("NEW"), |_| {}).await);
    assert_eq!((&refused["code"], &refused["sub_code"]), (&json!("40004"), &json!("ACQ.ACCESS_FORBIDDEN")));
    assert_eq!(world.node(&query(&world, &number).await)["code"], "10000", "only what was named is refused");

    let number = wechat_paid(&mut world).await;
    let target = format!("/v3/pay/transactions/out-trade-no/{number}?mchid={}", world.keys.wechat[0].mchid);
    for code in ["ORDERNOTEXIST", "RESOURCE_NOT_EXISTS"] {
        odd(&world, &number, json!({ "refuse": [{ "call": "query", "status": 404, "code": code }] })).await;
        let answer = world.wechat("GET", &target, None).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some(code)));
    }
    world.control("DELETE", "/sim/faults", &json!({})).await;
    assert_eq!(world.wechat("GET", &target, None).await.status, 200);
}

#[tokio::test]
async fn alipay_gives_one_number_twenty_codes() {
    let world = World::content().await;
    for nth in 1..=MAX_CODES + 1 {
        let placed = world.node(&world.alipay("alipay.trade.precreate", &code_order("OFTEN"), |_| {}).await);
        let last = nth > MAX_CODES;
        assert_eq!(placed["sub_code"].as_str(), last.then_some("ACQ.APPLY_PC_MERCHANT_CODE_ERROR"), "{nth}");
        assert_eq!(placed.get("qr_code").is_some(), !last);
    }
    let pay = world.pay("alipay", "OFTEN").await;
    assert_eq!(pay["state"], "paid", "the last code that it gave still works");
}

#[tokio::test]
async fn a_merchant_number_has_several_applications() {
    let mut world = World::content().await;
    let appid = "wx2222222222222222";
    let order = json!({
        "appid": appid, "mchid": world.keys.wechat[0].mchid, "description": "x", "out_trade_no": uuid(),
        "notify_url": world.notify_url, "amount": { "total": 300 },
    });
    let answer = world.wechat("POST", "/v3/pay/transactions/native", Some(&order)).await;
    assert_eq!(answer.json()["code"], "APPID_MCHID_NOT_MATCH");
    let bound = world.control("POST", "/sim/keys/wechat/main/appids", &json!({ "appid": appid })).await;
    assert_eq!(bound["appids"], json!([world.keys.wechat[0].appids[0], appid]));
    assert_eq!(world.wechat("POST", "/v3/pay/transactions/native", Some(&order)).await.status, 200);
    world.pay("wechat", order["out_trade_no"].as_str().unwrap()).await;
    let callback = world.callback().await;
    assert_eq!(open(&world, &callback).1["appid"], appid, "a notice names the order's own application");
}

#[tokio::test]
async fn calls_are_counted_by_order_and_kind() {
    let mut world = World::content().await;
    let number = alipay_paid(&mut world).await;
    let other = wechat_paid(&mut world).await;
    query(&world, &number).await;
    query(&world, &number).await;
    query(&world, "NOSUCH").await;
    world.alipay("alipay.trade.query", &json!({ "out_trade_no": number }), |pairs| drop(pairs.remove("sign"))).await;
    let count = async |filter: &str| {
        let view = world.control("GET", &format!("/sim/calls?{filter}"), &json!({})).await;
        view["total"].as_u64().unwrap()
    };
    assert_eq!(count(&format!("out_trade_no={number}&call=query")).await, 2, "what is not signed is no call");
    assert_eq!(count(&format!("out_trade_no={number}")).await, 3);
    assert_eq!(count(&format!("out_trade_no={other}")).await, 1);
    assert_eq!(count("gateway=alipay&call=query").await, 3);
    assert_eq!(count("").await, 5);
    let bad = world.get("/sim/calls?kind=query").await;
    assert_eq!(bad.status, 400, "a filter that does not exist is no filter");
    world.control("DELETE", "/sim/calls", &json!({})).await;
    assert_eq!(count("").await, 0);
}
