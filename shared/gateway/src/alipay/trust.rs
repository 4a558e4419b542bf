//! Whose signature counts as Alipay's: one public key, or the certificates of the certificate mode. In both modes also
//! the previous public key, while messages that it signed may still arrive.
//!
//! Source: Alipay OpenAPI, C:057k53: an answer names its certificate (`alipay_cert_sn`), and that field itself is not
//! signed. We download a new certificate and trust it because of its chain. Alipay renews a certificate but keeps its
//! key, so a message that names no certificate, or an unknown one, may be signed by any key in force. Read 2025-11-20.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::alipay::answer::{self, Answer, AnswerError};
use crate::alipay::chain::{Issued, Roots};
use crate::alipay::form::Form;
use crate::alipay::{Account, Alipay, sign};
use crate::error::CallbackError;
use crate::keys::{APP_CERTIFICATE, Gate, KeyStatus, KeyTime, Validity, VerifyingKey};

/// Far more certificates than are ever valid at a time.
const MAX_STORED: usize = 8;

/// How an application verifies Alipay's signatures.
pub(crate) enum Trust {
    PublicKey(VerifyingKey),
    Certificates(Box<Certificates>),
}

/// The three certificates of the certificate mode.
pub(crate) struct Certificates {
    /// `app_cert_sn`, and when our own certificate is valid.
    pub app_sn: String,
    pub app_validity: Validity,
    /// `alipay_root_cert_sn`.
    pub root_sn: String,
    pub roots: Roots,
    /// Alipay's certificate as the operator configured it.
    pub given: Issued,
}

/// Certificates fetched from Alipay. They survive a reload of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    issued: Mutex<Arc<Vec<Issued>>>,
    /// Limits the lookups that messages from strangers cause.
    pub(super) gate: Gate,
}

impl Fetched {
    fn current(&self) -> Arc<Vec<Issued>> {
        self.lock().clone()
    }

    /// Stores a certificate that leads to a root, and drops the expired ones.
    pub(super) fn store(&self, issued: Issued, now: OffsetDateTime) {
        let mut stored = self.lock();
        let counts = |known: &&Issued| known.sn != issued.sn && known.validity.until.is_none_or(|until| until > now);
        let mut new: Vec<Issued> = stored.iter().filter(counts).cloned().collect();
        new.insert(0, issued);
        new.truncate(MAX_STORED);
        *stored = Arc::new(new);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Vec<Issued>>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// The certificates, in certificate mode.
    pub(crate) fn certificates(&self) -> Option<&Certificates> {
        match &self.trust {
            Trust::PublicKey(_) => None,
            Trust::Certificates(certificates) => Some(certificates),
        }
    }
}

impl Alipay {
    /// The certificate with that number, if it is valid at that time.
    pub(super) fn issued(&self, sn: &str, at: OffsetDateTime) -> Option<Issued> {
        self.in_force(at).into_iter().find(|issued| issued.sn == sn)
    }

    /// Alipay's valid certificates, the newest first. For the configured one the start of validity is not checked: the
    /// operator vouches for it.
    fn in_force(&self, at: OffsetDateTime) -> Vec<Issued> {
        let Some(certificates) = self.account.certificates() else { return Vec::new() };
        let fetched = self.fetched.current();
        let given = Some(&certificates.given).filter(|given| given.validity.given().check(at).is_ok());
        let counting = fetched.iter().filter(|issued| issued.validity.check(at).is_ok());
        counting.chain(given).cloned().collect()
    }

    /// The keys that may check a message that names this certificate, or none. A known named certificate gives its key
    /// alone; else all valid keys. The previous public key comes last.
    fn candidates(&self, sn: Option<&str>, at: OffsetDateTime) -> Result<Vec<VerifyingKey>, CallbackError> {
        let mut keys = self.today(sn, at)?;
        keys.extend(self.account.previous_key.clone());
        Ok(keys)
    }

