//! Keys: reading them from PEM, signing, verifying. One RSA rule for both gateways: RSASSA-PKCS1-v1_5 with SHA-256,
//! 2048 bits at least. Nothing here shows private material, and buffers that held it are wiped.

use std::fmt;

use aws_lc_rs::digest::{self, Digest, SHA256};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{
    KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

use super::ring::Validity;

/// Describes why a text is not the key that is needed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No `-----BEGIN …-----` block at all.
    #[error("holds no PEM block; it must hold {wanted}, from its BEGIN line to its END line")]
    NotPem {
        /// The kind of key that is needed.
        wanted: &'static str,
    },
    /// A PEM block of another kind.
    #[error("holds a PEM block `{found}`; it must hold {wanted}")]
    WrongKind {
        /// The label of the block.
        found: String,
        /// The kind of key that is needed.
        wanted: &'static str,
    },
    /// The base64 or the DER inside is broken.
    #[error("cannot be decoded as {wanted}; export it again")]
    Broken {
        /// The kind of key that is needed.
        wanted: &'static str,
    },
    /// An elliptic curve key, an SM2 key, and so on.
    #[error("is not an RSA key; both gateways need RSA for this")]
    NotRsa,
    /// Too short to be safe, or longer than 8192 bits.
    #[error("is an RSA key of {bits} bits; make one of 2048 bits or more (8192 at most)")]
    Size {
        /// Its length.
        bits: usize,
    },
    /// The system's random source or the library failed. This says nothing about the key.
    #[error("the cryptographic library failed")]
    Library,
}

const PRIVATE: &str = "an RSA private key (`PRIVATE KEY` or `RSA PRIVATE KEY`)";
const PUBLIC: &str = "a public key (`PUBLIC KEY`)";
const CERTIFICATE: &str = "a certificate (`CERTIFICATE`)";

/// Our private key for a gateway.
pub struct SigningKey {
    pair: KeyPair,
}

impl SigningKey {
    /// Reads PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1 (`BEGIN RSA PRIVATE KEY`). The content decides which, not the
    /// label, because tools confuse the labels. The base64 text is also accepted without BEGIN and END lines.
    ///
    /// # Errors
    /// [`KeyError`] for anything else, and for keys under 2048 bits.
    pub fn from_pem(text: &str) -> Result<SigningKey, KeyError> {
        let block = first_block(text, PRIVATE)?;
        let wrong = |found: &str| Err(KeyError::WrongKind { found: found.to_owned(), wanted: PRIVATE });
        if !matches!(block.label, PKCS8 | PKCS1) {
            return wrong(block.label);
        }
        let pair = match shape(&block.der) {
            Some(PKCS1) => KeyPair::from_der(&block.der),
            Some(PKCS8) | None => KeyPair::from_pkcs8(&block.der),
            Some(other) => return wrong(other),
        };
        // The library reports the error as text only. A size that it refuses gets its own error.
        pair.map(|pair| SigningKey { pair }).map_err(|error| match private_bits(&block) {
            Some(bits) if !(2048..=8192).contains(&bits) => KeyError::Size { bits },
            _ if error.to_string().contains("Algorithm") => KeyError::NotRsa,
            _ => KeyError::Broken { wanted: PRIVATE },
        })
    }

    /// The signature in base64, on one line.
    ///
    /// # Errors
    /// [`KeyError::Library`].
    pub fn sign(&self, message: &[u8]) -> Result<String, KeyError> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| KeyError::Library)?;
        Ok(STANDARD.encode(signature))
    }

    /// Whether its own public half verifies what it signs. A damaged key can be readable and still sign nonsense.
    pub fn signs(&self) -> bool {
        const MESSAGE: &[u8] = b"a message to try a key with";
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.pair.public_key().as_ref());
        let signed = self.sign(MESSAGE).ok().and_then(|signature| STANDARD.decode(signature).ok());
        signed.is_some_and(|signature| public.verify(MESSAGE, &signature).is_ok())
    }

    /// The public half, RFC 8017 `RSAPublicKey` in DER.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Whether `key` is the public half of this key. Then it is our own key, not the gateway's.
    pub fn is_pair_of(&self, key: &VerifyingKey) -> bool {
        self.pair.public_key().as_ref() == key.rsa_public_key
    }
}

