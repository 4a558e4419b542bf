//! Certificates, written byte by byte: version 3, RSA with SHA-256, a name, a validity, and whether it is an authority.
//!
//! Source: RFC 5280 and X.690 (DER).

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;

use crate::crypto::{Signer, to_pem};

/// A distinguished name: `C=CN`, followed by these two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// `O`.
    pub organization: String,
    /// `CN`.
    pub common_name: String,
}

/// The contents of a certificate.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its number, big-endian, positive and without leading zeros.
    pub serial: Vec<u8>,
    /// The owner of the key.
    pub subject: Name,
    /// The start of its validity.
    pub from: OffsetDateTime,
    /// The end of its validity.
    pub until: OffsetDateTime,
    /// Whether it may issue other certificates.
    pub authority: bool,
}

/// The certificate of `key` as PEM, issued under a name with that name's key.
///
/// # Errors
/// When the library cannot write the key, or a time cannot be formatted.
pub fn issue(statement: &Statement, key: &Signer, issuer: &Name, issuing: &Signer) -> Result<String> {
    let algorithm = sequence(&[&oid(SHA256_WITH_RSA), &tlv(NULL, &[])]);
    let version = tlv(0xa0, &tlv(INTEGER, &[2]));
    let validity = sequence(&[&moment(statement.from)?, &moment(statement.until)?]);
    let public = key.public_der()?;
    let authority = sequence(&[&tlv(BOOLEAN, &[0xff])]);
    let constraints = sequence(&[&oid(BASIC_CONSTRAINTS), &tlv(BOOLEAN, &[0xff]), &tlv(OCTETS, &authority)]);
    let extensions = if statement.authority { tlv(0xa3, &sequence(&[&constraints])) } else { Vec::new() };
    let body = sequence(&[
        &version,
        &tlv(INTEGER, &statement.serial),
        &algorithm,
        &issuer.der(),
        &validity,
        &statement.subject.der(),
        &public,
        &extensions,
    ]);
    let signature = STANDARD.decode(issuing.sign(&body)).context("the signature is base64")?;
    let signature = [&[0], signature.as_slice()].concat();
    Ok(to_pem(&sequence(&[&body, &algorithm, &tlv(BITS, &signature)]), "CERTIFICATE"))
}

impl Name {
    fn der(&self) -> Vec<u8> {
        let attribute = |kind: &[u8], tag: u8, value: &str| {
            tlv(SET, &sequence(&[&oid(kind), &tlv(tag, value.as_bytes())])) //
        };
        let country = attribute(COUNTRY, PRINTABLE, "CN");
        let organization = attribute(ORGANIZATION, UTF8, &self.organization);
        let common_name = attribute(COMMON_NAME, UTF8, &self.common_name);
        sequence(&[&country, &organization, &common_name])
    }

    /// The name in RFC 2253 form; the names created here need no escapes.
    pub(crate) fn rfc2253(&self) -> String {
        format!("CN={},O={},C=CN", self.common_name, self.organization)
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// 1.2.840.113549.1.1.11
const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
/// 2.5.29.19
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 2.5.4.6
const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
/// 2.5.4.10
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

fn oid(encoded: &[u8]) -> Vec<u8> {
    tlv(OID, encoded)
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1)..];
    let mut der = vec![tag];
    if value.len() >= 0x80 {
        der.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
    }
    der.extend_from_slice(significant);
    der.extend_from_slice(value);
    der
}

/// A year before 2050 has two digits, a later one four.
fn moment(at: OffsetDateTime) -> Result<Vec<u8>> {
    use time::macros::format_description;
    let at = at.to_offset(time::UtcOffset::UTC);
    if at.year() < 2050 {
        let format = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
        return Ok(tlv(UTC_TIME, at.format(&format)?.as_bytes()));
    }
    let format = format_description!("[year][month][day][hour][minute][second]Z");
    Ok(tlv(GENERALIZED_TIME, at.format(&format)?.as_bytes()))
}
