//! The certificate numbers that Alipay's certificate mode uses.
//!
//! Source: Alipay OpenAPI, C:057k53, and the official Java SDK, which decides where SDKs differ (it writes the issuer
//! as the JDK's `X500Principal.getName()` does). Read 2025-11-20.

use md5::{Digest as _, Md5};
use x509_parser::der_parser::asn1_rs::{Any, ToDer as _};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer as _, X509Certificate, X509Name};

use crate::keys::pem_blocks;

/// The error when a text holds no certificate whose number can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// No `BEGIN CERTIFICATE` block.
    #[error("holds no certificate")]
    None,
    /// A block that is not a certificate, or whose name cannot be written as text.
    #[error("holds a certificate that cannot be read")]
    Broken,
}

/// The number of the first certificate in a PEM text (a chain file begins with its leaf). It is `app_cert_sn` in
/// requests and `alipay_cert_sn` in answers.
///
/// # Errors
/// [`CertError`].
pub fn cert_sn(pem: &str) -> Result<String, CertError> {
    let block = pem_blocks(pem).next().ok_or(CertError::None)?.ok_or(CertError::Broken)?;
    let (_, certificate) = X509Certificate::from_der(&block.der).map_err(|_| CertError::Broken)?;
    number(&certificate)
}

/// `alipay_root_cert_sn`: the numbers of the root bundle's RSA certificates in order, joined by `_`. Roots with another
/// signature algorithm (EC, SM2) are skipped.
///
/// # Errors
/// [`CertError`].
pub fn root_cert_sn(pem: &str) -> Result<String, CertError> {
    let mut numbers = Vec::new();
    for block in pem_blocks(pem) {
        let block = block.ok_or(CertError::Broken)?;
        let (_, certificate) = X509Certificate::from_der(&block.der).map_err(|_| CertError::Broken)?;
        if certificate.signature_algorithm.algorithm.to_id_string().starts_with("1.2.840.113549.1.1.") {
            numbers.push(number(&certificate)?);
        }
    }
    if numbers.is_empty() { Err(CertError::None) } else { Ok(numbers.join("_")) }
}

pub(super) fn number(certificate: &X509Certificate<'_>) -> Result<String, CertError> {
    let issuer = rfc2253(certificate.issuer())?;
    let serial = certificate.tbs_certificate.serial.to_string();
    Ok(Md5::digest(format!("{issuer}{serial}")).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A name in the form of RFC 2253: the last attribute comes first.
fn rfc2253(name: &X509Name<'_>) -> Result<String, CertError> {
    let mut parts = Vec::new();
    for rdn in name.iter() {
        let attributes: Result<Vec<_>, _> = rdn.iter().map(attribute).collect();
        parts.push(attributes?.join("+"));
    }
    parts.reverse();
    Ok(parts.join(","))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Result<String, CertError> {
    let oid = attribute.attr_type().to_id_string();
    let keyword = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => return Ok(format!("{oid}=#{}", hex_der(attribute.attr_value())?)),
    };
    let value = attribute.as_str().map_err(|_| CertError::Broken)?;
    Ok(format!("{keyword}={}", escaped(value)))
}

fn hex_der(value: &Any<'_>) -> Result<String, CertError> {
    let der = value.to_der_vec().map_err(|_| CertError::Broken)?;
    Ok(der.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        let edge = (at == 0 && matches!(c, ' ' | '#')) || (at == last && c == ' ');
        if edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_of_a_name_are_escaped() {
        for (value, text) in [
            ("Test, Inc. + Co", "Test\\, Inc. \\+ Co"),
            ("#1 <a>;\"\\", "\\#1 \\<a\\>\\;\\\"\\\\"),
            (" a ", "\\ a\\ "),
            (" ", "\\ "),
            ("", ""),
        ] {
            assert_eq!(escaped(value), text);
        }
    }

    #[test]
    fn a_text_without_certificates_has_no_number() {
        assert_eq!(cert_sn("nothing"), Err(CertError::None));
        assert_eq!(root_cert_sn(""), Err(CertError::None));
        let key = include_str!("../../tests/fixtures/vectors/keys/alipay_app_public.pem");
        assert_eq!(cert_sn(key), Err(CertError::Broken));
    }
}
