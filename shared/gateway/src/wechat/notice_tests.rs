//! What WeChat Pay posts: encrypted the same way, then read or refused.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::{Fact, Merchant};
use proptest::prelude::*;
use time::macros::datetime;

use crate::wechat::tests::{APIV3, NOW, account};
use crate::wechat::*;

fn read(body: &[u8]) -> Result<Notification, CallbackError> {
    static WECHAT: std::sync::OnceLock<Wechat> = std::sync::OnceLock::new();
    let callback = Callback {
        method: PaymentMethod::Wechat,
        account: AccountName::parse("main").unwrap(),
        headers: Vec::new(),
        body: Bytes::copy_from_slice(body),
        received_at: NOW,
        job_id: None,
    };
    let wechat = WECHAT.get_or_init(|| account("https://api.example"));
    wechat.read(&Verified::new(callback), NOW).map(Verified::into_inner)
}

/// An envelope around a text, encrypted as WeChat Pay does it.
fn sealed(event: &str, plaintext: &[u8]) -> String {
    let cipher = Aes256Gcm::new_from_slice(APIV3.as_bytes()).unwrap();
    let payload = Payload { msg: plaintext, aad: b"transaction" };
    let ciphertext = STANDARD.encode(cipher.encrypt(b"twelve bytes".into(), payload).unwrap());
    serde_json::json!({
        "id": "EV-1", "create_time": "2026-01-05T10:21:10+08:00", "event_type": event,
        "resource": {
            "algorithm": "AEAD_AES_256_GCM", "nonce": "twelve bytes", "associated_data": "transaction",
            "ciphertext": ciphertext,
        },
    })
    .to_string()
}

const PAID: &str = r#"{"mchid":"1900000109","appid":"wxnative","out_trade_no":"ORD_01","transaction_id":"42","trade_state":"SUCCESS","amount":{"total":100},"success_time":"2026-01-05T10:21:08+08:00"}"#;

#[test]
fn a_notice_names_both_the_merchant_and_one_of_its_apps() {
    let merchant = |text: &str| read(sealed("TRANSACTION.SUCCESS", text.as_bytes()).as_bytes()).unwrap().merchant;
    assert_eq!(merchant(PAID), Merchant::Ours);
    assert_eq!(merchant(&PAID.replace("wxnative", "wxapp")), Merchant::Ours);
    for other in [PAID.replace("appid", "x"), PAID.replace("1900000109", "1"), PAID.replace("mchid", "x")] {
        assert!(matches!(merchant(&other), Merchant::Other(_)), "{other}");
    }
    let before = merchant(&PAID.replace("wxnative", "wxbefore"));
    assert!(matches!(&before, Merchant::OtherApp { app, .. } if app == "wxbefore"), "{before:?}");
}

