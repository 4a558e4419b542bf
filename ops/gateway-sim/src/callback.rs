//! One callback as a request, and how it may differ from the correct one.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One request to a `notify_url`, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCallback {
    /// Always `POST`.
    pub method: &'static str,
    /// The complete URL; empty if the trade has none.
    pub url: String,
    /// Only its path.
    pub path: String,
    /// The headers, including the content type.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The differences from the correct callback. The default has none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// Another amount, in fen, correctly signed: of the payment, or of the refund (at Alipay the total refunded).
    pub amount_fen: Option<i64>,
    /// Alipay: form fields. WeChat Pay: JSON pointers into the resource before it is encrypted. `null` removes a field.
    pub fields: BTreeMap<String, Option<Value>>,
    /// WeChat Pay: JSON pointers into the envelope, after encryption and before signing. `null` removes a field.
    pub envelope: BTreeMap<String, Option<Value>>,
    /// Sent instead of the rendered body. WeChat Pay signs it; at Alipay the signature is part of it.
    pub body: Option<String>,
    /// Headers that are changed after signing. `null` removes a header.
    pub headers: BTreeMap<String, Option<String>>,
    /// Another `notify_id` or `id`.
    pub id: Option<String>,
    /// Another time of sending, in Unix seconds.
    pub at: Option<i64>,
    /// WeChat Pay: the serial of the key that signs, one of the account's own.
    pub sign_with: Option<String>,
    /// What is wrong with the signature.
    pub wrong: Option<Wrong>,
}

/// The ways in which a callback can fail its verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// The body was changed after signing.
    Tamper,
    /// `Wechatpay-Serial` names no existing key. Alipay has no serial: an unknown key signs there.
    WrongSerial,
    /// WeChat Pay's probe traffic, `WECHATPAY/SIGNTEST/…`. Alipay has no probes; there the signature is not valid
    /// base64.
    Probe,
    /// Signed with a stranger's key under the correct serial or name.
    Forged,
}

impl SignedCallback {
    pub(crate) fn new(url: Option<&str>, headers: Vec<(String, String)>, body: Vec<u8>) -> SignedCallback {
        let url = url.unwrap_or_default();
        SignedCallback { method: "POST", url: url.to_owned(), path: path_of(url).to_owned(), headers, body }
    }

    pub(crate) fn apply(&mut self, headers: &BTreeMap<String, Option<String>>) {
        for (name, value) in headers {
            self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            if let Some(value) = value {
                self.headers.push((name.clone(), value.clone()));
            }
        }
    }
}

/// The path of a URL without a complete parse: this runs for every callback of a load test.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.find('/').map_or("/", |start| &rest[start..]);
    path.split(['?', '#']).next().unwrap_or(path)
}
