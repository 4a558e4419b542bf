//! An Alipay account's table.

use super::fields::Section;
use super::read_url;
use crate::domain::AccountName;
use crate::gateway::alipay::{Account, PRODUCTION_URL, QR_PRODUCT_CODE, SANDBOX_URL};
use crate::gateway::keys::{SigningKey, VerifyingKey};

/// Reads everything, then decides: an account only if nothing is missing.
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
        SigningKey::from_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()
    });
    let alipay_key = section.secret("alipay_public_key").and_then(|(field, text)| {
        let key = VerifyingKey::from_spki_pem(&text).map_err(|error| section.fault(&field, &error.to_string())).ok()?;
        // The most common mistake of all: the console shows both, one above the other.
        if app_key.as_ref().is_some_and(|ours| ours.is_pair_of(&key)) {
            section.fault(&field, "is the application's own public key; put Alipay's public key (支付宝公钥) there");
            return None;
        }
        Some(key)
    });
    Some(Account {
        name,
        gateway_url: gateway_url?,
        app_id: app_id?,
        seller_id: seller_id?,
        qr_product_code,
        app_key: app_key?,
        alipay_key: alipay_key?,
    })
}

pub(super) fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}
