//! Encrypts secrets that must be stored in the database: AES-256-GCM under `SEAL_KEY`.
//!
//! A sealed value opens only in the place for which it was sealed, which is its table, column and id. If a row is
//! copied over another one, it does not open. Keys rotate: the new key seals, and the previous one still opens.
//!
//! Format: one byte for the version of the format (1), 12 bytes of random nonce, the encrypted text, 16 bytes of tag.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use secrecy::{ExposeSecret as _, SecretString};

use crate::env::Env;
use crate::env::weakness;

const FORM: u8 = 1;
const NONCE: usize = 12;

/// The place of a value; it is authenticated together with the value.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The table.
    pub table: &'static str,
    /// The column.
    pub column: &'static str,
    /// The id of the row.
    pub id: &'a str,
}

impl Place<'_> {
    fn associated(&self) -> String {
        format!("{}\0{}\0{}", self.table, self.column, self.id)
    }
}

/// The error of a value that does not open or could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not sealed with a key that we hold, not for this place, or changed since then.
    #[error("the sealed value opens with no key that is set")]
    Closed,
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
}

/// The key that seals, and the previous one.
pub struct SealKeys {
    current: LessSafeKey,
    previous: Option<LessSafeKey>,
}

/// Shows nothing.
impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKeys(..)")
    }
}

const HINT: &str = "make one with `openssl rand -hex 32`";

impl SealKeys {
    /// Reads `SEAL_KEY` (default: none, and nothing that must be sealed is stored) and `PREVIOUS_SEAL_KEY`, each 64 hex
    /// digits. `Some(None)`: no key is set. `None`: a fault was recorded.
    pub fn from_env(env: &mut Env) -> Option<Option<SealKeys>> {
        let (current, previous) = (key(env, "SEAL_KEY"), key(env, "PREVIOUS_SEAL_KEY"));
        match (current?, previous?) {
            (Some(current), previous) => Some(Some(SealKeys { current, previous })),
            (None, None) => Some(None),
            (None, Some(_)) => {
                env.fault("PREVIOUS_SEAL_KEY", "SEAL_KEY is not set", "set SEAL_KEY as well, or neither of the two");
                None
            }
        }
    }

    /// Seals `text` for its place.
    ///
    /// # Errors
    /// [`SealError::Library`].
    pub fn seal(&self, place: &Place<'_>, text: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).map_err(|_| SealError::Library)?;
        let mut sealed = text.to_vec();
        self.current
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.associated().as_bytes()),
                &mut sealed,
            )
            .map_err(|_| SealError::Library)?;
        Ok([&[FORM], &nonce[..], &sealed].concat())
    }

    /// Opens a value that was sealed for this place.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (form, rest) = sealed.split_first().ok_or(SealError::Closed)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>().ok_or(SealError::Closed)?;
        if *form != FORM {
            return Err(SealError::Closed);
        }
        let associated = place.associated();
        let opened = std::iter::once(&self.current).chain(&self.previous).find_map(|key| {
            let mut text = text.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = key.open_in_place(nonce, Aad::from(associated.as_bytes()), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        });
        opened.ok_or(SealError::Closed)
    }
}

/// `Some(None)`: the variable is not set.
fn key(env: &mut Env, name: &'static str) -> Option<Option<LessSafeKey>> {
    let Some(bytes) = key_bytes(env, name)? else { return Some(None) };
    let key = UnboundKey::new(&AES_256_GCM, &bytes).ok().map(LessSafeKey::new);
    if key.is_none() {
        env.fault(name, "the cryptographic library does not accept it", HINT);
        return None;
    }
    Some(key)
}

/// Reads a key of 32 bytes in 64 hex digits. `Some(None)`: it is not set. `None`: a fault was recorded.
pub fn key_bytes(env: &mut Env, name: &'static str) -> Option<Option<[u8; 32]>> {
    let Some(text) = env.optional(name).map(SecretString::from) else { return Some(None) };
    if let Some(wrong) = weakness(text.expose_secret(), 1) {
        env.fault(name, wrong, HINT);
        return None;
    }
    let bytes = hex(text.expose_secret());
    if bytes.is_none() {
        env.fault(name, "it is not 32 bytes in 64 hex digits", HINT);
        return None;
    }
    Some(bytes)
}

