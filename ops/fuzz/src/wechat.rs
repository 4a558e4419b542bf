//! Fuzz targets for WeChat Pay's callbacks and answers.

use std::borrow::Cow;
use std::sync::LazyLock;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::PaymentMethod::Wechat;
use domain::message::callback::Callback;
use gateway::keys::{KeyRing, SigningKey};
use gateway::wechat::aead::{ApiV3Key, Sealed};
use gateway::wechat::{CALLBACK_HEADERS, cert};
use runtime::clock::Clock;
use serde_json::json;
use time::macros::datetime;

use crate::accounts::{gateway, main_account, signing_key};

const SERIAL: &str = "PUB_KEY_ID_0119000001092026010500192000000001";
const NONCE: &[u8; 12] = b"abcdefghijkl";
const ALGORITHM: &str = "AEAD_AES_256_GCM";
const AAD: &str = "transaction";
const TIMESTAMP: &str = "1700000000";
static WECHATS: LazyLock<SigningKey> = LazyLock::new(|| {
    signing_key(include_str!("../../../shared/gateway/tests/fixtures/vectors/keys/wx_pubkey_private_pkcs8.pem"))
});
const APIV3_KEY: &str = include_str!("../../../api/tests/fixtures/apiv3_key");

fn posted(headers: Vec<(String, String)>, body: &[u8]) -> Callback {
    let (body, received_at) = (body.to_vec().into(), Clock::system().now());
    Callback { method: Wechat, account: main_account(), headers, body, received_at, job_id: None }
}

/// The headers with WeChat Pay's signature, for the worker's check, which has no clock window.
fn signed_headers(body: &[u8]) -> Vec<(String, String)> {
    let message = [TIMESTAMP.as_bytes(), b"\nn\n", body, b"\n"].concat();
    let signature = WECHATS.sign(&message).unwrap_or_else(|error| panic!("{error}"));
    let value = |name: &str| match name {
        "wechatpay-timestamp" => TIMESTAMP.to_owned(),
        "wechatpay-nonce" => "n".to_owned(),
        "wechatpay-serial" => SERIAL.to_owned(),
        "wechatpay-signature" => signature.clone(),
        _ => "WECHATPAY2-SHA256-RSA2048".to_owned(),
    };
    CALLBACK_HEADERS.iter().map(|name| ((*name).to_owned(), value(name))).collect()
}

/// Headers and a body as a stranger sends them: one line for each header, then the body.
pub(crate) fn callback(bytes: &[u8]) {
    let mut parts = bytes.splitn(CALLBACK_HEADERS.len() + 1, |byte| *byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let headers =
        CALLBACK_HEADERS.iter().map(|name| ((*name).to_owned(), String::from_utf8_lossy(next()).into_owned()));
    let headers: Vec<_> = headers.collect();
    let body = next();
    if let Ok(verified) = gateway(Wechat).verify(posted(headers, body), None) {
        let _ = gateway(Wechat).read(&verified, Clock::system().now());
    }
}

/// A body with WeChat Pay's signature: it verifies, and is read or refused.
pub(crate) fn signed(body: &[u8]) {
    let verified = gateway(Wechat).verify(posted(signed_headers(body), body), None);
    let verified = verified.unwrap_or_else(|error| panic!("a signed body does not verify: {error}"));
    let _ = gateway(Wechat).read(&verified, Clock::system().now());
}

/// A text that WeChat Pay has encrypted and signed: the event type before the first line feed, then the text.
pub(crate) fn sealed(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let kind = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let text = parts.next().unwrap_or_default();
    let cipher = Aes256Gcm::new_from_slice(APIV3_KEY.trim().as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    let payload = Payload { msg: text, aad: AAD.as_bytes() };
    let ciphertext = cipher.encrypt(NONCE.into(), payload).unwrap_or_else(|error| panic!("{error}"));
    let nonce = String::from_utf8_lossy(NONCE);
    let ciphertext = STANDARD.encode(ciphertext);
    let key = ApiV3Key::new(APIV3_KEY.trim()).unwrap_or_else(|error| panic!("{error}"));
    let sealed = |algorithm: &str, nonce: &str, aad: &str, ciphertext: &str| {
        let own = |text: &str| Cow::Owned(text.to_owned());
        let (algorithm, nonce, associated_data) = (own(algorithm), own(nonce), own(aad));
        key.open(&Sealed { algorithm, nonce, associated_data, ciphertext: own(ciphertext) })
    };
    assert_eq!(
        sealed(ALGORITHM, &nonce, AAD, &ciphertext).ok().as_deref(),
        Some(text),
        "what was sealed does not open"
    );
    // If any one part is replaced with another value, nothing decrypts.
    let others = [
        (kind != ALGORITHM, sealed(&kind, &nonce, AAD, &ciphertext)),
        (kind != nonce, sealed(ALGORITHM, &kind, AAD, &ciphertext)),
        (kind != AAD, sealed(ALGORITHM, &nonce, &kind, &ciphertext)),
        (kind != ciphertext, sealed(ALGORITHM, &nonce, AAD, &kind)),
    ];
    assert!(others.iter().all(|(other, opened)| !other || opened.is_err()), "something else opens");
    let original_type = if kind.starts_with("REFUND") { "refund" } else { "transaction" };
    let body = json!({
        "id": "EV-1", "create_time": "2026-01-05T10:34:56+08:00", "event_type": kind, "resource_type": "encrypt-resource",
        "resource": {
            "original_type": original_type, "algorithm": ALGORITHM, "ciphertext": ciphertext,
            "associated_data": AAD, "nonce": nonce,
        },
    });
    signed(body.to_string().as_bytes());
}

/// An answer with certificates: one line for each header, then the body.
pub(crate) fn certificates(bytes: &[u8]) {
    let mut parts = bytes.splitn(CALLBACK_HEADERS.len() + 1, |byte| *byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let values: Vec<String> = CALLBACK_HEADERS.iter().map(|_| String::from_utf8_lossy(next()).into_owned()).collect();
    let body = next();
    let header = |name: &str| {
        let place = CALLBACK_HEADERS.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        values.get(place).map(String::as_str)
    };
    let key = ApiV3Key::new(APIV3_KEY.trim()).unwrap_or_else(|error| panic!("{error}"));
    let _ = cert::open_list(&key, &KeyRing::default(), header, body, datetime!(2026-01-05 02:21:10 UTC));
}
