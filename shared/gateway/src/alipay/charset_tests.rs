//! Answers whose texts are in GBK, in another charset, or broken: the codes are still used.

use domain::{Fact, Money, RefundReport, Scene, Subject};
use encoding_rs::{BIG5, Encoding, GB18030, UTF_8, WINDOWS_1252};
use time::macros::datetime;

use crate::alipay::tests::account;
use crate::alipay::*;
use crate::testing::{answering, refund_order};

const NOW: OffsetDateTime = datetime!(2026-01-05 16:20:30 UTC);
const PRIVATE: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem");

/// An answer with exactly these bytes, signed or not.
fn body(method: &str, node: &[u8], signed: bool) -> Vec<u8> {
    let sign = SigningKey::from_pem(PRIVATE).unwrap().sign(node).unwrap();
    let sign = if signed { format!(r#","sign":"{sign}"}}"#) } else { "}".to_owned() };
    [format!(r#"{{"{method}_response":"#).as_bytes(), node, sign.as_bytes()].concat()
}

async fn alipay(method: &str, node: &[u8]) -> Alipay {
    account(&answering(body(method, node, true)).await)
}

fn order_no() -> OrderNo {
    OrderNo::parse("ORD_01").unwrap()
}

async fn precreate(node: &[u8]) -> Result<Payment, GatewayError> {
    let alipay = alipay("alipay_trade_precreate", node).await;
    let order = PrepayOrder {
        order_no: order_no(),
        subject: Subject::parse("月卡").unwrap(),
        amount: Money::from_fen(8880).unwrap(),
        scene: Scene::Qr,
        expires_at: NOW,
        notify_url: "https://pay.example.com/v1/callbacks/alipay/main".to_owned(),
        return_url: None,
        openid: None,
        client_ip: None,
    };
    alipay.prepay(&alipay.prepay_request(&order).unwrap(), NOW).await
}

async fn query(node: &[u8]) -> Result<TradeAnswer, GatewayError> {
    alipay("alipay_trade_query", node).await.query(&order_no(), NOW).await
}

async fn close(node: &[u8]) -> Result<CloseOutcome, GatewayError> {
    alipay("alipay_trade_close", node).await.close(&order_no(), NOW).await
}

async fn refund(node: &[u8]) -> Result<RefundReport, GatewayError> {
    alipay("alipay_trade_refund", node).await.refund(&refund_order(), NOW).await
}

/// A failure whose message is these bytes.
fn failure(code: &str, sub_code: &str, words: &[u8]) -> Vec<u8> {
    let head = format!(r#"{{"code":"{code}","msg":"Business Failed","sub_code":"{sub_code}","sub_msg":""#);
    [head.as_bytes(), words, br#""}"#].concat()
}

fn charsets() -> [&'static Encoding; 4] {
    [GB18030, UTF_8, BIG5, WINDOWS_1252]
}

#[tokio::test]
async fn a_refusal_counts_in_every_charset() {
    for charset in charsets() {
        let words = |text: &str| charset.encode(text).0.into_owned();
        let refused = precreate(&failure("40004", "ACQ.TOTAL_FEE_EXCEED", &words("金额超出上限"))).await;
        assert!(
            matches!(&refused, Err(GatewayError::Refused { code, .. }) if code == "ACQ.TOTAL_FEE_EXCEED"),
            "{refused:?}"
        );
        let none = query(&failure("40004", "ACQ.TRADE_NOT_EXIST", &words("没有这笔交易"))).await.unwrap();
        assert_eq!(none, TradeAnswer::Absent { state: "TRADE_NOT_EXIST".to_owned() });
        let none = close(&failure("40004", "ACQ.TRADE_NOT_EXIST", &words("没有这笔交易"))).await.unwrap();
        assert_eq!(none, CloseOutcome::NoTradeYet);
        let short = refund(&failure("40004", "ACQ.SELLER_BALANCE_NOT_ENOUGH", &words("卖家的钱不够"))).await;
        assert!(matches!(&short, Err(GatewayError::NotNow { .. })), "{short:?}");
        let late = refund(&failure("40004", "ACQ.TRADE_HAS_FINISHED", &words("交易已经结束"))).await;
        assert!(
            matches!(&late, Err(GatewayError::Refused { code, .. }) if code == "ACQ.TRADE_HAS_FINISHED"),
            "{late:?}"
        );
        for busy in [
            precreate(&failure("20000", "aop.unknow-error", &words("系统正忙"))).await.map(drop),
            query(&failure("20000", "aop.unknow-error", &words("系统正忙"))).await.map(drop),
            close(&failure("20000", "aop.unknow-error", &words("系统正忙"))).await.map(drop),
            refund(&failure("20000", "aop.unknow-error", &words("系统正忙"))).await.map(drop),
        ] {
            assert!(matches!(&busy, Err(GatewayError::Unknown(why)) if why.contains("aop.unknow-error")), "{busy:?}");
        }
    }
}

#[tokio::test]
async fn the_words_of_gbk_are_decoded_and_garbage_is_left_out() {
    let words = GB18030.encode("卖家誠的钱不够").0.into_owned();
    let short = refund(&failure("40004", "ACQ.SELLER_BALANCE_NOT_ENOUGH", &words)).await;
    assert!(matches!(&short, Err(GatewayError::NotNow { message, .. }) if message == "卖家誠的钱不够"), "{short:?}");
    for garbage in [&b"\xff\xfe\xff"[..], b"\xe5\x8d", b"\x80\x80\x80", b"a\x01b\n", br"\ud83d", b"\xd5"] {
        let short = refund(&failure("40004", "ACQ.SELLER_BALANCE_NOT_ENOUGH", garbage)).await;
        assert!(matches!(&short, Err(GatewayError::NotNow { .. })), "{garbage:x?} {short:?}");
    }
}

#[tokio::test]
async fn a_success_in_gbk_is_a_success_and_signed_over_its_bytes() {
    for name in ["月卡", "誠品", "誠"] {
        let text = format!(
            r#"{{"code":"10000","store_name":"{name}","trade_no":"2026","out_trade_no":"ORD_01","trade_status":"TRADE_SUCCESS","total_amount":"88.80"}}"#
        );
        let node = GB18030.encode(&text).0.into_owned();
        let trade = query(&node).await.unwrap().found().unwrap().into_inner();
        assert!(
            matches!(trade.fact, Fact::Paid { amount: Some(amount), .. } if amount.fen() == 8880),
            "{name} {trade:?}"
        );
        // The signature does not cover the same text in another encoding.
        let sign = SigningKey::from_pem(PRIVATE).unwrap().sign(text.as_bytes()).unwrap();
        let forged =
            [br#"{"alipay_trade_query_response":"#, &node[..], format!(r#","sign":"{sign}"}}"#).as_bytes()].concat();
        let refused = account(&answering(forged).await).query(&order_no(), NOW).await;
        assert!(matches!(refused, Err(GatewayError::Unknown(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn an_unsigned_refusal_in_gbk_is_as_good_as_one_in_utf_8() {
    let words = GB18030.encode("无效的应用").0.into_owned();
    let node = failure("40002", "isv.invalid-app-id", &words);
    let refused = account(&answering(body("alipay_trade_query", &node, false)).await).query(&order_no(), NOW).await;
    assert!(
        matches!(&refused, Err(GatewayError::Misconfigured { code, .. }) if code == "isv.invalid-app-id"),
        "{refused:?}"
    );
    let number = br#"{"code":40002,"msg":null,"sub_code":"isv.invalid-app-id"}"#;
    let refused = account(&answering(body("alipay_trade_query", number, false)).await).query(&order_no(), NOW).await;
    assert!(matches!(&refused, Err(GatewayError::Misconfigured { .. })), "{refused:?}");
    // An HTML page of a front end is not an answer in any charset.
    let page = GB18030.encode("<html>系统正忙</html>").0.into_owned();
    let none = account(&answering(page).await).query(&order_no(), NOW).await;
    assert!(matches!(none, Err(GatewayError::Unknown(_))), "{none:?}");
}
