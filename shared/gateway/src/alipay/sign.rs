//! Signs requests to Alipay, and checks the signatures of callbacks. The two rules differ in what the signature covers;
//! `answer` has the third.
//!
//! All three are RSA2 (SHA256withRSA); the legacy `RSA` (SHA-1) is refused.
//! Source: Alipay OpenAPI, C:057k53 (signing), C:02mse7 (verifying), read 2025-11-20.

use crate::alipay::form::{EmptyValues, Form};
use crate::error::CallbackError;
use crate::keys::{KeyError, SigningKey, VerifyingKey};

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
