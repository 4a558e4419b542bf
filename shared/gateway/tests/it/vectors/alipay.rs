//! The vectors of Alipay.

use bytes::Bytes;
use domain::message::callback::Callback;
use domain::{AccountName, Fact, Merchant, Money, PaymentMethod};
use gateway::alipay::answer::{Answer, AnswerError, SignedText, open_answer};
use gateway::alipay::cert::{cert_sn, root_cert_sn};
use gateway::alipay::form::{EmptyValues, Form};
use gateway::alipay::sign::{string_to_sign, verify_callback};
use gateway::keys::{SigningKey, VerifyingKey};
use gateway::{CallbackError, Gateways};
use serde_json::Value;
use time::OffsetDateTime;

use super::{Outcome, TempDir, VectorFile, fixtures, same, second_opinion, text};

/// The members of a JSON object of texts.
fn pairs(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    object.as_object().expect("an object").iter().map(|(name, value)| (name.as_str(), value.as_str().expect("a text")))
}

/// The bytes of a text in the charset that a request names.
fn encode(charset: &str, text: &str) -> Vec<u8> {
    encoding_rs::Encoding::for_label(charset.as_bytes()).expect("a charset").encode(text).0.into_owned()
}

#[test]
fn request_sign() {
    let file = VectorFile::open("alipay/request_sign.json");
    let pem = file.pem("private_key");
    let (key, public) = (
        SigningKey::from_pem(&pem).expect("the private key"),
        VerifyingKey::from_spki_pem(&file.pem("public_key")).expect("the public key"),
    );
    file.each("cases", |case| {
        let charset = text(case, "charset");
        let covered = string_to_sign(pairs(&case["params"]));
        same("string to sign", covered.as_str(), text(case, "string_to_sign"))?;
        let message = encode(charset, &covered);
        let sign = key.sign(&message).map_err(|error| error.to_string())?;
        same("sign", sign.as_str(), text(case, "sign"))?;
        same("sign by rsa", second_opinion(&pem, &message), sign.clone())?;
        same("verified", public.verify(&message, &sign), true)?;

        // What the SDK sent decodes to the same parameters and the same signature.
        let wire = text(case, "wire");
        let query =
            wire.split_once('?').filter(|(before, _)| before.starts_with("http")).map_or(wire, |(_, query)| query);
        let form = Form::parse(query.as_bytes()).map_err(|error| error.to_string())?;
        for (name, value) in form.fields() {
            let name = std::str::from_utf8(name).map_err(|error| error.to_string())?;
            let expected = if name == "sign" { Some(sign.as_str()) } else { case["params"][name].as_str() };
            same(name, Some(value), expected.map(|value| encode(charset, value)).as_deref())?;
        }
        Ok(())
    });
}

fn account(file: &VectorFile) -> (TempDir, Gateways) {
    let (dir, keys) = (TempDir::new(), fixtures().join("keys"));
    let toml = format!(
        "[[alipay]]\naccount = \"main\"\nenvironment = \"simulator\"\nscenes = [\"page\"]\n[alipay.simulator]\n\
         gateway_url = \"http://127.0.0.1:9/gateway.do\"\n\
         app_id = {:?}\nseller_id = {:?}\nalipay_public_key_file = {:?}\napp_private_key_file = {:?}\n",
        file.text("app_id"),
        file.text("seller_id"),
        file.place(file.text("alipay_public_key")),
        keys.join("alipay_app_private_pkcs8.pem"),
    );
    let gateways = dir.load(&toml);
    (dir, gateways)
}

