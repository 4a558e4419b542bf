//! RSA, AES-GCM, PEM and random values: a thin layer over aws-lc-rs.
//!
//! Only the arithmetic comes from the library. The strings to sign are built in `alipay::sign` and `wechat::sign`,
//! only from the protocol documents.

use anyhow::{Context, Result, bail};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";

/// A private RSA key that signs RSASSA-PKCS1-v1_5 with SHA-256.
#[derive(Debug)]
pub struct Signer(KeyPair);

impl Signer {
    /// A new 2048-bit key.
    ///
    /// # Errors
    /// When the library cannot create one.
    pub fn generate() -> Result<Signer> {
        KeyPair::generate(KeySize::Rsa2048).map(Signer).map_err(|_| anyhow::anyhow!("no RSA key could be made"))
    }

    /// Reads PKCS#8 PEM text.
    ///
    /// # Errors
    /// When the text is not such a key.
    pub fn from_pem(pem: &str) -> Result<Signer> {
        let der = from_pem(pem, PRIVATE)?;
        KeyPair::from_pkcs8(&der).map(Signer).map_err(|error| anyhow::anyhow!("not an RSA private key: {error}"))
    }

    /// The key as PKCS#8 PEM text.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn private_pem(&self) -> Result<String> {
        let der = AsDer::<Pkcs8V1Der>::as_der(&self.0).map_err(|_| anyhow::anyhow!("the key cannot be written"))?;
        Ok(to_pem(der.as_ref(), PRIVATE))
    }

    /// The public key as SPKI PEM text.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn public_pem(&self) -> Result<String> {
        Ok(to_pem(&self.public_der()?, PUBLIC))
    }

    /// The public key as SPKI in DER.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn public_der(&self) -> Result<Vec<u8>> {
        let der = AsDer::<PublicKeyX509Der>::as_der(self.0.public_key());
        der.map(|der| der.as_ref().to_vec()).map_err(|_| anyhow::anyhow!("the key cannot be written"))
    }

    /// The signature of `message`, base64 on one line.
    ///
    /// # Panics
    /// Never with a key that this type can hold: signing fails only when memory runs out.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("RSA signing");
        STANDARD.encode(signature)
    }
}

/// Decryption of what was encrypted for the holder of the key.
impl Signer {
    /// Decrypts what was encrypted with RSAES-OAEP (SHA-1) under the public key: base64 in, text out.
    #[must_use]
    pub fn open(&self, sealed: &str) -> Option<String> {
        let der = AsDer::<Pkcs8V1Der>::as_der(&self.0).ok()?;
        let key = OaepPrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(der.as_ref()).ok()?).ok()?;
        let mut open = vec![0; key.min_output_size()];
        let open = key.decrypt(&OAEP_SHA1_MGF1SHA1, &STANDARD.decode(sealed).ok()?, &mut open, None).ok()?;
        String::from_utf8(open.to_vec()).ok()
    }
}

/// A public RSA key that verifies what a [`Signer`] signed.
#[derive(Debug)]
pub struct Verifier(ParsedPublicKey);

impl Verifier {
    /// Reads SPKI PEM text.
    ///
    /// # Errors
    /// When the text is not such a key.
    pub fn from_pem(pem: &str) -> Result<Verifier> {
        let der = from_pem(pem, PUBLIC)?;
        ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der)
            .map(Verifier)
            .map_err(|error| anyhow::anyhow!("not an RSA public key: {error}"))
    }

    /// Whether `signature` (base64) is valid for `message`.
    #[must_use]
    pub fn accepts(&self, message: &[u8], signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| self.0.verify_sig(message, &signature).is_ok())
    }
}

/// Encrypts with AES-256-GCM. The result is base64; the tag is at its end.
///
/// # Panics
/// Never: the lengths are fixed by the types.
#[must_use]
pub fn seal(key: &[u8; 32], nonce: &[u8; 12], associated: &[u8], plaintext: &[u8]) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"));
    let mut text = plaintext.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(associated), &mut text)
        .expect("a text far below the limit of GCM");
    STANDARD.encode(text)
}

/// SHA-256.
pub(crate) fn sha256(text: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Random bytes from the operating system.
#[must_use]
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// `length` random characters of `alphabet`.
#[must_use]
pub(crate) fn random_text(length: usize, alphabet: &[u8]) -> String {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in random::<64>() {
            let reach = 256 / alphabet.len() * alphabet.len(); // Beyond it some characters would be more frequent.
            if usize::from(byte) < reach && text.len() < length {
                text.push(char::from(alphabet[usize::from(byte) % alphabet.len()]));
            }
        }
    }
    text
}

pub(crate) const DIGITS: &[u8] = b"0123456789";
pub(crate) const HEX_UPPER: &[u8] = b"0123456789ABCDEF";
pub(crate) const ALPHANUMERIC: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

pub(crate) fn to_pem(der: &[u8], label: &str) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn from_pem(pem: &str, label: &str) -> Result<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let Some((_, rest)) = pem.split_once(&begin) else { bail!("no {label} in this PEM text") };
    let Some((body, _)) = rest.split_once(&end) else { bail!("this {label} has no end") };
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).with_context(|| format!("this {label} is not base64"))
}

#[cfg(test)]
mod tests {
    use rsa::pkcs1v15::{Signature, SigningKey, VerifyingKey};
    use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
    use rsa::sha2::Sha256;
    use rsa::signature::{SignatureEncoding as _, Signer as _, Verifier as _};

    use super::*;

    #[test]
    fn another_library_reads_our_keys_and_agrees_on_signatures() {
        let ours = Signer::generate().unwrap();
        let (private, public) = (ours.private_pem().unwrap(), ours.public_pem().unwrap());
        let theirs = SigningKey::<Sha256>::new(rsa::RsaPrivateKey::from_pkcs8_pem(&private).unwrap());
        let signature = ours.sign("付款 1.00".as_bytes());
        assert_eq!(STANDARD.encode(theirs.sign("付款 1.00".as_bytes()).to_bytes()), signature);
        let key = VerifyingKey::<Sha256>::new(rsa::RsaPublicKey::from_public_key_pem(&public).unwrap());
        let bytes = STANDARD.decode(&signature).unwrap();
        key.verify("付款 1.00".as_bytes(), &Signature::try_from(bytes.as_slice()).unwrap()).unwrap();
        let verifier = Verifier::from_pem(&public).unwrap();
        assert!(verifier.accepts("付款 1.00".as_bytes(), &signature));
        assert!(!verifier.accepts("付款 1.01".as_bytes(), &signature));
        assert!(!verifier.accepts("付款 1.00".as_bytes(), "not base64"));
        assert!(Signer::from_pem(&public).is_err() && Verifier::from_pem(&private).is_err());
    }

    #[test]
    fn random_text_keeps_to_its_alphabet() {
        let text = random_text(200, DIGITS);
        assert!(text.len() == 200 && text.bytes().all(|byte| byte.is_ascii_digit()));
        assert_ne!(random_text(32, ALPHANUMERIC), random_text(32, ALPHANUMERIC));
    }
}
