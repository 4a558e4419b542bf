//! Reads the table of an Alipay account.

use domain::AccountName;

use crate::accounts::fields::Section;
use crate::accounts::{published, read_url};
use crate::alipay::cert::{cert_sn, root_cert_sn};
use crate::alipay::{Account, Certificates, Issued, PRODUCTION_URL, QR_PRODUCT_CODE, Roots, SANDBOX_URL, Trust};
use crate::keys::{Certificate, SigningKey, VerifyingKey};

/// Reads all fields before it decides, and returns an account only if no field is missing.
pub(super) fn read(section: &mut Section<'_>, name: AccountName) -> Option<Account> {
    let default = match section.name() {
        "production" => Some(PRODUCTION_URL),
        "sandbox" => Some(SANDBOX_URL),
        _ => None,
    };
    let gateway_url = read_url(section, "gateway_url", default);
    let app_id = section.parsed("app_id", "the application's id, 16 to 32 digits (it stands in the console)", |text| {
        digits(text, 16..=32).then(|| text.to_owned())
    });
    let seller_id = section.parsed("seller_id", "the payee's PID, 16 digits beginning with 2088", |text| {
        (digits(text, 16..=16) && text.starts_with("2088")).then(|| text.to_owned())
    });
    let qr_product_code = section.optional_text("qr_product_code").unwrap_or_else(|| QR_PRODUCT_CODE.to_owned());
    let app_key = section.secret("app_private_key").and_then(|(field, text)| {
        let key = SigningKey::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        published::is_own(section, &field, key.public()).then_some(key)
    });
    let trust = read_trust(section, app_key.as_ref());
    let has_previous = section.has_secret(PREVIOUS_KEY);
    let previous_key = if has_previous { read_public_key(section, PREVIOUS_KEY, app_key.as_ref()) } else { None };
    Some(Account {
        name,
        gateway_url: gateway_url?,
        app_id: app_id?,
        seller_id: seller_id?,
        qr_product_code,
        app_key: app_key?,
        trust: trust?,
        previous_key,
    })
}

const PUBLIC_KEY: &str = "alipay_public_key";
const PREVIOUS_KEY: &str = "previous_alipay_public_key";
const CERTIFICATES: [&str; 3] = ["app_cert", "alipay_cert", "alipay_root_cert"];

/// An application is in one of two modes: Alipay's public key, or the three certificates.
fn read_trust(section: &mut Section<'_>, ours: Option<&SigningKey>) -> Option<Trust> {
    if !CERTIFICATES.iter().any(|field| section.has_secret(field)) {
        return read_public_key(section, PUBLIC_KEY, ours).map(Trust::PublicKey);
    }
    if section.has_secret(PUBLIC_KEY) {
        let problem = "and certificates are both given; an application is in one mode, so keep what the console shows";
        section.fault("alipay_public_key_file", problem);
        section.secret(PUBLIC_KEY);
    }
    let app = section.secret("app_cert").and_then(|(field, text)| {
        let number = cert_sn(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        let certificate =
            Certificate::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        if ours.is_some_and(|ours| !ours.is_pair_of(&certificate.key)) {
            section.fault(&field, "is not the certificate of app_private_key; download it again for this key");
        }
        Some((number, certificate.validity))
    });
    let alipay = section.secret("alipay_cert").and_then(|(field, text)| {
        let issued = Issued::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        if ours.is_some_and(|ours| ours.is_pair_of(&issued.key)) {
            section.fault(&field, "is the application's own certificate; put Alipay's (支付宝公钥证书) there");
        }
        published::is_own(section, &field, issued.key.rsa());
        Some(issued)
    });
    let root = section.secret("alipay_root_cert").and_then(|(field, text)| {
        let read = root_cert_sn(&text).and_then(|number| Ok((number, Roots::from_pem(&text)?)));
        read.map_err(|error| section.fault(&field, &error.to_string())).ok()
    });
    let ((app_sn, app_validity), given, (root_sn, roots)) = (app?, alipay?, root?);
    Some(Trust::Certificates(Box::new(Certificates { app_sn, app_validity, root_sn, roots, given })))
}

fn read_public_key(section: &mut Section<'_>, name: &str, ours: Option<&SigningKey>) -> Option<VerifyingKey> {
    let (field, text) = section.secret(name)?;
    let key = VerifyingKey::from_spki_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
    // The most common mistake: the console shows both keys, one above the other.
    if ours.is_some_and(|ours| ours.is_pair_of(&key)) {
        section.fault(&field, "is the application's own public key; put Alipay's public key (支付宝公钥) there");
        return None;
    }
    published::is_own(section, &field, key.rsa()).then_some(key)
}

pub(super) fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}