#[test]
fn notify_verify() {
    let file = VectorFile::open("alipay/notify_verify.json");
    let (_dir, gateways) = account(&file);
    let account = AccountName::parse("main").expect("a name");
    let gateway = gateways.get(PaymentMethod::Alipay, &account).expect("the account");
    let key = VerifyingKey::from_spki_pem(&file.pem("alipay_public_key")).expect("the public key");
    file.each("cases", |case| {
        let body = text(case, "body").as_bytes();
        let verified = Form::parse(body).and_then(|form| verify_callback(&key, &form));
        // "either" marks a case where the official SDKs differ. We accept both ways of signing empty values.
        let valid = case["expect"] != Value::Bool(false);
        same("verified", verified.clone().map_err(|error| error.to_string()).is_ok(), valid)?;
        let callback = Callback {
            method: PaymentMethod::Alipay,
            account: account.clone(),
            headers: Vec::new(),
            body: Bytes::copy_from_slice(body),
            received_at: OffsetDateTime::UNIX_EPOCH,
            job_id: None,
        };
        let through_gateway = gateway.verify(callback, None);
        same("verified by the account", through_gateway.as_ref().err(), verified.as_ref().err())?;
        let Ok(form) = Form::parse(body) else { return same("valid", valid, false) };
        let charset = case["decoded"]["charset"].as_str().unwrap_or("utf-8");
        for (name, value) in pairs(&case["decoded"]) {
            let found = form.fields().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value);
            same(name, found, Some(encode(charset, value).as_slice()))?;
        }
        let Ok(callback) = through_gateway else { return Ok(()) };
        if let Some(covered) = case["string_to_verify"].as_str() {
            same("string to verify", form.string_to_verify(EmptyValues::Kept), covered.into())?;
        }
        let notification = gateway
            .read(&callback, callback.get().received_at)
            .map_err(|error: CallbackError| error.to_string())?
            .into_inner();
        let named = (case["decoded"]["app_id"].as_str(), case["decoded"]["seller_id"].as_str());
        let ours = named == (Some(file.text("app_id")), Some(file.text("seller_id")));
        same("merchant", notification.merchant == Merchant::Ours, ours)?;
        same("order_no", notification.order_no.as_str(), text(&case["decoded"], "out_trade_no"))?;
        same("notice_id", notification.notice_id.as_str(), text(&case["decoded"], "notify_id"))?;
        same_fact(&notification.fact, &case["decoded"])
    });
}

fn same_fact(fact: &Fact, fields: &Value) -> Outcome {
    let status = text(fields, "trade_status");
    let returned = fields["refund_fee"].as_str().is_some_and(|fee| Money::from_yuan(fee).is_ok_and(Money::is_positive));
    match fact {
        Fact::Paid { trade_no, amount, .. } => {
            same("paid", (matches!(status, "TRADE_SUCCESS" | "TRADE_FINISHED"), returned), (true, false))?;
            same("trade_no", trade_no.as_str(), text(fields, "trade_no"))?;
            same("amount", *amount, Money::from_yuan(text(fields, "total_amount")).ok())
        }
        Fact::Refund { refund_no, .. } => {
            same("returned", returned, true)?;
            same("refund_no", refund_no.as_str(), text(fields, "out_biz_no"))
        }
        Fact::PaidAndReturned(_) => same("out_biz_no", &fields["out_biz_no"], &Value::Null),
        Fact::ClosedUnpaid => same("closed", (status, returned), ("TRADE_CLOSED", false)),
        Fact::Nothing => {
            let tells = matches!(status, "TRADE_SUCCESS" | "TRADE_FINISHED" | "TRADE_CLOSED");
            same("a state that tells something", tells, false)
        }
    }
}

#[test]
fn response_verify() {
    let file = VectorFile::open("alipay/response_verify.json");
    let key = VerifyingKey::from_spki_pem(&file.pem("alipay_public_key")).expect("the public key");
    file.each("cases", |case| {
        let answer = open_answer(&key, text(case, "method"), text(case, "raw").as_bytes());
        let found = match &answer {
            Ok(Answer::Signed { node, over }) => {
                let node = std::str::from_utf8(node).map_err(|error| error.to_string())?;
                same("signed text", node, text(case, "signed_substring")).or_else(|difference| match over {
                    SignedText::AsReceived => Err(difference),
                    SignedText::SlashesUnescaped => {
                        same("signed text", node.replace("\\/", "/").as_str(), text(case, "signed_substring"))
                    }
                })?;
                match over {
                    SignedText::AsReceived => "verified",
                    SignedText::SlashesUnescaped => "verified-with-fallback",
                }
            }
            Ok(Answer::UnsignedFailure(_)) => "unsigned-error",
            Err(AnswerError::Shape(_) | AnswerError::Unsigned | AnswerError::BadSignature) => "rejected",
        };
        same("verdict", found, text(case, "expect"))
    });
}

#[test]
fn certificate_numbers() {
    let file = VectorFile::open("alipay/cert_sn.json");
    let number = |case: &Value| cert_sn(&file.pem_at(text(case, "file"))).map_err(|error| error.to_string());
    file.each("certificates", |case| same("number", number(case)?.as_str(), text(case, "sn")));
    file.each("root_bundles", |case| {
        let bundle = root_cert_sn(&file.pem_at(text(case, "file"))).map_err(|error| error.to_string())?;
        same("number", bundle.as_str(), text(case, "sn"))
    });
    let jdk = "JDK X500Principal.getName() + MD5 (the calls of the official Java SDK)";
    file.each("divergent", |case| same("number", number(case)?.as_str(), text(case, jdk)));
}
