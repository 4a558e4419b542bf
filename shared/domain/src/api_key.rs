//! API keys: their text, their ids, and the digest by which a secret is recognised.
//!
//! The text of a key is `sk_{environment}_{id}_{secret}`. Only the SHA-256 digest of the secret is stored, so a copy of
//! the database opens nothing. A secret is 32 random bytes, so the digest needs neither salt nor stretching.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};

use crate::named_enum;
use crate::text::text_type;

named_enum! {
    /// What a key is for.
    KeyEnvironment {
        /// The merchant's real business.
        Live = "live",
        /// Trying things out.
        Test = "test",
    }
}

named_enum! {
    /// Where a key is in its life. A revoked key never becomes active again.
    ApiKeyState {
        /// Made by one person, and useless until another person confirms it.
        Proposed = "proposed",
        /// In use.
        Active = "active",
        /// Ended by a person.
        Revoked = "revoked",
    }
}

text_type! {
    /// The name of a key: 1 to 64 visible characters, with single spaces between words.
    ApiKeyName, ApiKeyNameError, "a name of 1 to 64 visible characters, with single spaces between words",
    |text| (1..=64).contains(&text.chars().count())
        && text.split(' ').all(|word| !word.is_empty() && word.chars().all(crate::text::shows))
}

/// The id of a key: 64 random bits in 16 lower-case hex digits. It is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApiKeyId(u64);

impl ApiKeyId {
    /// An id from 8 random bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> ApiKeyId {
        ApiKeyId(u64::from_be_bytes(bytes))
    }

    /// # Errors
    /// [`ApiKeyIdError`] for anything but 16 lower-case hex digits.
    pub fn parse(text: &str) -> Result<ApiKeyId, ApiKeyIdError> {
        unhex(text).map(ApiKeyId::from_bytes).ok_or(ApiKeyIdError)
    }
}

/// The text is not the id of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is 16 lower-case hex digits")]
pub struct ApiKeyIdError;

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TryFrom<String> for ApiKeyId {
    type Error = ApiKeyIdError;

    fn try_from(text: String) -> Result<ApiKeyId, ApiKeyIdError> {
        ApiKeyId::parse(&text)
    }
}

impl From<ApiKeyId> for String {
    fn from(id: ApiKeyId) -> String {
        id.to_string()
    }
}

/// SHA-256 over the 32 bytes of a secret. Comparing two of them takes the same time wherever they differ.
#[derive(Clone, Copy)]
pub struct KeyDigest([u8; SHA256_OUTPUT_LEN]);

impl KeyDigest {
    /// A digest as a row holds it; `None` for another length than 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<KeyDigest> {
        bytes.try_into().ok().map(KeyDigest)
    }

    /// The 32 bytes, for a row.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(secret: &[u8]) -> KeyDigest {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
        KeyDigest(bytes)
    }
}

/// In constant time.
impl PartialEq for KeyDigest {
    fn eq(&self, other: &KeyDigest) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for KeyDigest {}

/// Shows nothing.
impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(..)")
    }
}

const SECRET: usize = 32;

/// The secret of a new key, before it is shown. It is erased from memory afterwards.
pub struct ApiKeySecret(SecretBox<[u8; SECRET]>);

impl ApiKeySecret {
    /// A secret from 32 random bytes.
    pub fn from_bytes(bytes: [u8; SECRET]) -> ApiKeySecret {
        ApiKeySecret(SecretBox::new(Box::new(bytes)))
    }

    /// What is stored of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(self.0.expose_secret())
    }

    /// The text of the key, for the merchant's backend.
    pub fn text(&self, environment: KeyEnvironment, id: ApiKeyId) -> SecretString {
        self.text_after(&format!("{PREFIX}{environment}_{id}_"))
    }

    /// The text of a secret that signs offers, `os_` and 64 hex digits. All of it is the key of HS256.
    pub fn offer_text(&self) -> SecretString {
        self.text_after(OFFER_PREFIX)
    }

    fn text_after(&self, start: &str) -> SecretString {
        // Of its full length from the start: a string that grows leaves copies behind.
        let mut text = String::with_capacity(start.len() + 2 * SECRET);
        text.push_str(start);
        for byte in self.0.expose_secret() {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte & 15));
        }
        SecretString::from(text)
    }
}

/// Shows nothing.
impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(..)")
    }
}

/// The start of every key, by which scanners for leaked secrets find it.
const PREFIX: &str = "sk_";
/// The start of every secret of offers, for the same.
const OFFER_PREFIX: &str = "os_";

/// What the text of a key says. It claims an id; only a stored digest proves the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiKeyText {
    /// The environment.
    pub environment: KeyEnvironment,
    /// The id.
    pub id: ApiKeyId,
    /// The digest of the secret.
    pub digest: KeyDigest,
}

