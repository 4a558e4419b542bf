//! A gateway's keys by the name under which it signs, each with its validity.

use std::fmt;

use time::OffsetDateTime;

use super::rsa::{Certificate, VerifyingKey};

/// When a key is valid; an open bound is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Validity {
    /// The first valid moment.
    pub from: Option<OffsetDateTime>,
    /// The last valid moment.
    pub until: Option<OffsetDateTime>,
}

impl Validity {
    /// A key that no certificate limits.
    pub const ALWAYS: Validity = Validity { from: None, until: None };

    /// The bounds that apply to a certificate that the operator vouches for: only its end.
    pub fn given(self) -> Validity {
        Validity { from: None, ..self }
    }

    /// # Errors
    /// The bound that `at` lies beyond.
    pub fn check(&self, at: OffsetDateTime) -> Result<(), KeyTime> {
        match (self.from, self.until) {
            (Some(from), _) if at < from => Err(KeyTime::NotYet(from)),
            (_, Some(until)) if at > until => Err(KeyTime::Expired(until)),
            _ => Ok(()),
        }
    }
}

/// The reason that a certificate is not valid at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyTime {
    /// Its validity starts later.
    NotYet(OffsetDateTime),
    /// Its validity has ended.
    Expired(OffsetDateTime),
}

impl fmt::Display for KeyTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyTime::NotYet(from) => write!(f, "is not valid before {from}"),
            KeyTime::Expired(until) => write!(f, "expired at {until}"),
        }
    }
}

/// The reason that a ring has no key for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// No key has this name.
    Unknown,
    /// The key of this name is not valid at that time.
    Time(KeyTime),
}

/// The gateway's keys by the name under which it signs. During a key rotation several are valid at a time.
///
/// Source: WeChat Pay APIv3, D:4012154180 (switch from certificates to the public key); official Go SDK, combined
/// verifier. Read 2025-11-20.
#[derive(Debug, Default, Clone)]
pub struct KeyRing {
    keys: Vec<Named>,
}

#[derive(Debug, Clone)]
struct Named {
    serial: String,
    key: VerifyingKey,
    /// The bounds that we apply.
    validity: Validity,
    /// The bounds that the certificate states.
    stated: Validity,
}

impl KeyRing {
    /// The prefix of the name of a WeChat Pay public key; other names are serial numbers of certificates.
    pub const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_";

    /// Adds a key without bounds under its exact name; it replaces an older key of that name.
    pub fn insert(&mut self, serial: String, key: VerifyingKey) {
        self.insert_bounded(serial, key, Validity::ALWAYS);
    }

    /// Adds a key that is valid for a time only; it replaces an older key of that name.
    pub fn insert_bounded(&mut self, serial: String, key: VerifyingKey, validity: Validity) {
        self.put(Named { serial, key, validity, stated: validity });
    }

    /// Adds a certificate that the operator configured. The start of its validity is not checked, because the operator
    /// vouches for the key. Its end is checked.
    pub fn insert_given(&mut self, certificate: Certificate) {
        let Certificate { serial, key, validity: stated } = certificate;
        self.put(Named { serial, key, validity: stated.given(), stated });
    }

    fn put(&mut self, named: Named) {
        self.keys.retain(|known| known.serial != named.serial);
        self.keys.push(named);
    }

    /// Whether the ring holds no key at all. A ring whose keys have all expired is not empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key with that exact name, even if it is not valid now.
    pub fn get(&self, serial: &str) -> Option<&VerifyingKey> {
        self.named(serial).map(|named| &named.key)
    }

    /// The key with that exact name, if it is valid at that time.
    ///
    /// # Errors
    /// See [`NoKey`].
    pub fn in_force(&self, serial: &str, at: OffsetDateTime) -> Result<&VerifyingKey, NoKey> {
        let named = self.named(serial).ok_or(NoKey::Unknown)?;
        named.validity.check(at).map_err(NoKey::Time)?;
        Ok(&named.key)
    }

    /// The key to encrypt with, and its name. This is a public key if there is one, because requests name it. Otherwise
    /// it is the valid certificate whose validity began last.
    pub fn encrypting(&self, at: OffsetDateTime) -> Option<(&str, &VerifyingKey)> {
        let counting = || self.keys.iter().filter(|named| named.validity.check(at).is_ok());
        let public = || counting().find(|named| named.serial.starts_with(KeyRing::PUBLIC_KEY_ID));
        let named = public().or_else(|| counting().max_by_key(|named| named.validity.from))?;
        Some((&named.serial, &named.key))
    }

