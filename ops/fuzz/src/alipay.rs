//! Fuzz targets for Alipay's callbacks and answers.

use std::sync::LazyLock;

use domain::PaymentMethod::Alipay;
use domain::message::callback::Callback;
use gateway::alipay::form::{EmptyValues, Form};
use gateway::alipay::{answer, sign};
use gateway::keys::{SigningKey, VerifyingKey};
use runtime::clock::Clock;

use crate::accounts::{gateway, main_account, signing_key};

static ALIPAYS: LazyLock<SigningKey> = LazyLock::new(|| {
    signing_key(include_str!("../../../shared/gateway/tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem"))
});
static ALIPAYS_PUBLIC: LazyLock<VerifyingKey> = LazyLock::new(|| {
    let pem = include_str!("../../../shared/gateway/tests/fixtures/vectors/keys/alipay_platform_public.pem");
    VerifyingKey::from_spki_pem(pem).unwrap_or_else(|error| panic!("{error}"))
});

fn posted(body: Vec<u8>) -> Callback {
    let received_at = Clock::system().now();
    Callback {
        method: Alipay,
        account: main_account(),
        headers: Vec::new(),
        body: body.into(),
        received_at,
        job_id: None,
    }
}

/// A body, or a query string, as a stranger sends it.
pub(crate) fn callback(body: &[u8]) {
    if let Ok(verified) = gateway(Alipay).verify(posted(body.to_vec()), None) {
        let _ = gateway(Alipay).read(&verified, Clock::system().now());
    }
    if let Ok(form) = Form::parse(body) {
        let _ = form.string_to_verify(EmptyValues::Kept);
        let _ = form.string_to_verify(EmptyValues::Dropped);
    }
    let query = String::from_utf8_lossy(body);
    let _ = gateway(Alipay).verify_return(&query);
}

/// Fields with Alipay's signature: they verify, and are read or refused. With one changed byte they do not verify.
pub(crate) fn signed(body: &[u8]) {
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(body)
        .into_owned()
        .filter(|(name, value)| !["sign", "sign_type", ""].contains(&name.as_str()) && !value.is_empty())
        .collect();
    let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() < fields.len() || fields.is_empty() {
        return;
    }
    let covered = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let Ok(signature) = sign::sign(&ALIPAYS, covered.clone()) else { return };
    let signed = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(covered)
        .extend_pairs([("sign_type", "RSA2"), ("sign", &signature)])
        .finish();
    let verified = gateway(Alipay).verify(posted(signed.clone().into_bytes()), None);
    if let Ok(verified) = verified {
        let _ = gateway(Alipay).read(&verified, Clock::system().now());
    }
    let mut forged = fields.clone();
    forged[0].1.push('1');
    let forged = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(forged.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        .extend_pairs([("sign_type", "RSA2"), ("sign", &signature)])
        .finish();
    assert!(gateway(Alipay).verify(posted(forged.into_bytes()), None).is_err(), "a forged callback verifies");
}

/// The answer to a call. The method name comes before the first line feed.
pub(crate) fn answer(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (method, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let _ = answer::open_answer(&ALIPAYS_PUBLIC, &String::from_utf8_lossy(method), body);
}
