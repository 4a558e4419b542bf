//! Finds the signed part of an answer of Alipay, and checks its signature.
//!
//! Source: Alipay OpenAPI, C:02mse7 (verifying), read 2025-11-20.

use crate::keys::VerifyingKey;
use crate::words;

/// A judged answer of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Alipay signed this answer.
    Signed {
        /// The raw bytes of the node as received, in its own charset.
        node: &'a [u8],
        /// The text that the signature covers.
        over: SignedText,
    },
    /// An unsigned failure that anyone may have sent; failures of the gateway itself come without a signature.
    UnsignedFailure(Failure),
}

/// The text that the signature of an answer covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedText {
    /// The node as received.
    AsReceived,
    /// The node with each `\/` written as `/`: the official Java SDK accepts this too.
    SlashesUnescaped,
}

/// The codes and messages of an answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Failure {
    /// 10000 means that the call succeeded.
    #[serde(deserialize_with = "words::text")]
    pub code: String,
    /// The message of `code`.
    #[serde(default, deserialize_with = "words::text")]
    pub msg: String,
    /// The more specific code.
    #[serde(default, deserialize_with = "words::text")]
    pub sub_code: String,
    /// The message of `sub_code`.
    #[serde(default, deserialize_with = "words::text")]
    pub sub_msg: String,
}

/// The code of a call that succeeded; it says nothing about a payment.
pub const SUCCESS: &str = "10000";

/// The error when an answer is not accepted. Its content then remains unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not JSON with the expected node.
    #[error("the answer is not an answer to {0}")]
    Shape(String),
    /// A success without a signature.
    #[error("the answer claims success without a signature")]
    Unsigned,
    /// The loaded key did not sign it.
    #[error("the signature of the answer does not fit")]
    BadSignature,
}

/// Finds the answer's node and checks its signature over the exact bytes received. The bytes need not be UTF-8, because
/// Alipay also answers in GBK. The signature shows which reading of the bytes is right.
///
/// # Errors
/// See [`AnswerError`].
pub fn open_answer<'a>(key: &VerifyingKey, method: &str, body: &'a [u8]) -> Result<Answer<'a>, AnswerError> {
    let mut opened = Err(AnswerError::Shape(method.to_owned()));
    for reading in words::readings(body) {
        let Some(parts) = Parts::of(body, method, *reading) else { continue };
        match parts.open(key, method) {
            Err(AnswerError::Shape(_)) => {}
            bad @ Err(AnswerError::BadSignature) => opened = bad,
            judged => return judged,
        }
    }
    opened
}

/// An answer's node and its signature.
struct Parts<'a> {
    node: &'a [u8],
    sign: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(body: &'a [u8], method: &str, reading: words::Reading) -> Option<Parts<'a>> {
        let members = words::members(body, reading)?;
        let member = |name: &str| {
            let (_, place) = members.iter().find(|(known, _)| *known == name.as_bytes())?;
            body.get(place.clone())
        };
        let node = member(&(method.replace('.', "_") + "_response")).or_else(|| member("error_response"))?;
        node.starts_with(b"{").then(|| Parts { node, sign: member("sign") })
    }

    fn open(&self, key: &VerifyingKey, method: &str) -> Result<Answer<'a>, AnswerError> {
        let shape = || AnswerError::Shape(method.to_owned());
        let node = self.node;
        let Some(sign) = self.sign else {
            let failure: Failure = words::read(node).map_err(|_| shape())?;
            let success = failure.code == SUCCESS;
            return if success { Err(AnswerError::Unsigned) } else { Ok(Answer::UnsignedFailure(failure)) };
        };
        let sign: String = serde_json::from_slice(sign).map_err(|_| shape())?;
        if key.verify(node, &sign) {
            return Ok(Answer::Signed { node, over: SignedText::AsReceived });
        }
        let unescaped = without_escaped_slashes(node);
        if unescaped.len() < node.len() && key.verify(&unescaped, &sign) {
            return Ok(Answer::Signed { node, over: SignedText::SlashesUnescaped });
        }
        Err(AnswerError::BadSignature)
    }
}

fn without_escaped_slashes(node: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(node.len());
    for byte in node {
        if *byte == b'/' && text.last() == Some(&b'\\') {
            text.pop();
        }
        text.push(*byte);
    }
    text
}

/// The certificate that an answer claims to be signed with; no signature covers this claim.
pub(super) fn cert_sn(body: &[u8]) -> Option<String> {
    words::readings(body).iter().find_map(|reading| {
        let members = words::members(body, *reading)?;
        let (_, place) = members.into_iter().find(|(name, _)| *name == b"alipay_cert_sn")?;
        serde_json::from_slice(body.get(place)?).ok()
    })
}
