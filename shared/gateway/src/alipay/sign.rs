//! The three signature rules of Alipay's gateway: requests, answers, callbacks. They differ in what the signature
//! covers.
//!
//! All of them are RSA2 (SHA256withRSA); the legacy `RSA` (SHA-1) is refused.
//! Source: Alipay OpenAPI, C:057k53 (signing), C:02mse7 (verifying), read 2025-11-20.

use std::borrow::Cow;

use crate::error::CallbackError;
use crate::keys::{KeyError, SigningKey, VerifyingKey};
use crate::words;

/// A limit well above the number of fields in any callback.
const MAX_FIELDS: usize = 256;

/// The fields that decide what a notice or a return means, and which order and merchant it is about. Add every field
/// that the code begins to read; a test compares this list with the code.
pub(super) const DECIDING: [&str; 15] = [
    "alipay_cert_sn",
    "app_id",
    "gmt_payment",
    "method",
    "notify_id",
    "notify_time",
    "notify_type",
    "out_biz_no",
    "out_trade_no",
    "refund_fee",
    "seller_id",
    "timestamp",
    "total_amount",
    "trade_no",
    "trade_status",
];

/// The text that a request's signature covers: every parameter with a value except `sign`, sorted by name, `name=value`
/// joined by `&`, values before URL encoding. `sign_type` is covered here, but not in a callback.
pub fn string_to_sign<'a>(params: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut covered: Vec<_> = params.into_iter().filter(|(name, value)| *name != "sign" && !value.is_empty()).collect();
    covered.sort_unstable();
    let mut text = String::with_capacity(covered.iter().map(|(name, value)| name.len() + value.len() + 2).sum());
    for (name, value) in covered {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend([name, "=", value]);
    }
    text
}

/// The `sign` of a request whose text is UTF-8.
///
/// # Errors
/// [`KeyError::Library`].
pub fn sign<'a>(key: &SigningKey, params: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String, KeyError> {
    key.sign(string_to_sign(params).as_bytes())
}

/// A name and its value, borrowed unless an escape had to be decoded.
type Field<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// A form body with each name and value decoded once, in the order received. Values are bytes: the sender signs them in
/// the charset that it names, and we can check the signature without decoding that charset.
#[derive(Debug)]
pub struct Form<'a> {
    fields: Vec<Field<'a>>,
}

impl<'a> Form<'a> {
    /// Splits at `&` and the first `=`, then decodes `+` and percent escapes once.
    ///
    /// # Errors
    /// [`CallbackError::Malformed`] for a name that comes twice (we must not choose between two values), and for more
    /// than 256 fields.
    pub fn parse(body: &'a [u8]) -> Result<Form<'a>, CallbackError> {
        let mut fields = Vec::with_capacity(32);
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            if fields.len() == MAX_FIELDS {
                return Err(CallbackError::Malformed("too many fields"));
            }
            let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            fields.push((decode_once(&pair[..end]), decode_once(pair.get(end + 1..).unwrap_or_default())));
        }
        let mut names: Vec<&[u8]> = fields.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return Err(CallbackError::Malformed("a field comes twice"));
        }
        Ok(Form { fields })
    }

    /// A field with a value, as text; also `None` if the value is not UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(known, _)| known.as_ref() == name.as_bytes())?;
        std::str::from_utf8(value).ok().filter(|text| !text.is_empty())
    }

    /// The decoded fields as received.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// Refuses a form if another form could have the same signature. The signed text joins decoded fields by `&`, so
    /// `a=1%26b%3D2` and `a=1&b=2` give the same text. No deciding field may hide in another field's name or value, and
    /// the value of a deciding field may not hold the next field. Free text (`subject`, `passback_params`) may contain
    /// `&` and even `name=`, unless it names a deciding field.
    fn check_unambiguous(&self) -> Result<(), CallbackError> {
        const HIDDEN: CallbackError = CallbackError::Malformed("a field may hide another field");
        for (name, value) in self.fields() {
            if name.iter().any(|byte| matches!(byte, b'&' | b'=')) {
                return Err(HIDDEN);
            }
            let mut parts = value.split(|byte| *byte == b'&').skip(1).peekable();
            if parts.peek().is_some() && is_deciding(name) {
                return Err(HIDDEN);
            }
            let names_one = |part: &[u8]| {
                let end = part.iter().position(|byte| *byte == b'=');
                end.is_some_and(|end| is_deciding(&part[..end]))
            };
            if parts.any(names_one) {
                return Err(HIDDEN);
            }
        }
        Ok(())
    }

    /// The text that a callback's signature covers: all fields except `sign` and `sign_type`, sorted by name.
    pub fn string_to_verify(&self, empty: EmptyValues) -> Vec<u8> {
        let mut covered: Vec<_> = self
            .fields()
            .filter(|(name, _)| !matches!(*name, b"sign" | b"sign_type"))
            .filter(|(_, value)| empty == EmptyValues::Kept || !value.is_empty())
            .collect();
        covered.sort_unstable();
        let mut text = Vec::with_capacity(covered.iter().map(|(name, value)| name.len() + value.len() + 2).sum());
        for (name, value) in covered {
            if !text.is_empty() {
                text.push(b'&');
            }
            text.extend_from_slice(name);
            text.push(b'=');
            text.extend_from_slice(value);
        }
        text
    }
}

