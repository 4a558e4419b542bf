//! Platform certificates over time. They are fetched in addition to the configured keys, merged and never replaced, and
//! dropped when they expire.
//!
//! Source: WeChat Pay APIv3, D:4012076511 (fetch at intervals under 12 h; merge; new merchants have only a public key
//! and get 404), read 2025-11-20.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tracing::{info, warn};

use crate::adapter::Gateway as _;
use crate::error::GatewayError;
use crate::keys::KeyRing;
use crate::keys::{Gate, KeyNews, KeyStatus};
use crate::transport::http::Answer;
use crate::wechat::Wechat;
use crate::wechat::cert::{CertificatesError, PlatformCertificate, open_list};
use crate::wechat::client::Outcome;
use crate::wechat::sign::Target;

const PATH: &str = "/v3/certificates";
/// Far more than a merchant ever has at a time; two are usual.
const MAX_STORED: usize = 16;

/// The certificates fetched for one merchant. They survive a reload of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    certificates: Mutex<Arc<Vec<PlatformCertificate>>>,
    /// Limits the lookups that messages from strangers cause.
    gate: Gate,
}

impl Fetched {
    fn current(&self) -> Arc<Vec<PlatformCertificate>> {
        self.lock().clone()
    }

    /// Adds new certificates, and drops only expired ones. Returns how many were new.
    fn merge(&self, brought: Vec<PlatformCertificate>, now: OffsetDateTime) -> usize {
        let mut stored = self.lock();
        let mut merged: Vec<PlatformCertificate> =
            stored.iter().filter(|known| known.expires_at > now).cloned().collect();
        let mut news = 0;
        for certificate in brought.into_iter().filter(|certificate| certificate.expires_at > now) {
            match merged.iter().position(|known| known.serial == certificate.serial) {
                // An older list does not shorten the validity of a certificate with the same serial.
                Some(at) if merged[at].expires_at >= certificate.expires_at => {}
                Some(at) => merged[at] = certificate,
                None => {
                    news += 1;
                    merged.push(certificate);
                }
            }
        }
        merged.sort_by_key(|certificate| std::cmp::Reverse(certificate.effective_at));
        merged.truncate(MAX_STORED);
        *stored = Arc::new(merged);
        news
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Vec<PlatformCertificate>>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The configured keys and the fetched certificates as one ring.
pub(super) struct Keys {
    fetched: Arc<Fetched>,
    /// The ring, and the fetched certificates that it contains.
    ring: Mutex<(Arc<KeyRing>, Arc<Vec<PlatformCertificate>>)>,
}

impl Keys {
    pub(super) fn new(configured: &KeyRing, fetched: Arc<Fetched>) -> Keys {
        let certificates = fetched.current();
        let ring = Mutex::new((Arc::new(join(configured, &certificates)), certificates));
        Keys { fetched, ring }
    }
}

/// A configured public key stays as it is, because the operator vouches for it. A configured certificate that was also
/// fetched gets the validity that WeChat Pay states.
fn join(configured: &KeyRing, certificates: &[PlatformCertificate]) -> KeyRing {
    let mut ring = configured.clone();
    // Insert the newest certificate last.
    for certificate in certificates.iter().rev() {
        if !certificate.serial.starts_with(KeyRing::PUBLIC_KEY_ID) {
            ring.insert_bounded(certificate.serial.clone(), certificate.key.clone(), certificate.validity());
        }
    }
    ring
}

impl Wechat {
    /// Every key that is loaded now.
    pub(super) fn ring(&self) -> Arc<KeyRing> {
        let certificates = self.keys.fetched.current();
        let mut ring = self.keys.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&ring.1, &certificates) {
            *ring = (Arc::new(join(&self.account.verify_keys, &certificates)), certificates);
        }
        ring.0.clone()
    }

    pub(super) async fn fetch_certificates(&self, now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        let target = Target { method: "GET", path_and_query: PATH, body: "" };
        let ring = self.ring();
        let answer = self.exchange(&target, ring.public_key_id(), now).await?;
        if answer.status != 200 {
            return match self.judge(&answer, now)? {
                Outcome::Failed(failure) if (failure.status, failure.code.as_str()) == (404, "RESOURCE_NOT_EXISTS") => {
                    Ok(KeyNews::None)
                }
                Outcome::Failed(failure) => Err(failure.refused()),
                Outcome::Signed(_) => Err(GatewayError::Protocol("no list of certificates".to_owned())),
            };
        }
        let brought = self.open_list(&ring, &answer, now).map_err(|error| gateway_error(&error))?;
        if brought.is_empty() {
            return Ok(KeyNews::None);
        }
        let serials = brought.iter().map(|certificate| certificate.serial.clone()).collect::<Vec<_>>().join(", ");
        let new = self.keys.fetched.merge(brought, now);
        let account = self.account();
        if ring.is_empty() {
            warn!(
                %account,
                serials,
                "Only its own signature and the APIv3 key prove the first list of WeChat Pay's certificates for {account}. \
                 Compare the serials with the merchant platform, and add one of these certificates to verify_keys"
            );
        }
        if new > 0 {
            info!(%account, serials, "WeChat Pay has {new} new platform certificates for {account}");
        }
        Ok(KeyNews::Fetched { new })
    }

    fn open_list(
        &self,
        ring: &KeyRing,
        answer: &Answer,
        now: OffsetDateTime,
    ) -> Result<Vec<PlatformCertificate>, CertificatesError> {
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let lists = self.account.apiv3_keys().map(|key| open_list(key, ring, header, &answer.body, now));
        let opened = lists.reduce(|newest, previous| newest.or_else(|error| previous.map_err(|_| error)));
        opened.unwrap_or(Err(CertificatesError::Shape))
    }

    /// Whether the key is loaded afterwards. We request the whole list, so the name is not sent.
    pub(super) async fn look_for(&self, serial: &str, now: OffsetDateTime) -> bool {
        // Only certificates can be fetched; a new public key comes with the configuration.
        if serial.starts_with(KeyRing::PUBLIC_KEY_ID) {
            return false;
        }
        let known = || self.ring().in_force(serial, now).is_ok();
        let fetch = async { drop(self.refresh_keys(now).await) }; // The call logs its own errors.
        self.keys.fetched.gate.look(now, known, fetch).await
    }

    pub(super) fn status(&self) -> Vec<KeyStatus> {
        let ring = self.ring();
        let statuses = ring.names().map(|(serial, validity)| {
            let kind = if serial.starts_with(KeyRing::PUBLIC_KEY_ID) { "public_key" } else { "platform_certificate" };
            KeyStatus { kind, serial: serial.to_owned(), validity }
        });
        statuses.collect()
    }
}

/// Includes the source error, because the caller logs one line.
fn gateway_error(error: &CertificatesError) -> GatewayError {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    GatewayError::Protocol(format!("{error}{cause}"))
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::keys::Certificate;

    const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);