impl ApiKeyText {
    /// Whether a bearer token has the form of a key at its start, so that it is never read as a JWT.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Reads the text of a key. `None` for every other text, such as one with upper-case digits.
    pub fn parse(text: &str) -> Option<ApiKeyText> {
        let (environment, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let (id, secret) = rest.split_once('_')?;
        let (environment, id) = (environment.parse().ok()?, ApiKeyId::parse(id).ok()?);
        Some(ApiKeyText { environment, id, digest: KeyDigest::of(&unhex::<SECRET>(secret)?) })
    }
}

fn hex_digit(value: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(value & 15)])
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Exactly `N` bytes in lower-case hex digits.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (hex_value(digits[0])? << 4) | hex_value(digits[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: ApiKeyId = ApiKeyId::from_bytes([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);

    #[test]
    fn a_key_looks_like_this_and_like_nothing_else() {
        let secret = ApiKeySecret::from_bytes([0xa5; 32]);
        let text = secret.text(KeyEnvironment::Live, ID);
        let text = text.expose_secret();
        assert_eq!(text, &format!("sk_live_0123456789abcdef_{}", "a5".repeat(32)));
        let digits = "a5".repeat(32);
        for wrong in [
            String::new(),
            "sk_".to_owned(),
            "sk_live_".to_owned(),
            text[1..].to_owned(),
            format!(" {text}"),
            format!("{text}\n"),
            format!("{text}0"),
            text[..text.len() - 1].to_owned(),
            text.to_uppercase(),
            text.replace("live", "Live"),
            text.replace("live", "prod"),
            text.replace("live", ""),
            text.replace("sk_", "pk_"),
            format!("sk_live_123456789abcdef_{digits}"),
            format!("sk_live_0123456789ABCDEF_{digits}"),
            format!("sk_live_0123456789abcdef_{}", digits.to_uppercase()),
            format!("sk_live_0123456789abcdef_+{}", &digits[1..]),
            format!("sk_live_0123456789abcdef_{}é", &digits[2..]),
            format!("sk_live_0123456789abcdef__{}", &digits[1..]),
            format!("sk_live_{digits}"),
        ] {
            assert_eq!(ApiKeyText::parse(&wrong), None, "{wrong:?}");
        }
    }

    /// If this changes, no stored key opens any more.
    #[test]
    fn the_digest_is_sha_256_of_the_bytes() {
        let digest = ApiKeySecret::from_bytes([0; 32]).digest();
        let expected = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
        assert_eq!(unhex::<32>(expected).unwrap(), digest.as_bytes());
        assert_eq!(KeyDigest::from_slice(digest.as_bytes()), Some(digest));
        assert_eq!(KeyDigest::from_slice(&digest.as_bytes()[1..]), None);
    }

    #[test]
    fn nothing_of_a_secret_is_shown() {
        let secret = ApiKeySecret::from_bytes([0xa5; 32]);
        let text = secret.text(KeyEnvironment::Test, ID);
        let parsed = ApiKeyText::parse(text.expose_secret()).unwrap();
        let shown = format!("{secret:?} {text:?} {parsed:?}");
        let digest = parsed.digest.as_bytes().iter().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        assert!(!shown.contains("a5a5") && !shown.contains("165, 165") && !shown.contains(&digest), "{shown}");
        assert!(shown.contains("ApiKeySecret(..)") && shown.contains("KeyDigest(..)"), "{shown}");
    }

    #[test]
    fn an_id_reads_back_what_it_prints() {
        assert_eq!(ID.to_string(), "0123456789abcdef");
        assert_eq!(ApiKeyId::parse("0123456789abcdef"), Ok(ID));
        for wrong in
            ["", "0123456789abcde", "0123456789ABCDEF", "+123456789abcdef", "0123456789abcdeg", "0123456789abcdé"]
        {
            assert_eq!(ApiKeyId::parse(wrong), Err(ApiKeyIdError), "{wrong}");
        }
    }

    #[test]
    fn a_name_can_be_read() {
        for name in ["shop", "商城 后端", "a", "shop-2 (backup)", &"é".repeat(64)] {
            assert!(ApiKeyName::parse(name).is_ok(), "{name}");
        }
        for name in ["", " ", " shop", "shop ", "a  b", "a\nb", "a\tb", "a\u{202e}b", "a\u{200b}b", &"é".repeat(65)] {
            assert!(ApiKeyName::parse(name).is_err(), "{name:?}");
        }
    }

    fn environment() -> impl Strategy<Value = KeyEnvironment> {
        prop_oneof![Just(KeyEnvironment::Live), Just(KeyEnvironment::Test)]
    }

    proptest! {
        #[test]
        fn a_key_reads_back_what_it_prints(environment in environment(), id: [u8; 8], bytes: [u8; 32]) {
            let (id, secret) = (ApiKeyId::from_bytes(id), ApiKeySecret::from_bytes(bytes));
            let text = secret.text(environment, id);
            let said = ApiKeyText { environment, id, digest: secret.digest() };
            prop_assert_eq!(ApiKeyText::parse(text.expose_secret()), Some(said));
        }

        #[test]
        fn a_changed_character_refuses_or_says_something_else(
            environment in environment(), id: [u8; 8], bytes: [u8; 32], at: prop::sample::Index, to in any::<char>(),
        ) {
            let text = ApiKeySecret::from_bytes(bytes).text(environment, ApiKeyId::from_bytes(id));
            let text = text.expose_secret();
            let at = at.index(text.len());
            prop_assume!(!text[at..].starts_with(to));
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            prop_assert_ne!(ApiKeyText::parse(&changed), ApiKeyText::parse(text));
            let hex = format!("{}{}{}", &text[..at], if text[at..].starts_with('0') { '1' } else { '0' }, &text[at + 1..]);
            prop_assert_ne!(ApiKeyText::parse(&hex), ApiKeyText::parse(text));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,120}") {
            prop_assert_eq!(ApiKeyText::parse(&text), None);
            prop_assert_eq!(ApiKeyText::parse(&format!("sk_live_{text}")), None);
        }
    }
}
