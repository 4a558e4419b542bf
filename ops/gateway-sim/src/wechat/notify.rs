//! The payment notification: an encrypted resource in a signed envelope.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::answer::request_id;
use super::api::transaction;
use super::sign::{SCHEME, answer_message};
use crate::clock;
use crate::crypto::{ALPHANUMERIC, DIGITS, Signer, random_text, seal};
use crate::json::set;
use crate::keys::WechatMerchant;
use crate::ledger::Trade;
use crate::notify::{Overrides, SignedCallback, Wrong};

const ASSOCIATED: &str = "transaction";

/// The notification of a payment, signed at this moment.
#[must_use]
pub fn render(merchant: &WechatMerchant, trade: &Trade, overrides: &Overrides) -> SignedCallback {
    let mut body = match &overrides.body {
        Some(body) => body.clone().into_bytes(),
        None => envelope(merchant, trade, overrides).to_string().into_bytes(),
    };
    let sent = overrides.at.unwrap_or_else(|| clock::now().unix_timestamp()).to_string();
    let nonce = random_text(32, ALPHANUMERIC);
    let (serial, key) = merchant.signing_key(overrides.sign_with.as_deref());
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
    let mut callback = SignedCallback::new(trade.notify_url.as_deref(), headers, body);
    callback.apply(&overrides.headers);
    callback
}

fn envelope(merchant: &WechatMerchant, trade: &Trade, overrides: &Overrides) -> Value {
    let mut resource = transaction(merchant, trade);
    if let Some(amount_fen) = overrides.amount_fen {
        set(&mut resource, "/amount/total", Some(json!(amount_fen)));
        set(&mut resource, "/amount/payer_total", Some(json!(amount_fen)));
    }
    for (pointer, value) in &overrides.fields {
        set(&mut resource, pointer, value.clone());
    }
    let nonce = random_text(12, ALPHANUMERIC);
    let mut key_nonce = [0; 12];
    key_nonce.copy_from_slice(nonce.as_bytes());
    let ciphertext = seal(&merchant.apiv3_key, &key_nonce, ASSOCIATED.as_bytes(), resource.to_string().as_bytes());
    let notice = trade.notices.last();
    let id = overrides.id.as_ref().or(notice.map(|notice| &notice.id));
    let mut envelope = json!({
        "id": id,
        "create_time": clock::wechat(trade.paid_at.unwrap_or(OffsetDateTime::UNIX_EPOCH)),
        "resource_type": "encrypt-resource",
        "event_type": "TRANSACTION.SUCCESS",
        "summary": "支付成功",
        "resource": {
            "original_type": "transaction",
            "algorithm": "AEAD_AES_256_GCM",
            "ciphertext": ciphertext,
            "associated_data": ASSOCIATED,
            "nonce": nonce,
        },
    });
    for (pointer, value) in &overrides.envelope {
        set(&mut envelope, pointer, value.clone());
    }
    envelope
}

/// Another day in `create_time`, or any digit: still JSON, no longer what was signed.
fn tamper(body: &mut [u8]) {
    if let Some(digit) = body.iter_mut().rev().find(|byte| byte.is_ascii_digit()) {
        *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
    }
}