    fn certificate(serial: &str, from: i64, until: i64) -> PlatformCertificate {
        let key = Certificate::from_pem(include_str!("../../tests/fixtures/vectors/keys/wx_platform_cert.pem"));
        PlatformCertificate {
            serial: serial.to_owned(),
            key: key.unwrap().key,
            effective_at: NOW + Duration::days(from),
            expires_at: NOW + Duration::days(until),
        }
    }

    fn stored(fetched: &Fetched) -> Vec<(String, i64)> {
        let current = fetched.current();
        current.iter().map(|known| (known.serial.clone(), (known.expires_at - NOW).whole_days())).collect()
    }

    fn list(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
        expected.iter().map(|(serial, days)| ((*serial).to_owned(), *days)).collect()
    }

    #[test]
    fn a_list_is_merged_and_nothing_goes_before_its_time() {
        let fetched = Fetched::default();
        assert_eq!(fetched.merge(vec![certificate("A", -9, 30)], NOW), 1);
        // The list lacks A, but A stays.
        assert_eq!(fetched.merge(vec![certificate("B", -1, 90)], NOW), 1);
        assert_eq!(stored(&fetched), list(&[("B", 90), ("A", 30)]));
        // An older list does not shorten its validity, a newer one extends it; neither counts as new.
        assert_eq!(fetched.merge(vec![certificate("A", -9, 10), certificate("B", -1, 91)], NOW), 0);
        assert_eq!(stored(&fetched), list(&[("B", 91), ("A", 30)]));
        // Expired certificates are neither added nor left in.
        assert_eq!(fetched.merge(vec![certificate("C", -9, 31)], NOW + Duration::days(31)), 0);
        assert_eq!(stored(&fetched), list(&[("B", 91)]));
        assert_eq!(fetched.merge(Vec::new(), NOW + Duration::days(90)), 0);
        assert_eq!(stored(&fetched), list(&[("B", 91)]));
    }

    #[test]
    fn the_number_of_certificates_is_bounded_and_the_newest_stay() {
        let fetched = Fetched::default();
        let many: Vec<_> = (0..40).map(|n| certificate(&format!("S{n}"), n, 365)).collect();
        fetched.merge(many, NOW);
        let stored = stored(&fetched);
        assert_eq!((stored.len(), stored[0].0.as_str()), (MAX_STORED, "S39"));
    }
}
