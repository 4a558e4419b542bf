//! The vectors of WeChat Pay.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::message::callback::Callback;
use domain::{AccountName, Fact, Merchant, Notification, PaymentMethod, RefundState, Scene};
use gateway::keys::{Certificate, KeyRing, SigningKey, VerifyingKey};
use gateway::wechat::aead::{ApiV3Key, Sealed};
use gateway::wechat::cert::open_list;
use gateway::wechat::prepay::{Credential, invoke_params};
use gateway::wechat::sensitive::{SensitiveError, encrypt};
use gateway::wechat::sign::{Merchant as Signer, Stamp, Target, authorization, invoke_text, request_text, verify};
use gateway::{CallbackError, Gateway, Gateways, callback_headers};
use rsa::Oaep;
use rsa::pkcs8::DecodePrivateKey as _;
use serde_json::Value;
use time::OffsetDateTime;

use super::captured::authorization_fields;
use super::{Outcome, TempDir, VectorFile, fixtures, same, second_opinion, text};

fn now(file: &VectorFile) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(file.json["now"].as_i64().expect("now")).expect("a time")
}

/// The headers of a case as a server passes them on, with names in lower case.
fn headers(case: &Value) -> Vec<(String, String)> {
    let headers = case["headers"].as_object().expect("headers");
    headers.iter().map(|(name, value)| (name.to_lowercase(), value.as_str().expect("a text").to_owned())).collect()
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[test]
fn request_authorization() {
    let file = VectorFile::open("wechat/request_authorization.json");
    let pem = file.pem("private_key");
    let key = SigningKey::from_pem(&pem).expect("the private key");
    let certificate = Certificate::from_pem(&file.pem("certificate")).expect("the certificate");
    let signer = Signer { mchid: file.text("mchid"), serial_no: file.text("serial_no"), key: &key };
    assert_eq!(certificate.serial, signer.serial_no);
    file.each("cases", |case| {
        let target =
            Target { method: text(case, "method"), path_and_query: text(case, "url"), body: text(case, "body") };
        let timestamp = text(case, "timestamp").parse().map_err(|_| "timestamp")?;
        let stamp = Stamp { timestamp, nonce: text(case, "nonce_str") };
        let covered = request_text(&target, &stamp);
        same("string to sign", covered.as_str(), text(case, "string_to_sign"))?;
        let header = authorization(&signer, &target, &stamp).map_err(|error| error.to_string())?;
        let fields = authorization_fields(&header)?;
        for (name, value) in case["authorization_fields"].as_object().ok_or("no fields")? {
            same(name, fields.get(name.as_str()).copied(), value.as_str())?;
        }
        same("signature", fields["signature"], text(case, "signature"))?;
        same("signature by rsa", second_opinion(&pem, covered.as_bytes()).as_str(), fields["signature"])?;
        same("verified", certificate.key.verify(covered.as_bytes(), fields["signature"]), true)
    });
}

#[test]
fn pay_sign() {
    let file = VectorFile::open("wechat/pay_sign.json");
    let pem = file.pem("private_key");
    let key = SigningKey::from_pem(&pem).expect("the private key");
    file.each("cases", |case| {
        let (appid, prepay_id) = (text(case, "appId"), text(case, "prepay_id"));
        let timestamp = text(case, "timeStamp").parse().map_err(|_| "timestamp")?;
        let stamp = Stamp { timestamp, nonce: text(case, "nonceStr") };
        let (scene, last, sign) = match text(case, "kind") {
            "app" => (Scene::App, prepay_id.to_owned(), "sign"),
            "mini" => (Scene::Mini, format!("prepay_id={prepay_id}"), "paySign"),
            _ => (Scene::Jsapi, format!("prepay_id={prepay_id}"), "paySign"),
        };
        let covered = invoke_text(appid, &stamp, &last);
        same("string to sign", covered.as_str(), text(case, "string_to_sign"))?;
        let mchid = case["params"]["partnerid"].as_str().unwrap_or_default();
        let signer = Signer { mchid, serial_no: "", key: &key };
        let params = invoke_params(scene, &signer, &Credential { appid, prepay_id }, &stamp);
        let params = params.map_err(|error| error.to_string())?;
        same("params", &params, &case["params"])?;
        same("sign by rsa", second_opinion(&pem, covered.as_bytes()).as_str(), text(&params, sign))
    });
}

fn account(file: &VectorFile) -> (TempDir, Gateways) {
    let (dir, keys) = (TempDir::new(), fixtures().join("keys"));
    std::fs::write(dir.0.join("apiv3"), file.text("apiv3_key")).expect("a temporary file");
    let mut toml = format!(
        "[[wechat]]\naccount = \"main\"\nenvironment = \"simulator\"\nscenes = [\"native\"]\n[wechat.simulator]\n\
         base_url = \"http://127.0.0.1:9\"\n\
         mchid = {:?}\nappid = {:?}\nmerchant_serial_no = \"510FBE783019212C010D88F4DD891E848C8F4B35\"\n\
         merchant_private_key_file = {:?}\napiv3_key_file = \"apiv3\"\n",
        file.text("mchid"),
        file.text("appid"),
        keys.join("wx_merchant_private_pkcs8.pem"),
    );
    for (serial, path) in file.json["verify_keys"].as_object().expect("verify_keys") {
        let path = file.place(path.as_str().expect("a path"));
        toml.push_str(&format!("[[wechat.simulator.verify_keys]]\nserial = {serial:?}\nfile = {path:?}\n"));
    }
    let gateways = dir.load(&toml);
    (dir, gateways)
}

#[test]
fn notify() {
    let file = VectorFile::open("wechat/notify.json");
    let (_dir, gateways) = account(&file);
    let name = AccountName::parse("main").expect("a name");
    let gateway = gateways.get(PaymentMethod::Wechat, &name).expect("the account");
    let apiv3_key = ApiV3Key::new(file.text("apiv3_key")).expect("the APIv3 key");
    file.each("cases", |case| {
        let stored = |(name, _): &(String, String)| callback_headers(PaymentMethod::Wechat).contains(&name.as_str());
        let callback = Callback {
            method: PaymentMethod::Wechat,
            account: name.clone(),
            headers: headers(case).into_iter().filter(stored).collect(),
            body: Bytes::copy_from_slice(text(case, "body").as_bytes()),
            received_at: now(&file),
            job_id: None,
        };
        let found = stage(gateway.as_ref(), &callback, now(&file), case, &file.json["order"]);
        same("verdict", found.as_str(), text(case, "expect"))?;
        if found == "clock" {
            let later = stage(gateway.as_ref(), &callback, callback.received_at, case, &file.json["order"]);
            same("verdict at the ingress", later.as_str(), "clock")?;
            same("taken by a worker", gateway.verify(callback, None).is_ok(), true)?;
        }
        let (Some(plaintext), true) = (case["plaintext"].as_str(), matches!(found.as_str(), "accepted" | "business"))
        else {
            return Ok(());
        };
        let envelope: Value = serde_json::from_str(text(case, "body")).map_err(|error| error.to_string())?;
        let resource = envelope["resource"].to_string();
        let sealed: Sealed<'_> = serde_json::from_str(&resource).map_err(|error| error.to_string())?;
        let opened = apiv3_key.open(&sealed).map_err(|error| error.to_string())?;
        same("plaintext", String::from_utf8_lossy(&opened).as_ref(), plaintext)
    });
}

/// The first check that fails, by the name that the vectors use for it.
fn stage(gateway: &dyn Gateway, callback: &Callback, now: OffsetDateTime, case: &Value, order: &Value) -> String {
    let refused = |error: CallbackError| match error {
        CallbackError::Malformed(_) => "headers".to_owned(),
        CallbackError::Stale => "clock".to_owned(),
        CallbackError::UnknownKey { .. } | CallbackError::KeyNotInForce { .. } => "unknown-serial".to_owned(),
        CallbackError::Probe | CallbackError::BadSignature => "signature".to_owned(),
        CallbackError::Unopened(_) => "decrypt".to_owned(),
        CallbackError::Undecodable(text) if text.starts_with("decryption") => "decrypt".to_owned(),
        CallbackError::Undecodable(_) => "format".to_owned(),
    };
    let read = gateway.verify(callback.clone(), Some(now)).and_then(|callback| gateway.read(&callback, now));
    match read {
        Err(error) => refused(error),
        Ok(notification) => match business(notification.get(), text(case, "event_type"), order) {
            Ok(()) => "accepted".to_owned(),
            Err(_) => "business".to_owned(),
        },
    }
}

/// The checks that the worker makes before it accepts that a message is about this order.
fn business(notification: &Notification, event: &str, order: &Value) -> Outcome {
    same("merchant", &notification.merchant, &Merchant::Ours)?;
    same("order_no", notification.order_no.as_str(), text(order, "out_trade_no"))?;
    let state = match event {
        "REFUND.SUCCESS" => RefundState::Succeeded,
        "REFUND.CLOSED" => RefundState::Closed,
        "REFUND.ABNORMAL" => RefundState::Abnormal,
        _ => RefundState::Processing,
    };
    match &notification.fact {
        Fact::Paid { amount, .. } => {
            same("amount", amount.map(|amount| amount.fen()), order["total"].as_i64())?;
            same("event", event, "TRANSACTION.SUCCESS")
        }
        Fact::Refund { report, .. } => {
            same("state", report.state, state)?;
            same("an amount", report.amount.is_some(), true)
        }
        Fact::Nothing => same("no payment", event == "TRANSACTION.SUCCESS", false),
        other => Err(format!("{other:?}")),
    }
}

fn ring(file: &VectorFile) -> KeyRing {
    let mut ring = KeyRing::default();
    for (serial, path) in file.json["verify_keys"].as_object().expect("verify_keys") {
        let pem = file.pem_at(path.as_str().expect("a path"));
        let key = if serial.starts_with(KeyRing::PUBLIC_KEY_ID) {
            VerifyingKey::from_spki_pem(&pem).expect("a public key")
        } else {
            Certificate::from_pem(&pem).expect("a certificate").key
        };
        ring.insert(serial.clone(), key);
    }
    ring
}

#[test]
fn response_verify() {
    let file = VectorFile::open("wechat/response_verify.json");
    let ring = ring(&file);
    file.each("cases", |case| {
        let headers = headers(case);
        let proved = verify(&ring, |name| find(&headers, name), text(case, "body").as_bytes(), Some(now(&file)));
        // Look at the status first: only 2xx is signed, and nothing else proves anything.
        let found = match (case["status"].as_i64(), proved) {
            (Some(200..=299), Ok(())) => "accepted",
            (Some(200..=299), Err(_)) => "rejected",
            _ => "unsigned-error",
        };
        same("verdict", found, text(case, "expect"))
    });
}

#[test]
fn certificates() {
    let file = VectorFile::open("wechat/certificates.json");
    let key = ApiV3Key::new(file.text("apiv3_key")).expect("the APIv3 key");
    let headers = headers(&file.json);
    let (find, body) = (|name: &str| find(&headers, name), file.text("body").as_bytes());
    let none = KeyRing::default();
    let opened = open_list(&key, &none, find, body, now(&file)).expect("certificates");
    assert_eq!(opened.len(), file.json["expect"].as_array().map_or(0, Vec::len));
    file.each("expect", |case| {
        let certificate = opened.iter().find(|certificate| certificate.serial == text(case, "serial_no"));
        let certificate = certificate.ok_or("not among the certificates")?;
        let expected = Certificate::from_pem(&file.pem_at(text(case, "certificate"))).map_err(|e| e.to_string())?;
        same("key", certificate.key.spki(), expected.key.spki())?;
        same("validity", certificate.effective_at < certificate.expires_at, true)
    });
    let other = ApiV3Key::new(&"x".repeat(32)).expect("32 bytes");
    assert!(open_list(&other, &none, find, body, now(&file)).is_err());
    let changed = file.text("body").replace("2031-", "2032-");
    assert!(open_list(&key, &none, find, changed.as_bytes(), now(&file)).is_err());
}

#[test]
fn sensitive_oaep() {
    let file = VectorFile::open("wechat/sensitive_oaep.json");
    let private = rsa::RsaPrivateKey::from_pkcs8_pem(&file.pem("private_key")).expect("the private key");
    let public = VerifyingKey::from_spki_pem(&file.pem("public_key")).expect("the public key");
    let decrypt = |ciphertext: &str| -> Result<String, String> {
        let bytes = STANDARD.decode(ciphertext).map_err(|error| error.to_string())?;
        let plaintext = private.decrypt(Oaep::new::<sha1::Sha1>(), &bytes).map_err(|error| error.to_string())?;
        String::from_utf8(plaintext).map_err(|error| error.to_string())
    };
    file.each("cases", |case| {
        let plaintext = text(case, "plaintext");
        same("plaintext", decrypt(text(case, "ciphertext"))?.as_str(), plaintext)?;
        let ours = encrypt(&public, plaintext).map_err(|error| error.to_string())?;
        same("round trip", decrypt(&ours)?.as_str(), plaintext)
    });
    assert_eq!(encrypt(&public, &"x".repeat(215)), Err(SensitiveError::TooLong { limit: 214 }));
}
