//! The notifications of payments and refunds: an encrypted resource in a signed envelope.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::answer::request_id;
use super::contents::{reported_refund, transaction};
use super::sign::{SCHEME, answer_message};
use crate::callback::{Overrides, SignedCallback, Wrong};
use crate::clock;
use crate::crypto::{ALPHANUMERIC, DIGITS, Signer, random_text, seal};
use crate::json::set;
use crate::keys::WechatMerchant;
use crate::ledger::{RefundState, Trade};

/// The notification of a trade's last event, signed now.
#[must_use]
pub fn render(merchant: &WechatMerchant, trade: &Trade, overrides: &Overrides) -> SignedCallback {
    let mut body = match &overrides.body {
        Some(body) => body.clone().into_bytes(),
        None => envelope(merchant, trade, overrides).to_string().into_bytes(),
    };
    let sent = overrides.at.unwrap_or_else(|| clock::now().unix_timestamp()).to_string();
    let nonce = random_text(32, ALPHANUMERIC);
    let signing = merchant.signing_key(overrides.sign_with.as_deref());
    let (serial, key) = (&signing.0, &signing.1);
    let (serial, key): (String, &Signer) = match overrides.wrong {
        Some(Wrong::WrongSerial) => (format!("PUB_KEY_ID_{}", random_text(34, DIGITS)), &merchant.stranger),
        Some(Wrong::Forged) => (serial.clone(), &merchant.stranger),
        _ => (serial.clone(), key),
    };
    let mut signature = key.sign(&answer_message(&sent, &nonce, &body));
    match overrides.wrong {
        Some(Wrong::Probe) => signature = format!("WECHATPAY/SIGNTEST/{signature}"),
        Some(Wrong::Tamper) => tamper(&mut body),
        _ => {}
    }
    let headers = [
        ("Content-Type", "application/json".to_owned()),
        ("Accept", "*/*".to_owned()),
        ("User-Agent", "Mozilla/4.0".to_owned()),
        ("Request-ID", request_id()),
        ("Wechatpay-Nonce", nonce),
        ("Wechatpay-Serial", serial),
        ("Wechatpay-Signature", signature),
        ("Wechatpay-Signature-Type", SCHEME.to_owned()),
        ("Wechatpay-Timestamp", sent),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    let mut callback = SignedCallback::new(trade.callback_url(), headers, body);
    callback.apply(&overrides.headers);
    callback
}

/// The contents of a notification.
struct Contents {
    kind: &'static str,
    event: String,
    summary: &'static str,
    at: OffsetDateTime,
    resource: Value,
}

/// The contents of the last notice, and the pointers to its amounts.
fn tell(merchant: &WechatMerchant, trade: &Trade) -> (Contents, [&'static str; 2]) {
    let Some(refund) = trade.reported_refund() else {
        let contents = Contents {
            kind: "transaction",
            event: "TRANSACTION.SUCCESS".to_owned(),
            summary: "支付成功",
            at: trade.paid_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            resource: transaction(merchant, trade),
        };
        return (contents, ["/amount/total", "/amount/payer_total"]);
    };
    let contents = Contents {
        kind: "refund",
        event: format!("REFUND.{}", refund.state.wechat()),
        summary: match refund.state {
            RefundState::Abnormal => "退款异常",
            RefundState::Closed => "退款关闭",
            _ => "退款成功",
        },
        at: refund.success_at.unwrap_or(refund.created_at),
        resource: reported_refund(merchant, trade, refund),
    };
    (contents, ["/amount/refund", "/amount/payer_refund"])
}

fn envelope(merchant: &WechatMerchant, trade: &Trade, overrides: &Overrides) -> Value {
    let (contents, amounts) = tell(merchant, trade);
    let mut resource = contents.resource;
    if let Some(amount_fen) = overrides.amount_fen {
        for pointer in amounts {
            set(&mut resource, pointer, Some(json!(amount_fen)));
        }
    }
    for (pointer, value) in &overrides.fields {
        set(&mut resource, pointer, value.clone());
    }
    let nonce = random_text(12, ALPHANUMERIC);
    let mut key_nonce = [0; 12];
    key_nonce.copy_from_slice(nonce.as_bytes());
    let ciphertext = seal(&merchant.apiv3_key, &key_nonce, contents.kind.as_bytes(), resource.to_string().as_bytes());
    let notice = trade.notices.last();
    let id = overrides.id.as_ref().or(notice.map(|notice| &notice.id));
    let mut envelope = json!({
        "id": id,
        "create_time": clock::wechat(contents.at),
        "resource_type": "encrypt-resource",
        "event_type": contents.event,
        "summary": contents.summary,
        "resource": {
            "original_type": contents.kind,
            "algorithm": "AEAD_AES_256_GCM",
            "ciphertext": ciphertext,
            "associated_data": contents.kind,
            "nonce": nonce,
        },
    });
    for (pointer, value) in &overrides.envelope {
        set(&mut envelope, pointer, value.clone());
    }
    envelope
}

/// Changes the last digit of the body: it is still JSON, but no longer what was signed.
fn tamper(body: &mut [u8]) {
    if let Some(digit) = body.iter_mut().rev().find(|byte| byte.is_ascii_digit()) {
        *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
    }
}
