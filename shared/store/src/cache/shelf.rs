//! Copies in Redis that we can trust: each carries an HMAC-SHA256 under `COPIES_KEY`.
//!
//! The tag covers the Redis key, the moment and the data, so a copy is valid only under its key and at its age. An
//! attacker who can write to Redis but has no `COPIES_KEY` can only remove copies. Decision: `ops/decisions/0023`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use runtime::env::Env;
use runtime::seal;
use tokio::time::Instant;
use tracing::warn;

use crate::cache::redis::Redis;

/// The format of a text in Redis: `1.<tag in hex>.<data>`. An older release wrote another format.
const FORM: &str = "1.";
/// The number of hex digits in a tag.
const TAG: usize = 64;
/// Separates these tags from any other data that is ever tagged under the same key.
const LABEL: &[u8] = b"payment copy 1";
/// The shortest time between two warnings.
const SILENCE: Duration = Duration::from_secs(60);

/// Makes and checks the tags. Clones share the limit on warnings.
#[derive(Clone)]
pub struct CopiesKey {
    key: hmac::Key,
    warned: Arc<Mutex<Option<Instant>>>,
}

/// Hides the key.
impl fmt::Debug for CopiesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopiesKey(..)")
    }
}

impl CopiesKey {
    /// Reads `COPIES_KEY`, 64 hex digits (default none: no copies in Redis). `Some(None)`: it is not set. `None`: a
    /// fault was recorded.
    pub fn from_env(env: &mut Env) -> Option<Option<CopiesKey>> {
        Some(seal::key_bytes(env, "COPIES_KEY")?.map(|bytes| CopiesKey::new(&bytes)))
    }

    /// The key with these bytes.
    pub fn new(bytes: &[u8; 32]) -> CopiesKey {
        CopiesKey { key: hmac::Key::new(HMAC_SHA256, bytes), warned: Arc::default() }
    }

    /// The bytes that the tag covers. The length of the place separates the place from the data.
    fn covered(place: &str, moment: i64, data: &str) -> Vec<u8> {
        let length = (place.len() as u64).to_be_bytes();
        [LABEL, &length, place.as_bytes(), &moment.to_be_bytes(), data.as_bytes()].concat()
    }

    fn sealed(&self, place: &str, moment: i64, data: &str) -> String {
        let tag = hmac::sign(&self.key, &Self::covered(place, moment, data));
        let tag: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{FORM}{tag}.{data}")
    }

    fn opened<'t>(&self, place: &str, moment: i64, text: &'t str) -> Opened<'t> {
        let parts = text.strip_prefix(FORM).and_then(|rest| rest.split_once('.'));
        let Some((tag, data)) = parts.filter(|(tag, _)| tag.len() == TAG) else { return Opened::OtherForm };
        let Some(tag) = seal::hex(tag) else { return Opened::OtherForm };
        match hmac::verify(&self.key, &Self::covered(place, moment, data), &tag) {
            Ok(()) => Opened::Genuine(data),
            Err(_) => {
                self.warn(Instant::now());
                Opened::Forged
            }
        }
    }

    /// Warns at most once a minute, so that a process that writes to Redis cannot fill the log.
    fn warn(&self, now: Instant) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| warned + SILENCE <= now) {
            *warned = Some(now);
            warn!(
                "Copies in Redis do not fit COPIES_KEY; they are read from PostgreSQL instead. Set the same COPIES_KEY for \
                 payment-api and every worker; if it is the same, something else writes to this Redis: change its password"
            );
        }
    }
}

/// A text from Redis after the check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened<'t> {
    /// A process with our key wrote this for this place and moment.
    Genuine(&'t str),
    /// Written by another release.
    OtherForm,
    /// Written or moved by something that does not have our key.
    Forged,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Shelf {
    pub redis: Redis,
    key: CopiesKey,
}

impl Shelf {
    /// `None` if there is no Redis, or a Redis without a key: then copies are in memory only.
    pub fn of(redis: Option<Redis>) -> Option<Shelf> {
        let redis = redis?;
        let Some(key) = redis.copies_key().cloned() else {
            warn!(
                "COPIES_KEY is not set: no copies are kept in Redis. To use Redis for them, set the same COPIES_KEY for \
                 payment-api and every worker (`openssl rand -hex 32`)"
            );
            return None;
        };
        Some(Shelf { redis, key })
    }

    /// The text to store for a copy of this moment under this full key (see [`Redis::key`]).
    pub fn sealed(&self, place: &str, moment: i64, data: &str) -> String {
        self.key.sealed(place, moment, data)
    }

    /// Checks a text of this moment under this full key.
    pub fn opened<'t>(&self, place: &str, moment: i64, text: &'t str) -> Opened<'t> {
        self.key.opened(place, moment, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "p:payment_order:1";

    #[test]
    fn a_copy_opens_in_its_place_and_at_its_moment_only() {
        let (ours, other) = (CopiesKey::new(&[7; 32]), CopiesKey::new(&[8; 32]));
        let text = ours.sealed(PLACE, 42, r#"{"a":"."}"#);
        assert_eq!(ours.opened(PLACE, 42, &text), Opened::Genuine(r#"{"a":"."}"#));
        assert_eq!(ours.opened("p:payment_order:2", 42, &text), Opened::Forged);
        assert_eq!(ours.opened(PLACE, 43, &text), Opened::Forged);
        assert_eq!(other.opened(PLACE, 42, &text), Opened::Forged);
        assert_eq!(ours.opened(PLACE, 42, &text.replace('a', "b")), Opened::Forged);
        for at in 2..66 {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(ours.opened(PLACE, 42, std::str::from_utf8(&changed).unwrap()), Opened::Forged, "{at}");
        }
    }

    /// The end of the place must not be readable as the beginning of the data.
    #[test]
    fn key_and_data_are_kept_apart() {
        let ours = CopiesKey::new(&[7; 32]);
        assert_ne!(CopiesKey::covered("a", 0, "bc"), CopiesKey::covered("ab", 0, "c"));
        let text = ours.sealed("ab", 0, "c");
        assert_eq!(ours.opened("a", 0, &text), Opened::Forged);
    }

    #[test]
    fn a_text_without_a_tag_is_of_another_release() {
        let ours = CopiesKey::new(&[7; 32]);
        let no_hex = format!("1.{}.x", "g".repeat(64));
        for text in ["", "{}", r#"{"id":"1.2.3"}"#, "1.", "1.00.{}", "2.00.{}", &no_hex] {
            assert_eq!(ours.opened(PLACE, 0, text), Opened::OtherForm, "{text}");
        }
    }

    #[test]
    fn a_warning_comes_once_a_minute() {
        let (ours, now) = (CopiesKey::new(&[7; 32]), Instant::now());
        let warned = |at| {
            ours.clone().warn(at);
            *ours.warned.lock().unwrap()
        };
        assert_eq!(warned(now), Some(now));
        assert_eq!(warned(now + Duration::from_secs(59)), Some(now));
        assert_eq!(warned(now + SILENCE), Some(now + SILENCE));
    }
}