#[test]
fn a_notice_tells_the_same_without_any_one_of_its_optional_fields() {
    // Source: WeChat Pay APIv3, D:4012791861, read 2025-11-20: the fields that the page does not call always present.
    let optional = [
        "trade_type",
        "trade_state_desc",
        "bank_type",
        "attach",
        "payer",
        "scene_info",
        "promotion_detail",
        "success_time",
        "amount/payer_total",
        "amount/currency",
        "amount/payer_currency",
    ];
    let whole: serde_json::Value = serde_json::from_str(
        r#"{"mchid":"1900000109","appid":"wxnative","out_trade_no":"ORD_01","transaction_id":"42",
            "trade_type":"NATIVE","trade_state":"SUCCESS","trade_state_desc":"支付成功","bank_type":"CMC_DEBIT",
            "attach":"x","success_time":"2026-01-05T10:21:08+08:00","payer":{"openid":"o"},
            "amount":{"total":100,"payer_total":90,"currency":"CNY","payer_currency":"CNY"},
            "scene_info":{"device_id":"1"},"promotion_detail":[{"amount":10}]}"#,
    )
    .unwrap();
    let notification_of = |resource: &serde_json::Value| {
        read(sealed("TRANSACTION.SUCCESS", resource.to_string().as_bytes()).as_bytes()).unwrap()
    };
    let all = notification_of(&whole);
    assert!(matches!(&all.fact, Fact::Paid { amount: Some(amount), .. } if amount.fen() == 100), "{all:?}");
    for absent in optional {
        for null in [false, true] {
            let mut without = whole.clone();
            let (place, name) = match absent.split_once('/') {
                Some((outer, name)) => (&mut without[outer], name),
                None => (&mut without, absent),
            };
            let members = place.as_object_mut().unwrap();
            assert!(members.remove(name).is_some(), "{absent}");
            if null {
                members.insert(name.to_owned(), serde_json::Value::Null);
            }
            let notification = notification_of(&without);
            if absent == "success_time" {
                let sent = datetime!(2026-01-05 02:21:10 UTC);
                assert!(
                    matches!(notification.fact, Fact::Paid { paid_at, .. } if paid_at == sent),
                    "the time of the notice"
                );
                assert_eq!(notification.doubt, None);
            } else {
                assert_eq!(notification, all, "{absent}");
            }
        }
    }
    let mut envelope: serde_json::Value =
        serde_json::from_str(&sealed("TRANSACTION.SUCCESS", whole.to_string().as_bytes())).unwrap();
    envelope.as_object_mut().unwrap().remove("create_time");
    assert_eq!(read(envelope.to_string().as_bytes()).unwrap(), all);
}

#[test]
fn a_notice_of_a_refund_tells_the_same_without_any_one_of_its_optional_fields() {
    // Source: WeChat Pay APIv3, "退款结果回调通知", read 2025-11-20: it names no app.
    let whole = r#"{"mchid":"1900000109","transaction_id":"42","out_trade_no":"ORD_01","refund_id":"50","out_refund_no":"RF_1","refund_status":"SUCCESS","success_time":"2026-01-05T10:21:08+08:00","user_received_account":"x","amount":{"total":100,"refund":100,"payer_total":90,"payer_refund":90}}"#;
    let notification_of = |text: &str| read(sealed("REFUND.SUCCESS", text.as_bytes()).as_bytes()).unwrap();
    let all = notification_of(whole);
    assert_eq!(all.merchant, Merchant::Ours);
    for absent in ["user_received_account", "payer_total", "payer_refund"] {
        assert_eq!(notification_of(&whole.replace(&format!("\"{absent}\""), "\"x\"")), all, "{absent}");
    }
    for (absent, kept) in [("success_time", "refund_id"), ("refund_id", "success_time")] {
        let notification = notification_of(&whole.replace(&format!("\"{absent}\""), "\"x\""));
        assert!(
            matches!(&notification.fact, Fact::Refund { report, .. } if report.state == domain::RefundState::Succeeded),
            "{kept} {notification:?}"
        );
    }
}

#[test]
fn what_was_sealed_under_the_key_before_still_opens() {
    let mut wechat = account("https://api.example");
    wechat.account.apiv3_key = aead::ApiV3Key::new("another-key-of-thirty-two-bytes!").unwrap();
    let read = |wechat: &Wechat, body: String| {
        let callback = Callback {
            method: PaymentMethod::Wechat,
            account: AccountName::parse("main").unwrap(),
            headers: Vec::new(),
            body: body.into(),
            received_at: NOW,
            job_id: None,
        };
        wechat.read(&Verified::new(callback), NOW).map(drop)
    };
    let body = || sealed("TRANSACTION.SUCCESS", PAID.as_bytes());
    assert!(matches!(read(&wechat, body()), Err(CallbackError::Unopened(_))), "another key may open it");
    wechat.account.previous_apiv3_key = Some(aead::ApiV3Key::new(APIV3).unwrap());
    assert_eq!(read(&wechat, body()), Ok(()));
    assert!(matches!(read(&wechat, body().replace("twelve bytes", "other  bytes")), Err(CallbackError::Unopened(_))));
}

