//! Checks that a certificate from Alipay leads to the configured root bundle.
//!
//! Source: Alipay OpenAPI, C:057k53; the official Java SDK (`AntCertificationUtil.verifyCertChain`), read 2025-11-20.
//! We are stricter: issuers must be authorities, every certificate must be in force, and SHA-1 proves nothing.

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters,
    UnparsedPublicKey,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::alipay::cert::{CertError, number};
use crate::keys::{Certificate, KeyTime, Validity, VerifyingKey, pem_blocks};

/// The longest path from a leaf to its root; Alipay's have three certificates.
const MAX_LINKS: usize = 5;
/// We read at most this many certificates of a text. A chain has fewer, and a bundle has a handful.
const MAX_CERTIFICATES: usize = 16;

/// A certificate of Alipay's.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// Its number, as in answers.
    pub sn: String,
    pub key: VerifyingKey,
    pub validity: Validity,
    /// The organization it was issued to. The authority also issues certificates to merchants.
    pub organization: Option<String>,
}

impl Issued {
    /// Reads the first certificate of a PEM text.
    pub(crate) fn from_pem(text: &str) -> Result<Issued, CertError> {
        let block = pem_blocks(text).next().ok_or(CertError::None)?.ok_or(CertError::Broken)?;
        let (_, certificate) = X509Certificate::from_der(&block.der).map_err(|_| CertError::Broken)?;
        Issued::read(&certificate)
    }

    fn read(certificate: &X509Certificate<'_>) -> Result<Issued, CertError> {
        let Certificate { key, validity, .. } = Certificate::read(certificate).map_err(|_| CertError::Broken)?;
        let organization = certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        Ok(Issued { sn: number(certificate)?, key, validity, organization: organization.map(str::to_owned) })
    }
}

/// The root bundle, trusted because the operator put it there.
#[derive(Debug, Clone)]
pub(crate) struct Roots(Vec<Vec<u8>>);

impl Roots {
    pub(crate) fn from_pem(text: &str) -> Result<Roots, CertError> {
        ders(text).map(Roots)
    }
}

/// The error when a certificate is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("the certificate cannot be read")]
    Unreadable(#[from] CertError),
    #[error("a certificate of the chain {0}")]
    Time(KeyTime),
    #[error("the chain does not lead to a root of alipay_root_cert")]
    NoRoot,
}

/// Follows the chain from the first certificate of a PEM text, through the others in it, to a root.
pub(crate) fn check(text: &str, roots: &Roots, at: OffsetDateTime) -> Result<Issued, ChainError> {
    let brought = ders(text)?;
    let (brought, roots) = (parsed(&brought), parsed(&roots.0));
    let leaf = brought.first().ok_or(CertError::Broken)?;
    let mut current = leaf;
    for _ in 0..MAX_LINKS {
        in_force(current, at)?;
        let issued = |issuer: &&X509Certificate<'_>| has_issued(issuer, current);
        if let Some(root) = roots.iter().find(issued) {
            in_force(root, at)?;
            return Ok(Issued::read(leaf)?);
        }
        current = brought.iter().find(issued).ok_or(ChainError::NoRoot)?;
    }
    Err(ChainError::NoRoot)
}

fn ders(text: &str) -> Result<Vec<Vec<u8>>, CertError> {
    let blocks = pem_blocks(text).take(MAX_CERTIFICATES);
    let ders: Option<Vec<Vec<u8>>> = blocks.map(|block| block.map(|block| block.der.to_vec())).collect();
    match ders {
        None => Err(CertError::Broken),
        Some(ders) if ders.is_empty() => Err(CertError::None),
        Some(ders) => Ok(ders),
    }
}

/// Skips what cannot be parsed as a certificate: bundles hold curves and algorithms of all sorts.
fn parsed(ders: &[Vec<u8>]) -> Vec<X509Certificate<'_>> {
    ders.iter().filter_map(|der| X509Certificate::from_der(der).ok()).map(|(_, certificate)| certificate).collect()
}

fn in_force(certificate: &X509Certificate<'_>, at: OffsetDateTime) -> Result<(), ChainError> {
    let stated = certificate.validity();
    let validity =
        Validity { from: Some(stated.not_before.to_datetime()), until: Some(stated.not_after.to_datetime()) };
    validity.check(at).map_err(ChainError::Time)
}

/// Whether `issuer` is an authority, is the issuer that `certificate` names, and signed it.
fn has_issued(issuer: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
    let named = issuer.subject().as_raw() == certificate.issuer().as_raw();
    let authority = issuer.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
    let may_sign = match issuer.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    named && authority && may_sign && signed(issuer, certificate)
}

fn signed(issuer: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
    let algorithm: &RsaParameters = match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.11" => &RSA_PKCS1_2048_8192_SHA256,
        "1.2.840.113549.1.1.12" => &RSA_PKCS1_2048_8192_SHA384,
        "1.2.840.113549.1.1.13" => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let key = UnparsedPublicKey::new(algorithm, issuer.public_key().raw);
    key.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).is_ok()
}
