//! The key set of the simulator: what each gateway knows of its merchants.
//!
//! One folder contains both sides. The payment service reads the merchant's side (`gateways.toml`, `keys/`). The
//! simulator reads the gateways' side (`sim.json`, `sim/`). Neither side has a private key of the other.

mod certified;
mod generate;
mod platform;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::crypto::{Signer, Verifier};

pub use certified::{ALIPAY, Authority, CertificateMode, Certified, Wanted, forge};
pub use generate::{Existed, generate, generate_if_missing, point_at};
pub use platform::{NamedKey, Platform, PlatformCertificate};

/// Everything the two gateways know.
#[derive(Debug, Clone)]
pub struct SimKeys {
    /// Merchants of Alipay.
    pub alipay: Vec<Arc<AlipayMerchant>>,
    /// Merchants of WeChat Pay.
    pub wechat: Vec<Arc<WechatMerchant>>,
}

/// One application at Alipay.
#[derive(Debug)]
pub struct AlipayMerchant {
    /// The account's name in `gateways.toml`.
    pub account: String,
    /// The application.
    pub app_id: String,
    /// The payee, a 2088 number.
    pub seller_id: String,
    /// Verifies what the merchant signed.
    pub app_key: Verifier,
    /// Alipay's own key: it signs answers, notifications and returns.
    pub gateway_key: Signer,
    /// What certificate mode needs; `None` in a key set that was created before the mode existed.
    pub certificates: Option<CertificateMode>,
    /// An untrusted key, for forgeries.
    pub stranger: Arc<Signer>,
}

/// One merchant at WeChat Pay.
#[derive(Debug)]
pub struct WechatMerchant {
    /// The account's name in `gateways.toml`.
    pub account: String,
    /// The merchant number.
    pub mchid: String,
    /// The applications bound to it when the key set was made.
    pub appids: Vec<String>,
    /// The applications that were bound later.
    pub bound_since: Mutex<Vec<String>>,
    /// Serial number of the merchant's certificate.
    pub merchant_serial_no: String,
    /// Verifies what the merchant signed.
    pub merchant_key: Verifier,
    /// Encrypts the contents of a notification.
    pub apiv3_key: [u8; 32],
    /// WeChat Pay's own public keys by serial; the first one signs unless another is requested.
    pub signing_keys: Vec<Arc<NamedKey>>,
    /// Its platform certificates.
    pub platform: Platform,
    /// An untrusted key, for forgeries.
    pub stranger: Arc<Signer>,
}

impl WechatMerchant {
    /// Whether this application may request payments for the merchant.
    #[must_use]
    pub fn is_bound(&self, appid: &str) -> bool {
        self.all_appids().iter().any(|known| known == appid)
    }

    /// Adds another application to the same merchant number.
    pub fn bind(&self, appid: &str) {
        if !self.is_bound(appid) {
            self.bound_since.lock().unwrap_or_else(PoisonError::into_inner).push(appid.to_owned());
        }
    }

    /// Every application bound to it.
    #[must_use]
    pub fn all_appids(&self) -> Vec<String> {
        let since = self.bound_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.appids.iter().chain(since.iter()).cloned().collect()
    }

    /// The key that `serial` names. Without one, the key whose turn it is: the first public key, or a platform
    /// certificate.
    ///
    /// # Panics
    /// Never: a loaded merchant has at least one key.
    #[must_use]
    pub fn signing_key(&self, serial: Option<&str>) -> Arc<NamedKey> {
        let public = |serial: &str| self.signing_keys.iter().find(|key| key.0 == serial).cloned();
        let named = serial.and_then(|serial| public(serial).or_else(|| self.platform.named(serial)));
        let named = named.or_else(|| self.platform.turn());
        named.or_else(|| self.signing_keys.first().cloned()).expect("a merchant has a key")
    }
}

impl AlipayMerchant {
    /// Alipay's signature with the current key.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        match self.certificates.as_ref().and_then(CertificateMode::key) {
            Some(key) => key.sign(message),
            None => self.gateway_key.sign(message),
        }
    }
}

impl SimKeys {
    /// Reads the key set in `dir`, as [`generate()`] created it.
    ///
    /// # Errors
    /// Names the file that is missing or wrong.
    pub fn load(dir: &Path) -> Result<SimKeys> {
        let path = dir.join("sim.json");
        let file: File = serde_json::from_str(&read(&path)?).with_context(|| format!("in {}", path.display()))?;
        let stranger = Arc::new(signer(&dir.join(&file.stranger_private_key_file))?);
        let ca = file.alipay_ca_private_key_file.as_ref().map(|name| Authority::new(signer(&dir.join(name))?));
        let ca = ca.transpose()?.map(Arc::new);
        let load = |entry: &AlipayEntry| entry.load(dir, &stranger, ca.as_ref()).map(Arc::new);
        let alipay = file.alipay.iter().map(load).collect::<Result<_>>()?;
        let wechat = file.wechat.iter().map(|entry| entry.load(dir, &stranger).map(Arc::new)).collect::<Result<_>>()?;
        Ok(SimKeys { alipay, wechat })
    }

