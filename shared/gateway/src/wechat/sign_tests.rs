//! Headers, clock and body of a signed message: what is accepted, and what is refused.

use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use crate::error::CallbackError;
use crate::keys::{KeyRing, SigningKey, VerifyingKey};
use crate::wechat::sign::{NONCE, SERIAL, SIGNATURE, TIMESTAMP, verify};

const PRIVATE: &str = include_str!("../../tests/fixtures/vectors/keys/wx_pubkey_private_pkcs8.pem");
const PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/wx_pubkey_public.pem");
const NOW: i64 = 1_767_579_670;

fn ring() -> KeyRing {
    let mut ring = KeyRing::default();
    ring.insert("PUB_KEY_ID_1".to_owned(), VerifyingKey::from_spki_pem(PUBLIC).unwrap());
    ring
}

fn signed(body: &[u8]) -> [(&'static str, String); 4] {
    let text = [format!("{NOW}\nn\n").as_bytes(), body, b"\n"].concat();
    let signature = SigningKey::from_pem(PRIVATE).unwrap().sign(&text).unwrap();
    [(TIMESTAMP, NOW.to_string()), (NONCE, "n".to_owned()), (SERIAL, "PUB_KEY_ID_1".to_owned()), (SIGNATURE, signature)]
}

fn check(headers: &[(&str, String)], body: &[u8], seconds_later: Option<i64>) -> Result<(), CallbackError> {
    let find = |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    let now = seconds_later.map(|later| {
        OffsetDateTime::from_unix_timestamp(NOW).unwrap() + Duration::seconds(later) + Duration::milliseconds(999)
    });
    verify(&ring(), find, body, now)
}

#[test]
fn exactly_300_seconds_either_way_are_tolerated() {
    let headers = signed(b"body");
    for later in [-300, 0, 300] {
        assert_eq!(check(&headers, b"body", Some(later)), Ok(()), "{later}");
    }
    for later in [-301, 301, 1_000_000] {
        assert_eq!(check(&headers, b"body", Some(later)), Err(CallbackError::Stale), "{later}");
    }
    assert_eq!(check(&headers, b"body", None), Ok(()));
}

#[test]
fn each_header_is_needed() {
    for missing in [TIMESTAMP, NONCE, SERIAL, SIGNATURE] {
        let mut headers = signed(b"").to_vec();
        headers.retain(|(name, _)| *name != missing);
        assert!(matches!(check(&headers, b"", None), Err(CallbackError::Malformed(_))), "{missing}");
        headers.push((missing, String::new()));
        assert!(matches!(check(&headers, b"", None), Err(CallbackError::Malformed(_))), "{missing} empty");
    }
}

#[test]
fn an_unknown_key_is_named_in_a_sane_length() {
    let mut headers = signed(b"");
    headers[2].1 = "X\n".repeat(5000);
    assert_eq!(check(&headers, b"", None), Err(CallbackError::UnknownKey { serial: "X".repeat(64) }));
}

#[test]
fn broken_base64_is_a_bad_signature_and_a_probe_is_a_probe() {
    let mut headers = signed(b"");
    headers[3].1 = "not base64".to_owned();
    assert_eq!(check(&headers, b"", None), Err(CallbackError::BadSignature));
    headers[3].1 = "WECHATPAY/SIGNTEST/x".to_owned();
    assert_eq!(check(&headers, b"", None), Err(CallbackError::Probe));
}

proptest! {
    #[test]
    fn no_other_body_or_header_passes(
        body in proptest::collection::vec(any::<u8>(), 0..64),
        timestamp in ".{0,14}",
        signature in "[ -~]{0,400}",
    ) {
        let mut headers = signed(b"right");
        prop_assume!(body != b"right");
        prop_assert!(check(&headers, &body, None).is_err());
        headers[0].1 = timestamp;
        headers[3].1 = signature;
        prop_assert!(check(&headers, b"right", None).is_err());
    }
}