/// Shows no part of the key.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// A gateway's public key, parsed once.
#[derive(Clone)]
pub struct VerifyingKey {
    key: ParsedPublicKey,
    /// RFC 8017 `RSAPublicKey`, to compare two keys.
    rsa_public_key: Vec<u8>,
    /// RFC 5280 `SubjectPublicKeyInfo`, to encrypt with.
    spki: Vec<u8>,
}

impl VerifyingKey {
    /// Reads an SPKI public key (`BEGIN PUBLIC KEY`), or its base64 text alone.
    ///
    /// # Errors
    /// [`KeyError`] for anything else, a certificate included, and for keys under 2048 bits.
    pub fn from_spki_pem(text: &str) -> Result<VerifyingKey, KeyError> {
        let block = first_block(text, PUBLIC)?.labelled("PUBLIC KEY", PUBLIC)?;
        let (_, spki) = SubjectPublicKeyInfo::from_der(&block.der).map_err(|_| KeyError::Broken { wanted: PUBLIC })?;
        VerifyingKey::from_spki(&spki)
    }

    fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<VerifyingKey, KeyError> {
        let bits = match spki.parsed() {
            Ok(PublicKey::RSA(key)) => bits(key.modulus),
            Ok(_) => return Err(KeyError::NotRsa),
            Err(_) => return Err(KeyError::Broken { wanted: PUBLIC }),
        };
        if !(2048..=8192).contains(&bits) {
            return Err(KeyError::Size { bits });
        }
        let key = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki.raw)
            .map_err(|_| KeyError::Broken { wanted: PUBLIC })?;
        let rsa_public_key = spki.subject_public_key.data.to_vec();
        Ok(VerifyingKey { key, rsa_public_key, spki: spki.raw.to_vec() })
    }

    /// Whether the private half of this key signed the message; `signature` is base64. Broken base64 just counts as a
    /// bad signature.
    pub fn verify(&self, message: &[u8], signature: &str) -> bool {
        self.verify_digest(&digest::digest(&SHA256, message), signature)
    }

    /// Like [`VerifyingKey::verify`], over a digest made piece by piece, so that the message need not be copied into
    /// one buffer.
    pub fn verify_digest(&self, sha256: &Digest, signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|bytes| self.key.verify_digest_sig(sha256, &bytes).is_ok())
    }

    /// RFC 8017 `RSAPublicKey` in DER.
    pub fn rsa(&self) -> &[u8] {
        &self.rsa_public_key
    }

    /// RFC 5280 `SubjectPublicKeyInfo` in DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

/// Shows nothing: the bytes do not show whose key it is.
impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey(..)")
    }
}

/// The parts of a certificate that we need: its key, number and validity. The caller must judge who issued it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The key that it certifies.
    pub key: VerifyingKey,
    /// Its serial number in upper-case hex, as WeChat Pay writes it.
    pub serial: String,
    /// The validity as the certificate states it.
    pub validity: Validity,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`KeyError`] for anything else, and for other keys than RSA of 2048 bits or more.
    pub fn from_pem(text: &str) -> Result<Certificate, KeyError> {
        let block = first_block(text, CERTIFICATE)?.labelled("CERTIFICATE", CERTIFICATE)?;
        let (_, certificate) =
            X509Certificate::from_der(&block.der).map_err(|_| KeyError::Broken { wanted: CERTIFICATE })?;
        Certificate::read(&certificate)
    }

    /// Reads the needed parts of a certificate that is already parsed.
    pub(crate) fn read(certificate: &X509Certificate<'_>) -> Result<Certificate, KeyError> {
        let key = VerifyingKey::from_spki(certificate.public_key())?;
        let serial = hex_upper(certificate.tbs_certificate.serial.to_bytes_be());
        let stated = certificate.validity();
        let validity =
            Validity { from: Some(stated.not_before.to_datetime()), until: Some(stated.not_after.to_datetime()) };
        Ok(Certificate { key, serial, validity })
    }
}

/// One block of a PEM text.
pub(crate) struct PemBlock<'a> {
    /// The text after `BEGIN`.
    pub label: &'a str,
    /// The bytes inside, wiped when dropped.
    pub der: Zeroizing<Vec<u8>>,
}