    /// The id of the first public key (not certificate). Requests name it, so that the gateway signs its answers with
    /// it.
    pub fn public_key_id(&self) -> Option<&str> {
        self.keys.iter().map(|named| named.serial.as_str()).find(|serial| serial.starts_with(KeyRing::PUBLIC_KEY_ID))
    }

    /// The names, and the validity that each key states, in insertion order.
    pub fn names(&self) -> impl Iterator<Item = (&str, Validity)> {
        self.keys.iter().map(|named| (named.serial.as_str(), named.stated))
    }

    fn named(&self, serial: &str) -> Option<&Named> {
        self.keys.iter().find(|named| named.serial == serial)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const OTHER_PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_other_public.pem");
    const PLATFORM_CERT: &str = include_str!("../../tests/fixtures/vectors/keys/wx_platform_cert.pem");
    const NEW_CERT: &str = include_str!("../../tests/fixtures/vectors/keys/wx_platform_new_cert.pem");
    const NOW: OffsetDateTime = datetime!(2027-01-05 00:00 UTC);

    fn bounded(from: OffsetDateTime, until: OffsetDateTime) -> Validity {
        Validity { from: Some(from), until: Some(until) }
    }

    #[test]
    fn a_ring_is_searched_by_the_exact_name() {
        let mut ring = KeyRing::default();
        let certificate = Certificate::from_pem(PLATFORM_CERT).unwrap();
        assert_eq!(certificate.serial, "5D008BE308C26237789E43DAB6260133B42601A4");
        ring.insert(certificate.serial.clone(), certificate.key);
        assert_eq!(ring.public_key_id(), None);
        ring.insert("PUB_KEY_ID_1".to_owned(), VerifyingKey::from_spki_pem(OTHER_PUBLIC).unwrap());
        assert_eq!(ring.public_key_id(), Some("PUB_KEY_ID_1"));
        assert!(ring.get(&certificate.serial).is_some());
        assert!(ring.get(&certificate.serial.to_lowercase()).is_none());
    }

    #[test]
    fn a_key_counts_from_its_first_to_its_last_moment() {
        let key = || VerifyingKey::from_spki_pem(OTHER_PUBLIC).unwrap();
        let (from, until) = (datetime!(2027-01-01 00:00 UTC), datetime!(2027-02-01 00:00 UTC));
        let mut ring = KeyRing::default();
        ring.insert_bounded("A".to_owned(), key(), bounded(from, until));
        let second = time::Duration::SECOND;
        for at in [from, NOW, until] {
            assert!(ring.in_force("A", at).is_ok(), "{at}");
        }
        assert_eq!(ring.in_force("A", from - second).unwrap_err(), NoKey::Time(KeyTime::NotYet(from)));
        assert_eq!(ring.in_force("A", until + second).unwrap_err(), NoKey::Time(KeyTime::Expired(until)));
        assert_eq!(ring.in_force("a", NOW).unwrap_err(), NoKey::Unknown);
        ring.insert("A".to_owned(), key());
        assert!(ring.in_force("A", until + second).is_ok());
    }

    #[test]
    fn what_the_operator_gives_ends_all_the_same() {
        let certificate = Certificate::from_pem(PLATFORM_CERT).unwrap();
        let (serial, validity) = (certificate.serial.clone(), certificate.validity);
        let (from, until) = (validity.from.unwrap(), validity.until.unwrap());
        let mut ring = KeyRing::default();
        ring.insert_given(certificate);
        assert!(ring.in_force(&serial, from - time::Duration::DAY).is_ok());
        assert!(ring.in_force(&serial, until + time::Duration::DAY).is_err());
    }

    #[test]
    fn one_encrypts_with_the_public_key_else_with_the_newest_in_force() {
        let mut ring = KeyRing::default();
        let key = |pem| Certificate::from_pem(pem).unwrap().key;
        let days = |count| NOW + time::Duration::days(count);
        ring.insert_bounded("FUTURE".to_owned(), key(NEW_CERT), bounded(days(1), days(90)));
        assert!(ring.encrypting(NOW).is_none());
        ring.insert_bounded("NEW".to_owned(), key(NEW_CERT), bounded(days(-1), days(90)));
        ring.insert_bounded("OLD".to_owned(), key(PLATFORM_CERT), bounded(days(-90), days(9)));
        assert_eq!(ring.encrypting(NOW).unwrap().0, "NEW");
        assert_eq!(ring.encrypting(days(2)).unwrap().0, "FUTURE");
        ring.insert("PUB_KEY_ID_1".to_owned(), VerifyingKey::from_spki_pem(OTHER_PUBLIC).unwrap());
        assert_eq!(ring.encrypting(NOW).unwrap().0, "PUB_KEY_ID_1");
    }
}