#[test]
fn an_unknown_event_changes_nothing_even_without_an_order() {
    for (text, order_no) in [(PAID, "ORD_01"), (r#"{"mchid":"1900000109"}"#, ""), ("not JSON", "")] {
        let notification = read(sealed("PROFITSHARING.NEW", text.as_bytes()).as_bytes()).unwrap();
        assert_eq!((notification.fact, notification.order_no.as_str()), (Fact::Nothing, order_no));
    }
    let without = PAID.replace("out_trade_no", "x");
    let read = read(sealed("TRANSACTION.SUCCESS", without.as_bytes()).as_bytes());
    assert!(matches!(read, Err(CallbackError::Undecodable(_))), "{read:?}");
}

#[test]
fn what_cannot_be_opened_or_read_is_an_error() {
    let whole = sealed("TRANSACTION.SUCCESS", PAID.as_bytes());
    assert!(read(whole.as_bytes()).is_ok());
    for body in [
        whole.replace("twelve bytes", "short"),
        whole.replace("twelve bytes", "thirteen bytes"),
        whole.replace("ciphertext\":\"", "ciphertext\":\"!"),
        whole.replace("AEAD_AES_256_GCM", "NONE"),
        whole.replace("\"id\"", "\"no\""),
        whole[..whole.len() - 1].to_owned(),
        "[".repeat(65_536),
        " ".repeat(65_536),
        String::new(),
    ] {
        assert!(matches!(read(body.as_bytes()), Err(CallbackError::Undecodable(_))), "{:.80}", body);
    }
    let changed = whole.replace("\"transaction\"", "\"\"");
    assert!(matches!(read(changed.as_bytes()), Err(CallbackError::Unopened(_))), "{changed:.80}");
}

#[test]
fn what_cannot_be_decrypted_is_not_taken() {
    let wechat = account("https://api.example");
    let takes = |wechat: &Wechat, body: &str| {
        let callback = Callback {
            method: PaymentMethod::Wechat,
            account: AccountName::parse("main").unwrap(),
            headers: Vec::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            received_at: NOW,
            job_id: None,
        };
        wechat.takes(&Verified::new(callback))
    };
    let whole = sealed("TRANSACTION.SUCCESS", PAID.as_bytes());
    assert_eq!(takes(&wechat, &whole), Ok(()));
    for body in [
        whole.replace("\"transaction\"", "\"\""),
        whole.replace("twelve bytes", "other  bytes"),
        whole.replace("twelve bytes", "short"),
        whole.replace("ciphertext\":\"", "ciphertext\":\"!"),
        whole.replace("AEAD_AES_256_GCM", "NONE"),
    ] {
        assert!(matches!(takes(&wechat, &body), Err(CallbackError::Unopened(_))), "{body:.80}");
    }
    let mut later = account("https://api.example");
    later.account.apiv3_key = aead::ApiV3Key::new("another-key-of-thirty-two-bytes!").unwrap();
    assert!(matches!(takes(&later, &whole), Err(CallbackError::Unopened(_))));
    later.account.previous_apiv3_key = Some(aead::ApiV3Key::new(APIV3).unwrap());
    assert_eq!(takes(&later, &whole), Ok(()));
    // Every other authentic message is stored, and a person sees it if it cannot be read.
    assert_eq!(takes(&wechat, "{}"), Ok(()));
}

proptest! {
    #[test]
    fn any_authentic_bytes_are_a_notice_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(read(&body).is_err());
    }

    #[test]
    fn any_sealed_text_is_a_notice_or_an_error(
        event in "(TRANSACTION.SUCCESS|REFUND.SUCCESS|[A-Z.]{0,12})",
        text in "(\\PC{0,60}|\\{(\"(mchid|out_trade_no|transaction_id|amount|trade_state)\":(1|\"\"|null|\\{\\}),?){0,5}\\})",
    ) {
        let _ = read(sealed(&event, text.as_bytes()).as_bytes());
    }
}