impl PemBlock<'_> {
    fn labelled(self, label: &str, wanted: &'static str) -> Result<Self, KeyError> {
        let found = if self.label == label { shape(&self.der).unwrap_or(label) } else { self.label };
        let fits = found == label;
        if fits { Ok(self) } else { Err(KeyError::WrongKind { found: found.to_owned(), wanted }) }
    }
}

/// The blocks of a PEM text in order. Text between blocks is skipped; a block that cannot be read ends the iteration.
pub(crate) fn pem_blocks(text: &str) -> impl Iterator<Item = Option<PemBlock<'_>>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let (_, after) = rest.take()?.split_once("-----BEGIN ")?;
        let block = read_block(after);
        rest = block.as_ref().map(|(_, rest)| *rest);
        Some(block.map(|(block, _)| block))
    })
}

fn read_block(text: &str) -> Option<(PemBlock<'_>, &str)> {
    let (label, body) = text.split_once("-----")?;
    let (body, rest) = body.split_once("-----END ")?;
    Some((PemBlock { label, der: decode(body)? }, rest))
}

/// Decodes base64 that contains line ends. They may be the two characters `\n`, as in an `.env` file or a secret store.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut packed = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            bytes.next_if(|next| matches!(next, b'n' | b'r'))?;
        } else if !byte.is_ascii_whitespace() {
            packed.push(byte);
        }
    }
    STANDARD.decode(packed.as_slice()).ok().map(Zeroizing::new)
}

fn first_block<'a>(text: &'a str, wanted: &'static str) -> Result<PemBlock<'a>, KeyError> {
    match pem_blocks(text).next() {
        Some(block) => block.ok_or(KeyError::Broken { wanted }),
        None => bare(text).ok_or(KeyError::NotPem { wanted }),
    }
}

/// The base64 text alone, as the console and its key tool give it. Its bytes show what it is.
fn bare(text: &str) -> Option<PemBlock<'static>> {
    let der = decode(text.trim().trim_matches('"'))?;
    Some(PemBlock { label: shape(&der)?, der })
}

const PKCS8: &str = "PRIVATE KEY";
const PKCS1: &str = "RSA PRIVATE KEY";

/// The PEM label that fits these bytes. `None`: the structure is unknown.
fn shape(der: &[u8]) -> Option<&'static str> {
    use x509_parser::der_parser::asn1_rs::{Any, Sequence, Tag};
    let tags = |der: &[u8]| -> Option<(Tag, Tag, Vec<u8>, bool)> {
        let (_, outer) = Sequence::from_der(der).ok()?;
        let (rest, first) = Any::from_der(&outer.content).ok()?;
        let (_, second) = Any::from_der(rest).ok()?;
        Some((first.tag(), second.tag(), first.data.to_vec(), first.data == [0]))
    };
    let (first, second, inner, zero) = tags(der)?;
    match (first, second) {
        (Tag::Integer, Tag::Sequence) => Some(PKCS8),
        (Tag::Integer, Tag::Integer) if zero => Some(PKCS1),
        (Tag::Integer, Tag::Integer) => Some("RSA PUBLIC KEY"),
        (Tag::Integer, Tag::OctetString) => Some("EC PRIVATE KEY"),
        (Tag::Sequence, Tag::BitString) => Some("PUBLIC KEY"),
        (Tag::Sequence, Tag::Sequence) if inner.first().is_some_and(|tag| *tag != 0x06) => Some("CERTIFICATE"),
        _ => None,
    }
}

/// The length of an RSA private key, read without the library, because the library refuses short keys.
fn private_bits(block: &PemBlock<'_>) -> Option<usize> {
    use x509_parser::der_parser::asn1_rs::{Any, Integer, OctetString, Sequence};
    fn modulus(der: &[u8]) -> Option<usize> {
        let (_, key) = Sequence::from_der(der).ok()?;
        let (rest, _version) = Integer::from_der(&key.content).ok()?;
        let (_, modulus) = Integer::from_der(rest).ok()?;
        Some(bits(modulus.as_ref()))
    }
    if block.label == "RSA PRIVATE KEY" {
        return modulus(&block.der);
    }
    let (_, info) = Sequence::from_der(&block.der).ok()?;
    let (rest, _version) = Integer::from_der(&info.content).ok()?;
    let (rest, _algorithm) = Any::from_der(rest).ok()?;
    let (_, key) = OctetString::from_der(rest).ok()?;
    modulus(key.as_ref())
}

