//! Reads a form that Alipay signed, such as a callback, and names the bytes that the signature covers.
//!
//! Source: Alipay OpenAPI, C:02mse7 (verifying), read 2025-11-20.

use std::borrow::Cow;

use crate::error::CallbackError;

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
    pub(super) fn check_unambiguous(&self) -> Result<(), CallbackError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_alone_stands_for_itself() {
        for (raw, text) in [("100%", "100%"), ("%4", "%4"), ("%zz+", "%zz "), ("%2B%25+", "+% "), ("%25%32%42", "%2B")]
        {
            assert_eq!(decode_once(raw.as_bytes()).as_ref(), text.as_bytes(), "{raw}");
        }
    }
}