/// Decodes 64 hex digits to 32 bytes.
pub fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        // `from_str_radix` would accept a plus sign as well.
        *byte =
            u8::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";
    const TWO: &str = "ff23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const HERE: Place<'_> = Place { table: "order_credentials", column: "sealed", id: "1" };

    fn keys<const N: usize>(variables: [(&str, &str); N]) -> SealKeys {
        let mut env = Env::of(variables);
        let keys = SealKeys::from_env(&mut env).unwrap().unwrap();
        env.finish().unwrap();
        keys
    }

    #[test]
    fn a_value_opens_in_its_place_alone_and_unchanged() {
        let keys = keys([("SEAL_KEY", ONE)]);
        let sealed = keys.seal(&HERE, b"weixin://wxpay/x").unwrap();
        assert_eq!(keys.open(&HERE, &sealed).unwrap(), b"weixin://wxpay/x");
        assert_ne!(keys.seal(&HERE, b"weixin://wxpay/x").unwrap(), sealed, "each time under another nonce");
        assert!(!sealed.windows(6).any(|part| part == b"weixin"));
        for place in [
            Place { table: "payment_orders", ..HERE },
            Place { column: "opened", ..HERE },
            Place { id: "2", ..HERE },
            Place { id: "", ..HERE },
        ] {
            assert_eq!(keys.open(&place, &sealed), Err(SealError::Closed), "{place:?}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(keys.open(&HERE, &changed), Err(SealError::Closed), "byte {at}");
            assert_eq!(keys.open(&HERE, &sealed[..at]), Err(SealError::Closed), "cut at {at}");
        }
    }

    #[test]
    fn the_previous_key_opens_and_the_new_one_seals() {
        let (old, new) = (keys([("SEAL_KEY", ONE)]), keys([("SEAL_KEY", TWO)]));
        let both = keys([("SEAL_KEY", TWO), ("PREVIOUS_SEAL_KEY", ONE)]);
        let before = old.seal(&HERE, b"x").unwrap();
        assert_eq!(both.open(&HERE, &before).unwrap(), b"x");
        let after = both.seal(&HERE, b"x").unwrap();
        assert_eq!(new.open(&HERE, &after).unwrap(), b"x");
        assert_eq!(old.open(&HERE, &after), Err(SealError::Closed));
        assert_eq!(new.open(&HERE, &before), Err(SealError::Closed));
    }

    #[test]
    fn a_key_that_is_none_stops_the_start_and_is_not_shown() {
        assert!(SealKeys::from_env(&mut Env::of([])).unwrap().is_none());
        let zeros = "0".repeat(64);
        for wrong in
            ["hidden", &zeros, "change-me", &ONE[1..], &format!("{}0", ONE), &ONE.replace("ab", "+b"), &"é".repeat(32)]
        {
            for name in ["SEAL_KEY", "PREVIOUS_SEAL_KEY"] {
                let mut env = Env::of([(name, wrong)]);
                assert!(SealKeys::from_env(&mut env).is_none(), "{wrong}");
                let text = env.finish().unwrap_err().to_string();
                assert!(text.contains(name) && !text.contains(wrong), "{text}");
            }
        }
        let mut env = Env::of([("PREVIOUS_SEAL_KEY", ONE)]);
        assert!(SealKeys::from_env(&mut env).is_none());
        assert!(env.finish().unwrap_err().to_string().contains("SEAL_KEY is not set"));
        assert!(!format!("{:?}", keys([("SEAL_KEY", ONE)])).contains("0123"));
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_any_bytes_are_an_error(text: Vec<u8>, forged: Vec<u8>) {
            let keys = keys([("SEAL_KEY", ONE)]);
            prop_assert_eq!(keys.open(&HERE, &keys.seal(&HERE, &text).unwrap()).unwrap(), text);
            prop_assert_eq!(keys.open(&HERE, &forged), Err(SealError::Closed));
        }
    }
}
