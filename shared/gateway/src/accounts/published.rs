//! Keys that this repository publishes. The test vectors contain their private halves, so a signature by them proves
//! nothing. Only a simulator's account may use them.

use aws_lc_rs::digest::{SHA256, digest};

use crate::accounts::fields::Section;

/// SHA-256 of the `RSAPublicKey` (RFC 8017) of each key in `shared/gateway/tests/fixtures/vectors/keys`, and of each
/// APIv3 key.
const PUBLISHED: [&str; 13] = [
    "e4ca1b537e29902db782045cb4f1edb77fe33e65767f69fca535e0b3b73e1ca7",
    "528bdee37c5b1dde1d737926437a9e9684dea200b66a723dc8d34dcaadbc4a9a",
    "3df48a18dbbf1edf404131b00a1fe7f6d5b3922a8c93346f2a6ca5a290cdc240",
    "5f220dd3206657b02538b0a4545426d37507908a8707b134c839cac56c9a27b8",
    "16662ab2aad93d0eec640677e52db1bf8965f386e1f3ebf584429a03f24d7cfa",
    "fd50b70292233f707e8a003f5552186f5880ffbd69e1bfd3973dafcc66e9d1a8",
    "ac66ff7f9195f13859eb6a918b33a07765f583811dc08d8bfb29795aa53c79a2",
    "633685ecfb5cf09bc6207d7ad46074bb2c5cd0847cc8caffadec411b6e0f4226",
    "0fb3b4409483e3ca77da88cee4feccef3f12c241077715f4406ded870d5594a4",
    "e0ad3d4b254f8670a63a18f2580a1393a067d8146b32770559f0392a0a6000d4",
    "75f7a8fc24724e1409e2699a6086ffdf119cab80e5dd91322d730fe73a09795c",
    "1614431261ce12b5d60f23591b397126114a824b7160dee13addee41c6189eb3",
    "f553a6c69a8d272f7ac73e891e07411139bb3f923c881b5e43a2ea702c1b446d",
];

/// Whether a key may belong to this account. Records a fault of `field` if the key is a published one.
pub(super) fn is_own(section: &Section<'_>, field: &str, key: &[u8]) -> bool {
    let published = !section.is_simulator() && is_published(key);
    if published {
        section.fault(
            field,
            "is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's",
        );
    }
    !published
}

fn is_published(key: &[u8]) -> bool {
    let hex: String = digest(&SHA256, key).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    PUBLISHED.contains(&hex.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{APIV3, KEYS};
    use super::*;
    use crate::keys::{Certificate, KeyError, SigningKey, VerifyingKey};

    /// A key that is added to the vectors must be added to the list as well.
    #[test]
    fn every_key_of_the_vectors_is_on_the_list() {
        let mut seen = 0;
        for file in std::fs::read_dir(KEYS).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let known = if text.contains("PRIVATE KEY") {
                is_published(SigningKey::from_pem(&text).unwrap().public())
            } else if text.contains("BEGIN PUBLIC KEY") {
                is_published(VerifyingKey::from_spki_pem(&text).unwrap().rsa())
            } else {
                match Certificate::from_pem(&text) {
                    Ok(certificate) => is_published(certificate.key.rsa()),
                    // No account accepts it.
                    Err(KeyError::NotRsa) => true,
                    Err(error) => panic!("{}: {error}", path.display()),
                }
            };
            assert!(known, "{}", path.display());
            seen += 1;
        }
        assert!(seen > 25, "{seen}");
        assert!(is_published(APIV3.trim_end().as_bytes()));
        assert!(!is_published(b""));
    }
}