fn bits(big_endian: &[u8]) -> usize {
    let start = big_endian.iter().position(|byte| *byte != 0).unwrap_or(big_endian.len());
    let significant = &big_endian[start..];
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}

fn hex_upper(bytes: Vec<u8>) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A random part of `span`, so that many processes do not query a gateway in the same second.
///
/// # Errors
/// [`KeyError::Library`].
pub(crate) fn jitter(span: std::time::Duration) -> Result<std::time::Duration, KeyError> {
    let mut bytes = [0; 2];
    rand::fill(&mut bytes).map_err(|_| KeyError::Library)?;
    Ok(span * u32::from(u16::from_be_bytes(bytes)) / u32::from(u16::MAX))
}

/// A fresh nonce: 32 characters of `[0-9A-F]`, 128 random bits.
///
/// # Errors
/// [`KeyError::Library`].
pub fn nonce() -> Result<String, KeyError> {
    let mut bytes = vec![0; 16];
    rand::fill(&mut bytes).map_err(|_| KeyError::Library)?;
    Ok(hex_upper(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP_PRIVATE: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_app_private_pkcs8.pem");
    const APP_PRIVATE_PKCS1: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_app_private_pkcs1.pem");
    const APP_PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_app_public.pem");
    const OTHER_PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_other_public.pem");
    const PLATFORM_CERT: &str = include_str!("../../tests/fixtures/vectors/keys/wx_platform_cert.pem");
    const EC_CERT: &str = include_str!("../../tests/fixtures/vectors/keys/ca_ec_cert.pem");

    #[test]
    fn both_private_forms_give_the_same_signature() {
        let one = SigningKey::from_pem(APP_PRIVATE).unwrap().sign(b"text").unwrap();
        let two = SigningKey::from_pem(APP_PRIVATE_PKCS1).unwrap().sign(b"text").unwrap();
        assert_eq!(one, two);
        let key = VerifyingKey::from_spki_pem(APP_PUBLIC).unwrap();
        assert!(key.verify(b"text", &one));
        for bad in ["", "=", "not base64!", &one[1..], &format!("{one}\n"), &format!("A{one}")] {
            assert!(!key.verify(b"text", bad), "{bad:?}");
        }
        assert!(!key.verify(b"Text", &one));
    }

    #[test]
    fn a_key_of_the_wrong_kind_is_named() {
        let found = |error: KeyError| match error {
            KeyError::WrongKind { found, .. } => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(found(SigningKey::from_pem(APP_PUBLIC).unwrap_err()), "PUBLIC KEY");
        assert_eq!(found(VerifyingKey::from_spki_pem(APP_PRIVATE).unwrap_err()), "PRIVATE KEY");
        assert_eq!(found(VerifyingKey::from_spki_pem(PLATFORM_CERT).unwrap_err()), "CERTIFICATE");
        assert_eq!(found(Certificate::from_pem(APP_PUBLIC).unwrap_err()), "PUBLIC KEY");
        assert_eq!(Certificate::from_pem(EC_CERT).unwrap_err(), KeyError::NotRsa);
        assert_eq!(SigningKey::from_pem("MIIE").unwrap_err(), KeyError::NotPem { wanted: PRIVATE });
        let broken = APP_PUBLIC.replace("MII", "M?I");
        assert_eq!(VerifyingKey::from_spki_pem(&broken).unwrap_err(), KeyError::Broken { wanted: PUBLIC });
        assert_eq!(
            VerifyingKey::from_spki_pem("-----BEGIN PUBLIC KEY-----\nMIIB").unwrap_err(),
            KeyError::Broken { wanted: PUBLIC }
        );
    }

    /// A key between wrong marks, with line ends as two characters, or without marks.
    #[test]
    fn every_form_in_which_a_console_gives_a_key_is_taken() {
        let body = |pem: &str| pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>();
        let marked = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let signature = SigningKey::from_pem(APP_PRIVATE).unwrap().sign(b"text").unwrap();
        for pem in [APP_PRIVATE, APP_PRIVATE_PKCS1] {
            for form in [
                body(pem),
                format!("\"{}\"\n", body(pem)),
                pem.replace('\n', "\\n"),
                pem.replace('\n', "\\r\\n"),
                pem.replace('\n', "\r\n"),
                pem.replace('\n', " "),
                marked("PRIVATE KEY", &body(pem)),
                marked("RSA PRIVATE KEY", &body(pem)),
            ] {
                assert_eq!(SigningKey::from_pem(&form).unwrap().sign(b"text").unwrap(), signature, "{form:.60}");
            }
        }
        for form in [body(APP_PUBLIC), APP_PUBLIC.replace('\n', "\\n"), APP_PUBLIC.replace('\n', " ")] {
            assert!(VerifyingKey::from_spki_pem(&form).unwrap().verify(b"text", &signature), "{form:.60}");
        }
        let certificate = Certificate::from_pem(&body(PLATFORM_CERT)).unwrap();
        assert_eq!(certificate.serial, Certificate::from_pem(PLATFORM_CERT).unwrap().serial);
    }

    #[test]
    fn a_form_that_is_not_taken_is_named() {
        let body = |pem: &str| pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>();
        let wrong = |error: KeyError, wanted: &str| match error {
            KeyError::WrongKind { found, .. } => assert_eq!(found, wanted),
            other => panic!("{other:?}"),
        };
        let marked = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        wrong(SigningKey::from_pem(&body(APP_PUBLIC)).unwrap_err(), "PUBLIC KEY");
        wrong(SigningKey::from_pem(&marked("PRIVATE KEY", &body(APP_PUBLIC))).unwrap_err(), "PUBLIC KEY");
        wrong(SigningKey::from_pem(&body(PLATFORM_CERT)).unwrap_err(), "CERTIFICATE");
        wrong(VerifyingKey::from_spki_pem(&body(APP_PRIVATE)).unwrap_err(), "PRIVATE KEY");
        wrong(
            VerifyingKey::from_spki_pem(&marked("PUBLIC KEY", &body(APP_PRIVATE_PKCS1))).unwrap_err(),
            "RSA PRIVATE KEY",
        );
        wrong(VerifyingKey::from_spki_pem(&body(PLATFORM_CERT)).unwrap_err(), "CERTIFICATE");
        let encrypted = marked("ENCRYPTED PRIVATE KEY", &body(APP_PRIVATE));
        wrong(SigningKey::from_pem(&encrypted).unwrap_err(), "ENCRYPTED PRIVATE KEY");
        for nothing in ["", "secret", "MIIE", "bm90IGEga2V5", &APP_PRIVATE[40..200]] {
            let error = SigningKey::from_pem(nothing).unwrap_err();
            assert_eq!(error, KeyError::NotPem { wanted: PRIVATE }, "{nothing:.20}");
        }
        assert_eq!(
            SigningKey::from_pem(&APP_PRIVATE.replace('\n', "\\x")).unwrap_err(),
            KeyError::Broken { wanted: PRIVATE }
        );
    }

    #[test]
    fn a_short_key_is_refused_with_its_length() {
        use rsa::pkcs1::EncodeRsaPrivateKey as _;
        use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 1024).unwrap();
        let size = KeyError::Size { bits: 1024 };
        assert_eq!(SigningKey::from_pem(&key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap_err(), size);
        assert_eq!(SigningKey::from_pem(&key.to_pkcs1_pem(LineEnding::LF).unwrap()).unwrap_err(), size);
        let public = key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
        assert_eq!(VerifyingKey::from_spki_pem(&public).unwrap_err(), size);
    }

    #[test]
    fn our_own_public_key_is_recognised() {
        let ours = SigningKey::from_pem(APP_PRIVATE).unwrap();
        assert!(ours.signs());
        assert!(ours.is_pair_of(&VerifyingKey::from_spki_pem(APP_PUBLIC).unwrap()));
        assert!(!ours.is_pair_of(&VerifyingKey::from_spki_pem(OTHER_PUBLIC).unwrap()));
    }

    #[test]
    fn nothing_is_shown_of_a_key() {
        assert_eq!(format!("{:?}", SigningKey::from_pem(APP_PRIVATE).unwrap()), "SigningKey(..)");
        assert_eq!(format!("{:?}", VerifyingKey::from_spki_pem(APP_PUBLIC).unwrap()), "VerifyingKey(..)");
    }

    #[test]
    fn a_nonce_is_32_characters_and_new_each_time() {
        let one = nonce().unwrap();
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(one, nonce().unwrap());
    }
}
