//! A WeChat Pay account's table.

use super::alipay::digits;
use super::fields::Section;
use super::read_url;
use crate::domain::{AccountName, PaymentMethod, Scene};
use crate::gateway::keys::{Certificate, KeyError, KeyRing, SigningKey, VerifyingKey};
use crate::gateway::wechat::aead::ApiV3Key;
use crate::gateway::wechat::{Account, PRODUCTION_URL};

/// Reads everything, then decides: an account only if nothing is missing.
pub(super) fn read(section: &mut Section<'_>, name: AccountName, scenes: &[Scene]) -> Option<Account> {
    let default = (section.name() == "production").then_some(PRODUCTION_URL);
    let base_url = read_url(section, "base_url", default);
    if base_url.as_ref().is_some_and(|url| url.path() != "/") {
        section.fault("base_url", "must have no path; write scheme and host only");
    }
    let mchid = section
        .parsed("mchid", "the merchant number, 8 to 32 digits", |text| digits(text, 8..=32).then(|| text.to_owned()));
    let appids = read_appids(section, scenes);
    let form = "the merchant certificate's serial number, 40 hex digits";
    let merchant_serial_no = section.parsed("merchant_serial_no", form, serial_number);
    let merchant_key = section.secret("merchant_private_key").and_then(|(field, text)| {
        SigningKey::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()
    });
    let apiv3_key = section.secret("apiv3_key").and_then(|(field, text)| {
        let text = text.trim_end_matches(['\r', '\n']);
        ApiV3Key::new(text).map_err(|error| section.fault(&field, &error.to_string())).ok()
    });
    let verify_keys = read_verify_keys(section, merchant_key.as_ref());
    Some(Account {
        name,
        base_url: base_url?,
        mchid: mchid?,
        appids: appids?,
        merchant_serial_no: merchant_serial_no?,
        merchant_key: merchant_key?,
        apiv3_key: apiv3_key?,
        verify_keys: verify_keys?,
    })
}

fn serial_number(text: &str) -> Option<String> {
    let fits = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| text.to_ascii_uppercase())
}

/// `appid` for every scene, `[appids]` for single ones.
fn read_appids(section: &mut Section<'_>, scenes: &[Scene]) -> Option<Vec<(Scene, String)>> {
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
    (appids.len() == scenes.len()).then_some(appids)
}

fn read_verify_keys(section: &mut Section<'_>, ours: Option<&SigningKey>) -> Option<KeyRing> {
    let tables = section.sections("verify_keys");
    if tables.is_empty() {
        section.fault("verify_keys", "is missing; add a [[….verify_keys]] table with serial and file");
        return None;
    }
    let mut ring = KeyRing::default();
    let mut whole = true;
    for mut table in tables {
        match read_verify_key(&mut table, ours) {
            Some((serial, _)) if ring.get(&serial).is_some() => {
                table.fault("serial", "is given twice");
                whole = false;
            }
            Some((serial, key)) => ring.insert(serial, key),
            None => whole = false,
        }
        table.finish();
    }
    whole.then_some(ring)
}

/// The form of the name says what the file holds.
fn read_verify_key(table: &mut Section<'_>, ours: Option<&SigningKey>) -> Option<(String, VerifyingKey)> {
    let form = "PUB_KEY_ID_ and digits (a public key), or 40 hex digits (a certificate's serial number)";
    let serial = table.parsed("serial", form, |text| match text.strip_prefix(KeyRing::PUBLIC_KEY_ID) {
        Some(number) => digits(number, 1..=64).then(|| text.to_owned()),
        None => serial_number(text),
    });
    let (field, text) = table.secret_of("file", "env")?;
    let serial = serial?;
    let read: Result<VerifyingKey, KeyError> = if serial.starts_with(KeyRing::PUBLIC_KEY_ID) {
        VerifyingKey::from_spki_pem(&text)
    } else {
        Certificate::from_pem(&text).map(|certificate| {
            if certificate.serial != serial {
                let problem = format!("is not the certificate's number, which is {}", certificate.serial);
                table.fault("serial", &problem);
            }
            certificate.key
        })
    };
    let key = read.map_err(|error| table.fault(&field, &error.to_string())).ok()?;
    if ours.is_some_and(|ours| ours.is_pair_of(&key)) {
        table.fault(&field, "is the merchant's own key; put WeChat Pay's public key or platform certificate there");
        return None;
    }
    Some((serial, key))
}