    /// The application with this `app_id`.
    #[must_use]
    pub fn alipay_app(&self, app_id: &str) -> Option<&Arc<AlipayMerchant>> {
        self.alipay.iter().find(|merchant| merchant.app_id == app_id)
    }

    /// The Alipay account of this name.
    #[must_use]
    pub fn alipay_account(&self, account: &str) -> Option<&Arc<AlipayMerchant>> {
        self.alipay.iter().find(|merchant| merchant.account == account)
    }

    /// The merchant with this `mchid`.
    #[must_use]
    pub fn wechat_mchid(&self, mchid: &str) -> Option<&Arc<WechatMerchant>> {
        self.wechat.iter().find(|merchant| merchant.mchid == mchid)
    }

    /// The WeChat Pay account of this name.
    #[must_use]
    pub fn wechat_account(&self, account: &str) -> Option<&Arc<WechatMerchant>> {
        self.wechat.iter().find(|merchant| merchant.account == account)
    }
}

/// `sim.json`; its paths are relative to it.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    url: String,
    stranger_private_key_file: String,
    #[serde(default)]
    alipay_ca_private_key_file: Option<String>,
    alipay: Vec<AlipayEntry>,
    wechat: Vec<WechatEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AlipayEntry {
    account: String,
    app_id: String,
    seller_id: String,
    app_public_key_file: String,
    gateway_private_key_file: String,
    #[serde(default)]
    certificates: Option<CertificatesEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CertificatesEntry {
    app_sn: String,
    sn: String,
    file: String,
}

impl AlipayEntry {
    fn load(&self, dir: &Path, stranger: &Arc<Signer>, ca: Option<&Arc<Authority>>) -> Result<AlipayMerchant> {
        let certificates = match (&self.certificates, ca) {
            (Some(entry), Some(ca)) => {
                let certified = Certified { sn: entry.sn.clone(), pem: read(&dir.join(&entry.file))? };
                Some(CertificateMode::new(Arc::clone(ca), entry.app_sn.clone(), certified))
            }
            _ => None,
        };
        Ok(AlipayMerchant {
            account: self.account.clone(),
            app_id: self.app_id.clone(),
            seller_id: self.seller_id.clone(),
            app_key: verifier(&dir.join(&self.app_public_key_file))?,
            gateway_key: signer(&dir.join(&self.gateway_private_key_file))?,
            certificates,
            stranger: Arc::clone(stranger),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct WechatEntry {
    account: String,
    mchid: String,
    appids: Vec<String>,
    merchant_serial_no: String,
    merchant_public_key_file: String,
    apiv3_key_file: String,
    signing_keys: Vec<SigningKeyEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SigningKeyEntry {
    serial: String,
    private_key_file: String,
}

impl WechatEntry {
    fn load(&self, dir: &Path, stranger: &Arc<Signer>) -> Result<WechatMerchant> {
        let path = dir.join(&self.apiv3_key_file);
        let apiv3_key = read(&path)?.trim_end_matches(['\r', '\n']).as_bytes().try_into();
        let Ok(apiv3_key) = apiv3_key else { bail!("{} does not hold exactly 32 bytes", path.display()) };
        if self.signing_keys.is_empty() {
            bail!("WeChat Pay account {} has no signing key", self.account);
        }
        let load =
            |key: &SigningKeyEntry| Ok(Arc::new((key.serial.clone(), signer(&dir.join(&key.private_key_file))?)));
        Ok(WechatMerchant {
            account: self.account.clone(),
            mchid: self.mchid.clone(),
            appids: self.appids.clone(),
            bound_since: Mutex::default(),
            merchant_serial_no: self.merchant_serial_no.clone(),
            merchant_key: verifier(&dir.join(&self.merchant_public_key_file))?,
            apiv3_key,
            signing_keys: self.signing_keys.iter().map(load).collect::<Result<_>>()?,
            platform: Platform::default(),
            stranger: Arc::clone(stranger),
        })
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn signer(path: &Path) -> Result<Signer> {
    Signer::from_pem(&read(path)?).with_context(|| format!("in {}", path.display()))
}

fn verifier(path: &Path) -> Result<Verifier> {
    Verifier::from_pem(&read(path)?).with_context(|| format!("in {}", path.display()))
}
