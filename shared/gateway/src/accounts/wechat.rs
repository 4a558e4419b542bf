//! Reads the table of a WeChat Pay account.

use std::collections::BTreeSet;

use domain::{AccountName, PaymentMethod, Scene};
use url::Url;

use crate::accounts::alipay::digits;
use crate::accounts::fields::Section;
use crate::accounts::{published, read_url};
use crate::keys::{Certificate, KeyRing, SigningKey, Validity, VerifyingKey};
use crate::wechat::aead::ApiV3Key;
use crate::wechat::{Account, FALLBACK_URL, PRODUCTION_URL};

/// Reads all fields before it decides, and returns an account only if no field is missing.
pub(super) fn read(section: &mut Section<'_>, name: AccountName, scenes: &[Scene]) -> Option<(Account, Vec<Url>)> {
    let urls = read_urls(section);
    let mchid = section
        .parsed("mchid", "the merchant number, 8 to 32 digits", |text| digits(text, 8..=32).then(|| text.to_owned()));
    let read = read_appids(section, scenes);
    let form = "the merchant certificate's serial number, 40 hex digits";
    let merchant_serial_no = section.parsed("merchant_serial_no", form, serial_number);
    let merchant_key = section.secret("merchant_private_key").and_then(|(field, text)| {
        let key = SigningKey::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        published::is_own(section, &field, key.public()).then_some(key)
    });
    let apiv3_key = read_apiv3_key(section, "apiv3_key");
    let has_previous = section.has_secret("previous_apiv3_key");
    let previous_apiv3_key = if has_previous { read_apiv3_key(section, "previous_apiv3_key") } else { None };
    let fetches = section.flag("fetch_certificates", true);
    let verify_keys = read_verify_keys(section, merchant_key.as_ref());
    if !fetches && verify_keys.as_ref().is_some_and(|ring| ring.names().next().is_none()) {
        section.fault("verify_keys", "is missing; add a [[….verify_keys]] table with serial and file");
    }
    let (appids, apps) = read?;
    let account = Account {
        name,
        mchid: mchid?,
        appids,
        apps,
        merchant_serial_no: merchant_serial_no?,
        merchant_key: merchant_key?,
        apiv3_key: apiv3_key?,
        previous_apiv3_key,
        verify_keys: verify_keys?,
        fetches,
    };
    Some((account, urls?))
}

fn read_apiv3_key(section: &mut Section<'_>, field: &str) -> Option<ApiV3Key> {
    let (field, text) = section.secret(field)?;
    let text = text.trim_end_matches(['\r', '\n']);
    let key = ApiV3Key::new(text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
    published::is_own(section, &field, text.as_bytes()).then_some(key)
}

/// Reads `base_url` and `fallback_url`. Where `base_url` is WeChat Pay's own host by default, so is `fallback_url`.
fn read_urls(section: &mut Section<'_>) -> Option<Vec<Url>> {
    let own = section.name() == "production" && !section.has("base_url");
    let first = read_host(section, "base_url", (section.name() == "production").then_some(PRODUCTION_URL));
    let second = match (section.has("fallback_url"), own) {
        (false, false) => return first.map(|first| vec![first]),
        _ => read_host(section, "fallback_url", own.then_some(FALLBACK_URL)),
    };
    let urls = vec![first?, second?];
    if urls[0].scheme() != urls[1].scheme() {
        section.fault("fallback_url", "must be reached the same way as base_url: both https, or both on this machine");
        return None;
    }
    Some(urls)
}

fn read_host(section: &mut Section<'_>, field: &str, default: Option<&str>) -> Option<Url> {
    let url = read_url(section, field, default);
    if url.as_ref().is_some_and(|url| url.path() != "/") {
        section.fault(field, "must have no path; write scheme and host only");
    }
    url
}

fn serial_number(text: &str) -> Option<String> {
    let fits = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| text.to_ascii_uppercase())
}

/// The app of each scene, and the set of all apps.
type Apps = (Vec<(Scene, String)>, BTreeSet<String>);

/// `appid` applies to every scene, `[appids]` to single scenes. The general `appid` counts among the apps even if every
/// scene has its own.
fn read_appids(section: &mut Section<'_>, scenes: &[Scene]) -> Option<Apps> {
    const FORM: &str = "an appid: wx and 6 to 30 letters or digits";
    let fits = |text: &str| {
        let long = (8..=32).contains(&text.len());
        (long && text.starts_with("wx") && text.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            .then(|| text.to_owned())
    };
    let general = if section.has("appid") { section.parsed("appid", FORM, fits) } else { None };
    let mut single = Vec::new();
    if let Some(mut table) = section.optional_section("appids") {
        for scene in PaymentMethod::Wechat.scenes().iter().filter(|scene| scenes.contains(scene)) {
            if table.has(scene.as_str()) {
                single.extend(table.parsed(scene.as_str(), FORM, fits).map(|appid| (*scene, appid)));
            }
        }
        table.finish();
    }
    let mut appids = Vec::new();
    for scene in scenes {
        let own = single.iter().find(|(of, _)| of == scene).map(|(_, appid)| appid);
        match own.or(general.as_ref()) {
            Some(appid) => appids.push((*scene, appid.clone())),
            None => section.fault("appid", &format!("is missing for the scene {scene}; give appid, or appids.{scene}")),
        }
    }
    let apps = appids.iter().map(|(_, appid)| appid.clone()).chain(general).collect();
    (appids.len() == scenes.len()).then_some((appids, apps))
}

fn read_verify_keys(section: &mut Section<'_>, ours: Option<&SigningKey>) -> Option<KeyRing> {
    let tables = section.sections("verify_keys");
    let mut ring = KeyRing::default();
    let mut whole = true;
    for mut table in tables {
        match read_verify_key(&mut table, ours) {
            Some(given) if ring.get(&given.serial).is_some() => {
                table.fault("serial", "is given twice");
                whole = false;
            }
            Some(given) => ring.insert_given(given),
            None => whole = false,
        }
        table.finish();
    }
    whole.then_some(ring)
}

/// The form of the name decides what the file holds. A public key is treated as a certificate without validity bounds.
fn read_verify_key(table: &mut Section<'_>, ours: Option<&SigningKey>) -> Option<Certificate> {
    let form = "PUB_KEY_ID_ and digits (a public key), or 40 hex digits (a certificate's serial number)";
    let serial = table.parsed("serial", form, |text| match text.strip_prefix(KeyRing::PUBLIC_KEY_ID) {
        Some(number) => digits(number, 1..=64).then(|| text.to_owned()),
        None => serial_number(text),
    });
    let (field, text) = table.secret_of("file", "env")?;
    let serial = serial?;
    let read = if serial.starts_with(KeyRing::PUBLIC_KEY_ID) {
        let key = VerifyingKey::from_spki_pem(&text);
        key.map(|key| Certificate { key, serial, validity: Validity::ALWAYS })
    } else {
        Certificate::from_pem(&text).inspect(|certificate| {
            if certificate.serial != serial {
                let problem = format!("is not the certificate's number, which is {}", certificate.serial);
                table.fault("serial", &problem);
            }
        })
    };
    let given = read.map_err(|error| table.fault(&field, &error.to_string())).ok()?;
    if ours.is_some_and(|ours| ours.is_pair_of(&given.key)) {
        table.fault(&field, "is the merchant's own key; put WeChat Pay's public key or platform certificate there");
        return None;
    }
    published::is_own(table, &field, given.key.rsa()).then_some(given)
}