/// The content of a form in one canonical writing: the order of fields, their escapes and empty fields make no
/// difference. A body that is not a form is returned unchanged.
pub(crate) fn essence(body: &[u8]) -> Vec<u8> {
    let Ok(form) = Form::parse(body) else { return body.to_vec() };
    let mut essence = form.string_to_verify(EmptyValues::Dropped);
    essence.push(b'\n');
    essence.extend_from_slice(form.get("sign").unwrap_or_default().as_bytes());
    essence
}

/// Whether the signature covers an empty field as `name=`. The official SDKs include it (C:02mse7), a troubleshooting
/// page (C:02kdnf) drops it; we have seen no such callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyValues {
    /// Covered as `name=`.
    Kept,
    /// Not covered.
    Dropped,
}

fn is_deciding(name: &[u8]) -> bool {
    DECIDING.iter().any(|known| known.as_bytes() == name)
}

fn decode_once(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(raw);
    }
    let mut text = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let escape = raw.get(at + 1..at + 3).and_then(|digits| Some(hex(digits[0])? << 4 | hex(digits[1])?));
        match (raw[at], escape) {
            (b'%', Some(byte)) => {
                text.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => text.push(b' '),
            (byte, _) => text.push(byte), // A lone percent sign stands for itself, as in a browser.
        }
        at += 1;
    }
    Cow::Owned(text)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Checks a callback's form with Alipay's public key.
///
/// # Errors
/// [`CallbackError::Malformed`] if there is no signature, or if a field may hide another one;
/// [`CallbackError::BadSignature`].
pub fn verify_callback(key: &VerifyingKey, form: &Form<'_>) -> Result<(), CallbackError> {
    form.check_unambiguous()?;
    let sign = form.get("sign").ok_or(CallbackError::Malformed("no sign"))?;
    // The algorithm is pinned: the message must not choose a weaker one for itself.
    match form.get("sign_type") {
        Some("RSA2") => {}
        Some(_) => return Err(CallbackError::BadSignature),
        None => return Err(CallbackError::Malformed("no sign_type")),
    }
    if key.verify(&form.string_to_verify(EmptyValues::Kept), sign) {
        return Ok(());
    }
    let has_empty = form.fields().any(|(_, value)| value.is_empty());
    if has_empty && key.verify(&form.string_to_verify(EmptyValues::Dropped), sign) {
        return Ok(());
    }
    Err(CallbackError::BadSignature)
}

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_app_public.pem");

    fn key() -> &'static VerifyingKey {
        static KEY: std::sync::OnceLock<VerifyingKey> = std::sync::OnceLock::new();
        KEY.get_or_init(|| VerifyingKey::from_spki_pem(PUBLIC).unwrap())
    }

    fn verify(body: &[u8]) -> Result<(), CallbackError> {
        verify_callback(key(), &Form::parse(body)?)
    }

    proptest! {
        #[test]
        fn the_signed_string_does_not_depend_on_the_order_of_parameters(
            params in proptest::collection::btree_map("[a-z_]{1,8}", ".{0,8}", 0..8),
            seed in any::<u64>(),
        ) {
            let ordered: Vec<_> = params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let mut shuffled = ordered.clone();
            shuffled.sort_by_key(|(name, _)| name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)));
            prop_assert_eq!(string_to_sign(ordered), string_to_sign(shuffled));
        }

        #[test]
        fn a_form_decodes_what_a_form_encoder_wrote(
            fields in proptest::collection::btree_map("[a-z]{1,8}", ".{1,20}", 1..8),
        ) {
            let body: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
            let form = Form::parse(body.as_bytes()).unwrap();
            for (name, value) in &fields {
                prop_assert_eq!(form.get(name), Some(value.as_str()));
            }
        }

        #[test]
        fn any_bytes_are_a_callback_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(verify(&body).is_err());
            prop_assert!(open_answer(key(), "alipay.trade.query", &body).is_err());
        }

        #[test]
        fn any_signed_looking_bytes_are_refused(sign in "[A-Za-z0-9+/=%]{0,400}", rest in "[ -~]{0,100}") {
            let body = format!("sign={sign}&sign_type=RSA2&{rest}");
            prop_assert!(verify(body.as_bytes()).is_err());
        }
    }

    #[test]
    fn garbage_of_64_kib_is_refused_quickly() {
        for body in [vec![b'&'; 65_536], vec![b'%'; 65_536], vec![0xff; 65_536], b"a&b=c&".repeat(10_922)] {
            assert!(matches!(verify(&body), Err(CallbackError::Malformed(_))));
        }
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        for body in ["a=1&b=2&a=1", "a=1&%61=2", "a&a"] {
            assert_eq!(Form::parse(body.as_bytes()).unwrap_err(), CallbackError::Malformed("a field comes twice"));
        }
    }

    #[test]
    fn empty_parameters_and_sign_are_not_signed() {
        let params = [("sign_type", "RSA2"), ("b", ""), ("sign", "x"), ("a", "1=&2")];
        assert_eq!(string_to_sign(params), "a=1=&2&sign_type=RSA2");
    }

    #[test]
    fn a_percent_sign_alone_stands_for_itself() {
        for (raw, text) in [("100%", "100%"), ("%4", "%4"), ("%zz+", "%zz "), ("%2B%25+", "+% "), ("%25%32%42", "%2B")]
        {
            assert_eq!(decode_once(raw.as_bytes()).as_ref(), text.as_bytes(), "{raw}");
        }
    }
}
