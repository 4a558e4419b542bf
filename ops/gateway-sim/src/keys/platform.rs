//! The platform certificates that WeChat Pay has for one merchant, and the choice of the key that signs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use time::{Duration, OffsetDateTime};

use crate::clock;
use crate::crypto::{HEX_UPPER, Signer, random};
use crate::x509::{Name, Statement, issue};

/// A key and the name under which it signs.
pub type NamedKey = (String, Signer);

/// A certificate as `GET /v3/certificates` returns it.
#[derive(Debug, Clone)]
pub struct PlatformCertificate {
    /// Serial number and key.
    pub key: Arc<NamedKey>,
    /// The certificate.
    pub pem: String,
    /// The start of its validity.
    pub from: OffsetDateTime,
    /// The end of its validity.
    pub until: OffsetDateTime,
}

/// A merchant's platform certificates. At first there are none: only the public key signs.
#[derive(Debug, Default)]
pub struct Platform(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    certificates: Vec<PlatformCertificate>,
    /// The share of signatures that the public key makes while the merchant migrates to it; `None` means all.
    share: Option<f64>,
    signed: u64,
}

impl Platform {
    /// Creates a certificate with this validity, in days from now.
    ///
    /// # Errors
    /// When no key can be created.
    pub fn add(&self, from_days: f64, until_days: f64) -> Result<PlatformCertificate> {
        let now = clock::now().replace_nanosecond(0).unwrap_or_else(|_| clock::now());
        let (from, until) = (now + Duration::days(1) * from_days, now + Duration::days(1) * until_days);
        let mut serial = random::<20>().to_vec();
        serial[0] = 0x10 | serial[0] & 0x3f; // Positive, and its text has all 40 digits.
        let name: String = serial.iter().map(|byte| format!("{byte:02X}")).collect();
        debug_assert!(name.bytes().all(|digit| HEX_UPPER.contains(&digit)));
        let whom = Name { organization: "Tenpay Simulator".to_owned(), common_name: format!("Platform {name}") };
        let signer = Signer::generate()?;
        let statement = Statement { serial, subject: whom.clone(), from, until, authority: true };
        let pem = issue(&statement, &signer, &whom, &signer)?;
        let made = PlatformCertificate { key: Arc::new((name, signer)), pem, from, until };
        self.lock().certificates.push(made.clone());
        Ok(made)
    }

    /// Removes a certificate from the list. Returns whether it was there.
    pub fn remove(&self, serial: &str) -> bool {
        let mut state = self.lock();
        let before = state.certificates.len();
        state.certificates.retain(|certificate| certificate.key.0 != serial);
        state.certificates.len() < before
    }

    /// All certificates, the oldest first.
    #[must_use]
    pub fn certificates(&self) -> Vec<PlatformCertificate> {
        self.lock().certificates.clone()
    }

    /// Sets the share, 0 to 1, that the public key signs; `None` means all, with no certificate signing.
    pub fn set_share(&self, share: Option<f64>) {
        let mut state = self.lock();
        (state.share, state.signed) = (share, 0);
    }

    /// See [`Platform::set_share`].
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        self.lock().share
    }

    /// The key with that serial number.
    pub(super) fn named(&self, serial: &str) -> Option<Arc<NamedKey>> {
        self.lock().certificates.iter().find(|known| known.key.0 == serial).map(|known| Arc::clone(&known.key))
    }

    /// The certificate that signs this time; `None` if it is the public key's turn. In any number of signatures,
    /// the public key has exactly its share.
    pub(super) fn turn(&self) -> Option<Arc<NamedKey>> {
        let mut state = self.lock();
        let share = state.share?;
        let before = (state.signed as f64 * share).floor();
        state.signed += 1;
        if (state.signed as f64 * share).floor() > before {
            return None;
        }
        let now = clock::now();
        let counts = |known: &&PlatformCertificate| known.from <= now && now < known.until;
        let newest = |list: Vec<&PlatformCertificate>| list.into_iter().max_by_key(|known| known.from).cloned();
        let in_force = newest(state.certificates.iter().filter(counts).collect());
        in_force.or_else(|| newest(state.certificates.iter().collect())).map(|known| known.key)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_has_its_share_to_the_letter() {
        let platform = Platform::default();
        assert!(platform.turn().is_none());
        platform.add(-1.0, 30.0).unwrap();
        for (share, expected) in [(0.0, 0), (0.001, 1), (0.5, 500), (0.999, 999), (1.0, 1000)] {
            platform.set_share(Some(share));
            let public = (0..1000).filter(|_| platform.turn().is_none()).count();
            assert_eq!(public, expected, "{share}");
        }
    }

    #[test]
    fn the_newest_certificate_in_force_signs() {
        let platform = Platform::default();
        platform.set_share(Some(0.0));
        let signs = || platform.turn().unwrap().0.clone();
        let old = platform.add(-300.0, -1.0).unwrap().key.0.clone();
        assert_eq!(signs(), old, "expired, and the only one");
        let current = platform.add(-10.0, 30.0).unwrap().key.0.clone();
        platform.add(5.0, 300.0).unwrap();
        assert_eq!(signs(), current);
        let newer = platform.add(-1.0, 300.0).unwrap().key.0.clone();
        assert_eq!(signs(), newer);
        assert!(platform.remove(&newer) && !platform.remove(&newer));
        assert_eq!(signs(), current);
    }
}
