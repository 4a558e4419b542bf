//! Key rotation: certificates that are fetched, refused, not in force, or looked up because a message names them.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::Duration;

use crate::keys::{Certificate, KeyTime};
use crate::testing::{Reply, Server};
use crate::transport::http::{Transport, client};
use crate::transport::route;
use crate::wechat::tests::{APIV3, KEY_ID, NOW, account, signed, unsigned, with_keys};
use crate::wechat::*;

macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/vectors/keys/", $name))
    };
}

/// A platform certificate: its PEM text, its private key, and its validity in days from now.
#[derive(Clone, Copy)]
struct Platform {
    pem: &'static str,
    private: &'static str,
    from: i64,
    until: i64,
}

const OLD: Platform = Platform {
    pem: key!("wx_platform_cert.pem"),
    private: key!("wx_platform_private_pkcs8.pem"),
    from: -900,
    until: 30,
};
const NEW: Platform = Platform {
    pem: key!("wx_platform_new_cert.pem"),
    private: key!("wx_platform_new_private_pkcs8.pem"),
    from: -1,
    until: 1800,
};
const STRANGER: &str = key!("wx_other_private_pkcs8.pem");

impl Platform {
    fn serial(&self) -> String {
        Certificate::from_pem(self.pem).unwrap().serial
    }

    fn entry(&self, apiv3: &str) -> serde_json::Value {
        let time = |days: i64| (NOW + Duration::days(days)).format(&Rfc3339).unwrap();
        let cipher = Aes256Gcm::new_from_slice(apiv3.as_bytes()).unwrap();
        let payload = Payload { msg: self.pem.as_bytes(), aad: b"certificate" };
        let ciphertext = STANDARD.encode(cipher.encrypt(b"twelve bytes".into(), payload).unwrap());
        serde_json::json!({
            "serial_no": self.serial(), "effective_time": time(self.from), "expire_time": time(self.until),
            "encrypt_certificate": {
                "algorithm": "AEAD_AES_256_GCM", "nonce": "twelve bytes", "associated_data": "certificate",
                "ciphertext": ciphertext,
            },
        })
    }
}

fn list(of: &[Platform]) -> String {
    let entries: Vec<_> = of.iter().map(|platform| platform.entry(APIV3)).collect();
    serde_json::json!({ "data": entries }).to_string()
}

/// A reply signed under this name, with this key, at this time.
fn signed_by(serial: &str, private: &str, at: OffsetDateTime, body: &str) -> Reply {
    let timestamp = at.unix_timestamp();
    let signature =
        SigningKey::from_pem(private).unwrap().sign(format!("{timestamp}\nn\n{body}\n").as_bytes()).unwrap();
    let headers = [
        ("wechatpay-timestamp", timestamp.to_string()),
        ("wechatpay-nonce", "n".to_owned()),
        ("wechatpay-serial", serial.to_owned()),
        ("wechatpay-signature", signature),
    ];
    Reply {
        status: 200,
        headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        body: body.to_owned(),
    }
}

fn by(platform: &Platform, body: &str) -> Reply {
    signed_by(&platform.serial(), platform.private, NOW, body)
}

fn keyless(url: &str) -> Wechat {
    with_keys(KeyRing::default(), route::tests::to(client(Transport::Loopback).unwrap(), &[url]))
}

fn callback(platform: &Platform, at: OffsetDateTime) -> Callback {
    let Reply { headers, body, .. } = signed_by(&platform.serial(), platform.private, at, "{}");
    Callback {
        method: PaymentMethod::Wechat,
        account: AccountName::parse("main").unwrap(),
        headers,
        body: body.into(),
        received_at: at,
        job_id: None,
    }
}

fn verdict(wechat: &Wechat, platform: &Platform, at: OffsetDateTime) -> Result<(), CallbackError> {
    wechat.verify(callback(platform, at), Some(at)).map(drop)
}

async fn arrives(wechat: &Wechat, platform: &Platform, at: OffsetDateTime) -> Result<(), CallbackError> {
    wechat.verify_arriving(callback(platform, at), at).await.map(drop)
}

