//! Alipay's certificate mode: the simulator's own authority, the certificate that it issued to an application, and
//! the certificate with which Alipay signs now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use md5::{Digest as _, Md5};
use time::{Duration, OffsetDateTime};

use crate::clock;
use crate::crypto::{Signer, random};
use crate::x509::{Name, Statement, issue};

/// The organization of Alipay's own certificates.
pub const ALIPAY: &str = "Alipay Simulator";

/// The authority that issues all certificates of a key set.
#[derive(Debug)]
pub struct Authority {
    name: Name,
    key: Signer,
    /// `alipay_root_cert_sn`.
    pub sn: String,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The number in requests and answers.
    pub sn: String,
    /// The certificate.
    pub pem: String,
}

/// A certificate to be issued.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The organization it is issued to.
    pub organization: &'a str,
    /// The start of its validity, in days from now.
    pub from_days: f64,
    /// The end of its validity, in days from now.
    pub until_days: f64,
}

impl Authority {
    /// The authority with this key. Everything else is derived or constant, so only the key is stored.
    ///
    /// # Errors
    /// When its certificate cannot be written.
    pub fn new(key: Signer) -> Result<Authority> {
        let name = Name { organization: "Simulator".to_owned(), common_name: "Simulator Root R1".to_owned() };
        let from = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let until = from + Duration::days(20 * 365);
        let statement = Statement { serial: vec![1], subject: name.clone(), from, until, authority: true };
        let pem = issue(&statement, &key, &name, &key)?;
        Ok(Authority { sn: sn(&name, 1), name, key, pem })
    }

    /// Issues a certificate for a key.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn issue(&self, wanted: &Wanted<'_>, key: &Signer) -> Result<Certified> {
        issue_by(&self.name, &self.key, wanted, key)
    }
}

/// A certificate in the authority's name that a stranger signed.
///
/// # Errors
/// When it cannot be written.
pub fn forge(authority: &Authority, stranger: &Signer, wanted: &Wanted<'_>, key: &Signer) -> Result<Certified> {
    issue_by(&authority.name, stranger, wanted, key)
}

fn issue_by(name: &Name, issuing: &Signer, wanted: &Wanted<'_>, key: &Signer) -> Result<Certified> {
    let now = clock::now().replace_nanosecond(0).unwrap_or_else(|_| clock::now());
    let number = u64::from_be_bytes(random()) >> 2 | 1 << 61; // Positive, without a leading zero.
    let common_name = format!("{} {number}", wanted.organization);
    let statement = Statement {
        serial: number.to_be_bytes().to_vec(),
        subject: Name { organization: wanted.organization.to_owned(), common_name },
        from: now + Duration::days(1) * wanted.from_days,
        until: now + Duration::days(1) * wanted.until_days,
        authority: false,
    };
    Ok(Certified { sn: sn(name, number), pem: issue(&statement, key, name, issuing)? })
}

/// The number that Alipay derives from a certificate's issuer and serial number.
fn sn(issuer: &Name, serial: u64) -> String {
    let text = format!("{}{serial}", issuer.rfc2253());
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One application in certificate mode.
#[derive(Debug)]
pub struct CertificateMode {
    /// The issuing authority.
    pub authority: Arc<Authority>,
    /// `app_cert_sn`.
    pub app_sn: String,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    certified: Certified,
    /// The certificate's own key; `None` means that Alipay kept its key.
    key: Option<Arc<Signer>>,
}

impl CertificateMode {
    pub(super) fn new(authority: Arc<Authority>, app_sn: String, certified: Certified) -> CertificateMode {
        CertificateMode { authority, app_sn, current: Mutex::new(Current { certified, key: None }) }
    }

    /// The certificate that signs now.
    #[must_use]
    pub fn current(&self) -> Certified {
        self.lock().certified.clone()
    }

    /// From now on this certificate signs, with its own key if it has one.
    pub fn change_to(&self, certified: Certified, key: Option<Signer>) {
        *self.lock() = Current { certified, key: key.map(Arc::new) };
    }

    pub(super) fn key(&self) -> Option<Arc<Signer>> {
        self.lock().key.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
