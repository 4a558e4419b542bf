//! Encrypts fields that only WeChat Pay may read: a bank account, a name.
//!
//! Source: WeChat Pay APIv3, "敏感信息加解密"; RSAES-OAEP with SHA-1, as the official SDKs do it. Read 2025-11-20.

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::keys::VerifyingKey;

/// The error when a field was not encrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SensitiveError {
    /// Longer than one block can hold: 214 bytes with a key of 2048 bits.
    #[error("more than {limit} bytes")]
    TooLong {
        /// The maximum for this key.
        limit: usize,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
}

/// The encrypted field in base64. The request names the key in `Wechatpay-Serial`.
///
/// # Errors
/// See [`SensitiveError`].
pub fn encrypt(key: &VerifyingKey, plaintext: &str) -> Result<String, SensitiveError> {
    let key = PublicEncryptingKey::from_der(key.spki()).map_err(|_| SensitiveError::Library)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| SensitiveError::Library)?;
    let limit = key.max_plaintext_size(&OAEP_SHA1_MGF1SHA1);
    if plaintext.len() > limit {
        return Err(SensitiveError::TooLong { limit });
    }
    let mut block = vec![0; key.ciphertext_size()];
    let sealed = key
        .encrypt(&OAEP_SHA1_MGF1SHA1, plaintext.as_bytes(), &mut block, None)
        .map_err(|_| SensitiveError::Library)?;
    Ok(STANDARD.encode(sealed))
}