#[tokio::test]
async fn the_first_list_needs_no_key_and_brings_old_and_new_at_once() {
    let server = Server::start(by(&OLD, &list(&[OLD, NEW]))).await;
    let wechat = keyless(&server.url);
    assert!(matches!(verdict(&wechat, &OLD, NOW), Err(CallbackError::UnknownKey { .. })));
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 2 });
    assert_eq!((server.seen().method.as_str(), server.seen().target.as_str()), ("GET", "/v3/certificates"));
    for platform in [OLD, NEW] {
        verdict(&wechat, &platform, NOW).unwrap();
    }
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 0 });
    // A later list that lacks the old certificate does not remove it.
    server.reply(by(&NEW, &list(&[NEW])));
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 0 });
    verdict(&wechat, &OLD, NOW).unwrap();
}

/// Every process holds the APIv3 key, so that key alone must not establish a key for checking callbacks.
#[tokio::test]
async fn a_list_that_its_own_new_certificate_signed_is_refused_where_a_key_is_known() {
    let server = Server::start(by(&OLD, &list(&[OLD]))).await;
    let certified = keyless(&server.url);
    certified.refresh_keys(NOW).await.unwrap();
    server.reply(by(&NEW, &list(&[NEW])));
    for wechat in [certified, account(&server.url)] {
        for brought in [list(&[NEW]), list(&[OLD, NEW])] {
            server.reply(by(&NEW, &brought));
            let before: Vec<_> = wechat.status();
            let Err(GatewayError::Protocol(error)) = wechat.refresh_keys(NOW).await else { panic!("{brought}") };
            assert!(error.contains("verify_keys"), "{error}");
            assert_eq!(wechat.status(), before);
            assert!(matches!(arrives(&wechat, &NEW, NOW).await, Err(CallbackError::UnknownKey { .. })));
        }
    }
}

#[tokio::test]
async fn the_old_key_signs_the_list_that_brings_the_new_one() {
    let server = Server::start(by(&OLD, &list(&[OLD]))).await;
    let wechat = keyless(&server.url);
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 1 });
    server.reply(by(&OLD, &list(&[OLD, NEW])));
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 1 });
    // From now on the new certificate signs.
    server.reply(by(&NEW, &list(&[NEW])));
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 0 });
    verdict(&wechat, &NEW, NOW).unwrap();
}

/// An expired key still counts as known. Only the operator can recover, with `verify_keys`; a list cannot vouch for
/// itself.
#[tokio::test]
async fn a_list_that_signs_itself_is_refused_where_all_known_keys_have_expired() {
    let ending = Platform { until: 2, ..OLD };
    let server = Server::start(by(&ending, &list(&[ending]))).await;
    let wechat = keyless(&server.url);
    wechat.refresh_keys(NOW).await.unwrap();
    let later = NOW + Duration::days(3);
    server.reply(signed_by(&NEW.serial(), NEW.private, later, &list(&[NEW])));
    assert!(wechat.refresh_keys(later).await.is_err());
}

#[tokio::test]
async fn a_public_key_and_certificates_count_side_by_side() {
    let server = Server::start(signed(200, &list(&[OLD]))).await;
    let wechat = account(&server.url);
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 1 });
    assert_eq!(server.seen().header("wechatpay-serial"), KEY_ID);
    verdict(&wechat, &OLD, NOW).unwrap();
    let Reply { headers, body, .. } = signed(200, "{}");
    let callback = Callback { headers: lower(headers), body: body.into(), ..callback(&OLD, NOW) };
    wechat.verify(callback, Some(NOW)).unwrap();
    assert_eq!(wechat.ring().public_key_id(), Some(KEY_ID));
}

fn lower(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect()
}