    /// Like `candidates`, without the previous public key.
    fn today(&self, sn: Option<&str>, at: OffsetDateTime) -> Result<Vec<VerifyingKey>, CallbackError> {
        let certificates = match &self.account.trust {
            Trust::PublicKey(key) => return Ok(vec![key.clone()]),
            Trust::Certificates(certificates) => certificates,
        };
        if let Some(named) = sn.and_then(|sn| self.issued(sn, at)) {
            return Ok(vec![named.key]);
        }
        let counting = self.in_force(at);
        if counting.is_empty() {
            let Issued { sn, validity, .. } = &certificates.given;
            let time = KeyTime::Expired(validity.until.unwrap_or(at));
            return Err(CallbackError::KeyNotInForce { serial: sn.clone(), time });
        }
        Ok(counting.into_iter().map(|issued| issued.key).collect())
    }

    /// Checks a form that Alipay signed, a callback or a return.
    pub(super) fn verify_form(&self, form: &[u8], at: OffsetDateTime) -> Result<(), CallbackError> {
        let form = Form::parse(form)?;
        let named = form.get(CERT_SN);
        for key in self.candidates(named, at)? {
            let verdict = sign::verify_callback(&key, &form);
            if verdict != Err(CallbackError::BadSignature) {
                return verdict;
            }
        }
        match named {
            // It may be signed by a certificate that is not loaded.
            Some(sn) if self.account.certificates().is_some() && is_sn(sn) && self.issued(sn, at).is_none() => {
                Err(CallbackError::UnknownKey { serial: sn.to_owned() })
            }
            _ => Err(CallbackError::BadSignature),
        }
    }

    /// Opens an answer with the first key that fits.
    pub(super) fn open<'a>(&self, method: &str, body: &'a [u8], at: OffsetDateTime) -> Result<Answer<'a>, String> {
        let named = answer::cert_sn(body);
        let candidates = self.candidates(named.as_deref(), at).map_err(|error| error.to_string())?;
        let mut opened = Err(AnswerError::BadSignature);
        for key in &candidates {
            opened = answer::open_answer(key, method, body);
            if !matches!(opened, Err(AnswerError::BadSignature)) {
                break;
            }
        }
        opened.map_err(|error| error.to_string())
    }

    /// The key name under which a verified callback is counted.
    pub(super) fn name_of_key(&self, form: &[u8], at: OffsetDateTime) -> String {
        let (certificates, has_previous) = (self.account.certificates(), self.account.previous_key.is_some());
        if certificates.is_none() && !has_previous {
            return PUBLIC_KEY.to_owned();
        }
        let form = Form::parse(form).ok();
        let named = form.as_ref().and_then(|form| form.get(CERT_SN));
        if has_previous {
            // If no certificate is valid today, none of today's keys signed it.
            let today = self.today(named, at).unwrap_or_default();
            let signed = |key| form.as_ref().is_some_and(|form| sign::verify_callback(key, form).is_ok());
            if !today.iter().any(signed) {
                return PREVIOUS_KEY.to_owned();
            }
        }
        let Some(certificates) = certificates else { return PUBLIC_KEY.to_owned() };
        let known = named.and_then(|sn| self.issued(sn, at)).or_else(|| self.in_force(at).into_iter().next());
        known.map_or_else(|| certificates.given.sn.clone(), |issued| issued.sn)
    }

    pub(super) fn status(&self) -> Vec<KeyStatus> {
        const KIND: &str = "alipay_certificate";
        let public = |name: &str| KeyStatus { kind: PUBLIC_KEY, serial: name.to_owned(), validity: Validity::ALWAYS };
        let previous = self.account.previous_key.is_some().then(|| public(PREVIOUS_KEY));
        let Some(certificates) = self.account.certificates() else {
            return std::iter::once(public(PUBLIC_KEY)).chain(previous).collect();
        };
        let Certificates { app_sn, app_validity, given, .. } = certificates;
        let fetched = self.fetched.current();
        let theirs = fetched.iter().chain([given]);
        let theirs = theirs.map(|it| KeyStatus { kind: KIND, serial: it.sn.clone(), validity: it.validity });
        let ours = KeyStatus { kind: APP_CERTIFICATE, serial: app_sn.clone(), validity: *app_validity };
        theirs.chain([ours]).chain(previous).collect()
    }
}

const CERT_SN: &str = "alipay_cert_sn";
/// The names of keys that have no number.
const PUBLIC_KEY: &str = "public_key";
const PREVIOUS_KEY: &str = "previous_public_key";

/// Whether a text has the form of a certificate number. We query nothing else.
pub(super) fn is_sn(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
