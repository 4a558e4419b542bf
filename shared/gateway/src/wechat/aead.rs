//! AEAD_AES_256_GCM with the APIv3 key: how WeChat Pay encrypts what it posts.
//!
//! Source: WeChat Pay APIv3, "证书和回调报文解密", read 2025-11-20.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretBox};
use serde::Deserialize;

/// The error when the key text is not 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is {found} bytes long; the APIv3 key is exactly 32 bytes of text, not decoded from hex or base64")]
pub struct KeyLength {
    /// The actual number of bytes.
    pub found: usize,
}

/// The key set in the merchant console. Its 32 bytes are used unchanged.
pub struct ApiV3Key(SecretBox<[u8; 32]>);

impl ApiV3Key {
    /// # Errors
    /// [`KeyLength`] for any other length than 32 bytes.
    pub fn new(text: &str) -> Result<ApiV3Key, KeyLength> {
        let bytes = text.as_bytes().try_into().map_err(|_| KeyLength { found: text.len() })?;
        Ok(ApiV3Key(SecretBox::new(Box::new(bytes))))
    }

    /// Decrypts a sealed text.
    ///
    /// # Errors
    /// [`AeadError`].
    pub fn open(&self, sealed: &Sealed<'_>) -> Result<Vec<u8>, AeadError> {
        if sealed.algorithm != "AEAD_AES_256_GCM" {
            return Err(AeadError::Algorithm);
        }
        let nonce: &[u8; 12] = sealed.nonce.as_bytes().try_into().map_err(|_| AeadError::Nonce)?;
        let ciphertext = STANDARD.decode(sealed.ciphertext.as_bytes()).map_err(|_| AeadError::Base64)?;
        let cipher = Aes256Gcm::new(self.0.expose_secret().into());
        let payload = Payload { msg: &ciphertext, aad: sealed.associated_data.as_bytes() };
        cipher.decrypt(nonce.into(), payload).map_err(|_| AeadError::Forged)
    }
}

/// Shows nothing.
impl std::fmt::Debug for ApiV3Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiV3Key(..)")
    }
}

/// A sealed text with the fields needed to open it, as in JSON.
#[derive(Deserialize)]
pub struct Sealed<'a> {
    /// The only known algorithm is `AEAD_AES_256_GCM`.
    #[serde(borrow)]
    pub algorithm: std::borrow::Cow<'a, str>,
    /// 12 bytes of text.
    #[serde(borrow)]
    pub nonce: std::borrow::Cow<'a, str>,
    /// Authenticated together with the text; absent, null and empty mean the same.
    #[serde(borrow, default, deserialize_with = "absent_or_null")]
    pub associated_data: std::borrow::Cow<'a, str>,
    /// Base64; the last 16 bytes are the tag.
    #[serde(borrow)]
    pub ciphertext: std::borrow::Cow<'a, str>,
}

fn absent_or_null<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<std::borrow::Cow<'a, str>, D::Error> {
    Ok(Option::<std::borrow::Cow<'a, str>>::deserialize(deserializer)?.unwrap_or_default())
}

/// The error when a sealed text does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AeadError {
    /// Not `AEAD_AES_256_GCM`.
    #[error("unknown algorithm")]
    Algorithm,
    /// Not 12 bytes.
    #[error("a nonce of another length than 12 bytes")]
    Nonce,
    /// Not base64.
    #[error("a ciphertext that is not base64")]
    Base64,
    /// The key is another one, or the text, tag, nonce or associated data was changed.
    #[error("the APIv3 key does not open it")]
    Forged,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn sealed<'a>(nonce: &'a str, ciphertext: &'a str) -> Sealed<'a> {
        Sealed {
            algorithm: "AEAD_AES_256_GCM".into(),
            nonce: nonce.into(),
            associated_data: "transaction".into(),
            ciphertext: ciphertext.into(),
        }
    }

    #[test]
    fn a_key_has_32_bytes() {
        assert!(ApiV3Key::new(KEY).is_ok());
        assert_eq!(ApiV3Key::new(&KEY[1..]).unwrap_err(), KeyLength { found: 31 });
        assert_eq!(format!("{:?}", ApiV3Key::new(KEY).unwrap()), "ApiV3Key(..)");
    }

    #[test]
    fn a_nonce_of_another_length_is_an_error() {
        let key = ApiV3Key::new(KEY).unwrap();
        for nonce in ["", "short", "thirteen byte", "大大大大大"] {
            assert_eq!(key.open(&sealed(nonce, "AAAA")), Err(AeadError::Nonce), "{nonce}");
        }
    }

    #[test]
    fn absent_null_and_empty_associated_data_are_one() {
        for text in [
            r#"{"algorithm":"a","nonce":"n","ciphertext":"c"}"#,
            r#"{"algorithm":"a","nonce":"n","ciphertext":"c","associated_data":null}"#,
            r#"{"algorithm":"a","nonce":"n","ciphertext":"\/c","associated_data":""}"#,
        ] {
            assert_eq!(serde_json::from_str::<Sealed<'_>>(text).unwrap().associated_data, "");
        }
    }

    proptest! {
        #[test]
        fn nothing_made_up_opens(nonce in "[a-z0-9]{12}", ciphertext in "[A-Za-z0-9+/=]{0,200}") {
            prop_assert!(ApiV3Key::new(KEY).unwrap().open(&sealed(&nonce, &ciphertext)).is_err());
        }
    }
}