#[tokio::test]
async fn a_list_that_is_not_proved_changes_nothing() {
    let good = list(&[OLD, NEW]);
    let mut wrong_serial = serde_json::from_str::<serde_json::Value>(&good).unwrap();
    wrong_serial["data"][1]["serial_no"] = "5C08F44341EC8FB786C3AEA11653FD06201CCD86".into();
    let other_key = serde_json::json!({ "data": [OLD.entry("another-key-of-thirty-two-bytes!")] }).to_string();
    let no_certificate = {
        let mut entry = OLD.entry(APIV3);
        entry["encrypt_certificate"] = Platform { pem: key!("wx_pubkey_public.pem"), ..OLD }.sealed();
        serde_json::json!({ "data": [entry] }).to_string()
    };
    let mut tampered = by(&OLD, &good);
    tampered.body = good.replace("2031", "2041").replace("2026-02", "2046-02");
    assert_ne!(tampered.body, good);
    let cases = [
        ("sealed under another APIv3 key", by(&OLD, &other_key)),
        ("another serial number", by(&OLD, &wrong_serial.to_string())),
        ("no certificate inside", by(&OLD, &no_certificate)),
        ("signed by a stranger", signed_by("1111111111111111111111111111111111111111", STRANGER, NOW, &good)),
        ("a stranger under a true name", signed_by(&OLD.serial(), STRANGER, NOW, &good)),
        ("changed after signing", tampered),
        ("signed long ago", signed_by(&OLD.serial(), OLD.private, NOW - Duration::minutes(6), &good)),
        ("not signed", unsigned(200, &good)),
        ("no list", by(&OLD, r#"{"data":{}}"#)),
        ("refused", unsigned(401, r#"{"code":"SIGN_ERROR"}"#)),
        ("an error", unsigned(500, "")),
        ("another 404", unsigned(404, "")),
    ];
    for (name, reply) in cases {
        let server = Server::start(reply).await;
        for wechat in [keyless(&server.url), account(&server.url)] {
            let before: Vec<_> = wechat.status();
            assert!(wechat.refresh_keys(NOW).await.is_err(), "{name}");
            assert_eq!(wechat.status(), before, "{name}");
        }
    }
}

impl Platform {
    fn sealed(&self) -> serde_json::Value {
        let cipher = Aes256Gcm::new_from_slice(APIV3.as_bytes()).unwrap();
        let payload = Payload { msg: self.pem.as_bytes(), aad: b"certificate" };
        let ciphertext = STANDARD.encode(cipher.encrypt(b"twelve bytes".into(), payload).unwrap());
        serde_json::json!({
            "algorithm": "AEAD_AES_256_GCM", "nonce": "twelve bytes", "associated_data": "certificate",
            "ciphertext": ciphertext,
        })
    }
}

#[tokio::test]
async fn a_merchant_with_a_public_key_alone_has_no_certificates_and_that_is_no_failure() {
    let server = Server::start(unsigned(404, r#"{"code":"RESOURCE_NOT_EXISTS","message":"m"}"#)).await;
    assert_eq!(account(&server.url).refresh_keys(NOW).await.unwrap(), KeyNews::None);
}

#[tokio::test]
async fn a_certificate_counts_in_its_time_only_and_the_other_is_used() {
    let expired = Platform { until: -1, ..OLD };
    let ending = Platform { until: 2, ..OLD };
    let coming = Platform { from: 3, ..NEW };
    let server = Server::start(by(&ending, &list(&[ending, coming]))).await;
    let wechat = keyless(&server.url);
    wechat.refresh_keys(NOW).await.unwrap();
    verdict(&wechat, &ending, NOW).unwrap();
    let from = NOW + Duration::days(3);
    let Err(CallbackError::KeyNotInForce { serial, time }) = verdict(&wechat, &coming, NOW) else { panic!() };
    assert_eq!((serial, time), (coming.serial(), KeyTime::NotYet(from)));
    verdict(&wechat, &coming, from).unwrap();
    let Err(CallbackError::KeyNotInForce { time: KeyTime::Expired(_), .. }) = verdict(&wechat, &ending, from) else {
        panic!()
    };
    // A worker passes no clock, so the time of signing decides.
    wechat.verify(callback(&ending, NOW), None).unwrap();
    assert!(wechat.verify(callback(&ending, from), None).is_err());
    // A certificate that has already expired is not stored at all.
    let server = Server::start(by(&NEW, &list(&[expired, NEW]))).await;
    let wechat = keyless(&server.url);
    assert_eq!(wechat.refresh_keys(NOW).await.unwrap(), KeyNews::Fetched { new: 1 });
    assert!(matches!(verdict(&wechat, &expired, NOW), Err(CallbackError::UnknownKey { .. })));
}

#[tokio::test]
async fn an_unknown_serial_is_looked_for_once_and_then_not_for_a_while() {
    let server = Server::start(by(&OLD, &list(&[OLD]))).await;
    let wechat = keyless(&server.url);
    arrives(&wechat, &OLD, NOW).await.unwrap();
    assert_eq!(server.count(), 1);
    // The new certificate is published, but within 30 s after the last lookup no further lookup is made.
    server.reply(by(&OLD, &list(&[OLD, NEW])));
    assert!(matches!(arrives(&wechat, &NEW, NOW).await, Err(CallbackError::UnknownKey { .. })));
    assert_eq!(server.count(), 1);
    let later = NOW + Duration::seconds(30);
    server.reply(signed_by(&OLD.serial(), OLD.private, later, &list(&[OLD, NEW])));
    let many = futures_util::future::join_all((0..20).map(|_| arrives(&wechat, &NEW, later))).await;
    assert!(many.iter().all(Result::is_ok), "{many:?}");
    assert_eq!(server.count(), 2);
    // Neither a forged signature under a known name nor the name of a public key causes a query.
    let forged = Platform { private: STRANGER, ..OLD };
    assert_eq!(arrives(&wechat, &forged, later + Duration::minutes(5)).await, Err(CallbackError::BadSignature));
    let Reply { headers, body, .. } = signed_by("PUB_KEY_ID_9", STRANGER, later, "{}");
    let named = Callback { headers, body: body.into(), ..callback(&OLD, later) };
    assert!(wechat.verify_arriving(named, later).await.is_err());
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn an_answer_that_names_a_new_certificate_is_proved_by_it() {
    let paid = r#"{"mchid":"1900000109","out_trade_no":"ORD_01","trade_state":"SUCCESS","transaction_id":"42","success_time":"2026-01-05T10:21:08+08:00","amount":{"total":100}}"#;
    let order_no = OrderNo::parse("ORD_01").unwrap();
    let replies = vec![("/v3/certificates", by(&NEW, &list(&[OLD, NEW]))), ("/v3/pay", by(&NEW, paid))];
    let server = Server::start_with(replies).await;
    keyless(&server.url).query(&order_no, NOW).await.unwrap();
    assert_eq!(server.count(), 2);
    // Without the certificate the outcome stays unknown.
    let replies = vec![("/v3/certificates", unsigned(500, "")), ("/v3/pay", by(&NEW, paid))];
    let server = Server::start_with(replies).await;
    assert!(matches!(keyless(&server.url).query(&order_no, NOW).await, Err(GatewayError::Unknown(_))));
}

#[tokio::test]
async fn the_second_domain_gets_the_same_request_when_the_first_takes_no_connection() {
    let server = Server::start(unsigned(403, r#"{"code":"NOT_ENOUGH"}"#)).await;
    let mut ring = KeyRing::default();
    ring.insert(KEY_ID.to_owned(), crate::keys::VerifyingKey::from_spki_pem(key!("wx_pubkey_public.pem")).unwrap());
    let hosts = ["http://127.0.0.1:1", &server.url];
    let wechat = with_keys(ring, route::tests::to(client(Transport::Loopback).unwrap(), &hosts));
    let refund = crate::testing::refund_order();
    let outcome = wechat.refund(&refund, NOW).await;
    assert!(matches!(outcome, Err(GatewayError::NotNow { .. })), "{outcome:?}");
    crate::wechat::tests::assert_signed(&server.seen());
    assert!(server.seen().body.contains("RF_1"));
}
