//! The platform certificates with which WeChat Pay signs if the merchant uses no public key.
//!
//! Source: WeChat Pay APIv3, "下载平台证书" `GET /v3/certificates` (D:4012076511), official SDKs, read 2025-11-20.

use serde::Deserialize;
use time::OffsetDateTime;

use crate::error::CallbackError;
use crate::keys::{Certificate, KeyError, KeyRing, Validity, VerifyingKey};
use crate::wechat::aead::{AeadError, ApiV3Key, Sealed};
use crate::wechat::sign;

/// A decrypted platform certificate.
#[derive(Debug, Clone)]
pub struct PlatformCertificate {
    /// The serial number that messages name.
    pub serial: String,
    /// Its public key.
    pub key: VerifyingKey,
    /// The start of its validity. Encrypt with the newest certificate.
    pub effective_at: OffsetDateTime,
    /// The end of its validity. It must not be dropped earlier.
    pub expires_at: OffsetDateTime,
}

impl PlatformCertificate {
    pub(super) fn validity(&self) -> Validity {
        Validity { from: Some(self.effective_at), until: Some(self.expires_at) }
    }
}

/// The error when an answer gives no usable certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificatesError {
    /// The body is not the documented JSON.
    #[error("not a list of certificates")]
    Shape,
    /// Encrypted with another APIv3 key, or tampered with.
    #[error("a certificate does not open")]
    Sealed(#[source] AeadError),
    /// Decrypted, but not a certificate with an RSA key.
    #[error("a certificate cannot be read")]
    Certificate(#[source] KeyError),
    /// The certificate has another serial number than the list says.
    #[error("a certificate has another serial number than the list says")]
    Serial,
    /// No key is loaded yet, and none of the certificates in the answer has signed it.
    #[error("none of the certificates that the answer brings has signed it")]
    OwnSignature(#[source] CallbackError),
    /// Keys are loaded, and none of them has signed the answer.
    #[error(
        "the answer is not signed by a key that we hold; compare with the merchant platform and add WeChat Pay's public \
         key or its current certificate to verify_keys"
    )]
    Signature(#[source] CallbackError),
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    serial_no: String,
    #[serde(with = "time::serde::rfc3339")]
    effective_time: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expire_time: OffsetDateTime,
    #[serde(borrow)]
    encrypt_certificate: Sealed<'a>,
}

/// Decrypts and checks an answer. The APIv3 key authenticates each certificate, but every process holds that key, so it
/// alone must not establish a verifying key. A key in `known` must have signed the answer. Only if `known` is empty,
/// before the first answer, may a certificate from the answer itself have signed it.
///
/// # Errors
/// See [`CertificatesError`].
pub fn open_list<'h>(
    apiv3_key: &ApiV3Key,
    known: &KeyRing,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: OffsetDateTime,
) -> Result<Vec<PlatformCertificate>, CertificatesError> {
    let list: List<'_> = serde_json::from_slice(body).map_err(|_| CertificatesError::Shape)?;
    let mut certificates = Vec::with_capacity(list.data.len());
    for entry in &list.data {
        let Certificate { serial, key, .. } = open_entry(apiv3_key, entry)?;
        let (effective_at, expires_at) = (entry.effective_time, entry.expire_time);
        certificates.push(PlatformCertificate { serial, key, effective_at, expires_at });
    }
    if known.is_empty() {
        // The times in the list come from the answer whose signature we check here, so they do not limit which key may
        // sign it.
        let mut brought = KeyRing::default();
        certificates.iter().for_each(|certificate| brought.insert(certificate.serial.clone(), certificate.key.clone()));
        sign::verify(&brought, header, body, Some(now)).map_err(CertificatesError::OwnSignature)?;
    } else {
        sign::verify(known, header, body, Some(now)).map_err(CertificatesError::Signature)?;
    }
    Ok(certificates)
}

fn open_entry(apiv3_key: &ApiV3Key, entry: &Entry<'_>) -> Result<Certificate, CertificatesError> {
    let pem = apiv3_key.open(&entry.encrypt_certificate).map_err(CertificatesError::Sealed)?;
    let pem = String::from_utf8(pem).map_err(|_| CertificatesError::Shape)?;
    let certificate = Certificate::from_pem(&pem).map_err(CertificatesError::Certificate)?;
    if certificate.serial == entry.serial_no { Ok(certificate) } else { Err(CertificatesError::Serial) }
}
