//! Signatures of requests to WeChat Pay, and of its answers and callbacks.
//!
//! Source: WeChat Pay APIv3, "签名生成" and "签名验证" (D:4013053249, D:4013053283) and the official Go SDK, read 2025-11-20.

use aws_lc_rs::digest::{Context, SHA256};
use time::OffsetDateTime;

use crate::error::CallbackError;
use crate::keys::{KeyError, KeyRing, NoKey, SigningKey};

pub(super) const TIMESTAMP: &str = "wechatpay-timestamp";
pub(super) const NONCE: &str = "wechatpay-nonce";
pub(super) const SERIAL: &str = "wechatpay-serial";
pub(super) const SIGNATURE: &str = "wechatpay-signature";
const SIGNATURE_TYPE: &str = "wechatpay-signature-type";

/// The headers of a signed answer or callback, in lower case.
pub const HEADERS: [&str; 5] = [TIMESTAMP, NONCE, SERIAL, SIGNATURE, SIGNATURE_TYPE];

/// The only accepted scheme; WeChat Pay also offers SM2.
const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";
/// The prefix of a deliberately wrong signature, with which WeChat Pay tests whether we check.
const PROBE: &str = "WECHATPAY/SIGNTEST/";
/// The clock window; a message exactly this old or this early is still accepted.
const WINDOW_SECONDS: u64 = 300;

/// The calling merchant: the parts of each `Authorization` header besides the signature.
#[derive(Debug, Clone, Copy)]
pub struct Merchant<'a> {
    /// The merchant's number.
    pub mchid: &'a str,
    /// The serial number of the merchant certificate, 40 upper-case hex digits.
    pub serial_no: &'a str,
    /// The private key of that certificate.
    pub key: &'a SigningKey,
}

/// The signed parts of a request.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// In upper case.
    pub method: &'a str,
    /// The request target as it is sent, percent escapes and query included, without scheme and host.
    pub path_and_query: &'a str,
    /// The bytes sent; empty for GET.
    pub body: &'a str,
}

/// The time and the nonce; both are new for each attempt.
#[derive(Debug, Clone, Copy)]
pub struct Stamp<'a> {
    /// Unix seconds.
    pub timestamp: i64,
    /// Up to 32 letters and digits.
    pub nonce: &'a str,
}

/// The five lines that a request's signature covers.
pub fn request_text(target: &Target<'_>, stamp: &Stamp<'_>) -> String {
    let Target { method, path_and_query, body } = target;
    format!("{method}\n{path_and_query}\n{}\n{}\n{body}\n", stamp.timestamp, stamp.nonce)
}

/// The value of the `Authorization` header.
///
/// # Errors
/// [`KeyError::Library`].
pub fn authorization(merchant: &Merchant<'_>, target: &Target<'_>, stamp: &Stamp<'_>) -> Result<String, KeyError> {
    let signature = merchant.key.sign(request_text(target, stamp).as_bytes())?;
    let Merchant { mchid, serial_no, .. } = merchant;
    let Stamp { timestamp, nonce } = stamp;
    Ok(format!(
        "{SCHEME} mchid=\"{mchid}\",nonce_str=\"{nonce}\",timestamp=\"{timestamp}\",serial_no=\"{serial_no}\",signature=\"{signature}\""
    ))
}

/// The four lines that the signature over the buyer's own call covers. `last` is `prepay_id=…` inside WeChat, and the
/// bare id in an app.
pub fn invoke_text(appid: &str, stamp: &Stamp<'_>, last: &str) -> String {
    format!("{appid}\n{}\n{}\n{last}\n", stamp.timestamp, stamp.nonce)
}

/// Checks an answer or a callback in the protocol's order: headers, clock (only with `now`), key, probe, signature.
/// `header` finds a header by its lower-case name. A certificate must be in force at the timestamp that the sender
/// states, and the clock window ties that timestamp to our clock.
///
/// # Errors
/// See [`CallbackError`]; the first check that fails.
pub fn verify<'h>(
    keys: &KeyRing,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: Option<OffsetDateTime>,
) -> Result<(), CallbackError> {
    let required =
        |name, absent| header(name).filter(|value| !value.is_empty()).ok_or(CallbackError::Malformed(absent));
    let timestamp = required(TIMESTAMP, "no Wechatpay-Timestamp")?;
    let nonce = required(NONCE, "no Wechatpay-Nonce")?;
    let signature = required(SIGNATURE, "no Wechatpay-Signature")?;
    let serial = required(SERIAL, "no Wechatpay-Serial")?;
    if header(SIGNATURE_TYPE).is_some_and(|scheme| scheme != SCHEME) {
        return Err(CallbackError::Malformed("another Wechatpay-Signature-Type than RSA"));
    }
    let at = unix_seconds(timestamp).ok_or(CallbackError::Malformed("Wechatpay-Timestamp is not a number"))?;
    if now.is_some_and(|now| now.unix_timestamp().abs_diff(at) > WINDOW_SECONDS) {
        return Err(CallbackError::Stale);
    }
    let signed_at = OffsetDateTime::from_unix_timestamp(at).map_err(|_| CallbackError::Stale)?;
    let key = keys.in_force(serial, signed_at).map_err(|none| match none {
        NoKey::Unknown => CallbackError::UnknownKey { serial: shown(serial) },
        NoKey::Time(time) => CallbackError::KeyNotInForce { serial: shown(serial), time },
    })?;
    if signature.starts_with(PROBE) {
        return Err(CallbackError::Probe);
    }
    let mut text = Context::new(&SHA256);
    for part in [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", body, b"\n"] {
        text.update(part);
    }
    if key.verify_digest(&text.finish(), signature) { Ok(()) } else { Err(CallbackError::BadSignature) }
}

/// The data that a callback's signature covers, and the signature.
pub(crate) fn essence<'h>(header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> Vec<u8> {
    let [timestamp, nonce, signature] =
        [TIMESTAMP, NONCE, SIGNATURE].map(|name| header(name).unwrap_or_default().as_bytes());
    [timestamp, nonce, body, signature].join(&b'\n')
}

fn unix_seconds(text: &str) -> Option<i64> {
    let digits = text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// A printable, shortened serial: it comes from a stranger and goes into logs.
fn shown(serial: &str) -> String {
    serial.chars().filter(char::is_ascii_graphic).take(64).collect()
}
