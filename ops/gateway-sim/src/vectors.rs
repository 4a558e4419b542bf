//! The protocol vectors: texts and signatures of the official SDKs, compared with what this crate computes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::{Map, Value};
use url::Url;

use crate::alipay::params::Params;
use crate::alipay::sign::{Pair, notice_content, request_content};
use crate::crypto::{Signer, Verifier};
use crate::keys::{Platform, SimKeys, WechatMerchant};
use crate::wechat::auth::Arrived;
use crate::wechat::sign::{Authorization, answer_message, invoke_message, request_message};

fn dir() -> PathBuf {
    std::env::var_os("VECTORS_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/gateway/tests/fixtures/vectors"),
        PathBuf::from,
    )
}

fn read(name: &str) -> String {
    let path = dir().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap()
}

fn cases(file: &Value) -> &[Value] {
    file["cases"].as_array().unwrap()
}

fn str<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn pairs(members: &Map<String, Value>) -> Vec<Pair> {
    members.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

#[test]
fn alipay_requests_of_the_sdks_are_read_as_they_were_signed() {
    let file = json("alipay/request_sign.json");
    let key = Verifier::from_pem(&read("keys/alipay_app_public.pem")).unwrap();
    for case in cases(&file) {
        let content = request_content(&pairs(case["params"].as_object().unwrap()));
        assert_eq!(content, str(case, "string_to_sign"), "{}", case["id"]);
        // The one case in GBK is signed over other bytes; the simulator refuses that charset.
        if str(case, "charset") == "utf-8" {
            assert!(key.accepts(content.as_bytes(), str(case, "sign")), "{}", case["id"]);
        }
    }
}

#[test]
fn alipay_notifications_are_signed_over_the_text_that_is_verified() {
    let file = json("alipay/notify_verify.json");
    let key = Signer::from_pem(&read("keys/alipay_platform_private_pkcs8.pem")).unwrap();
    let mut seen = 0;
    for case in cases(&file).iter().filter(|case| case["expect"] == true) {
        let decoded = pairs(case["decoded"].as_object().unwrap());
        let content = notice_content(&decoded);
        if let Some(expected) = case["string_to_verify"].as_str() {
            assert_eq!(content, expected, "{}", case["id"]);
        }
        let sign = decoded.iter().find(|(name, _)| name == "sign").unwrap();
        assert_eq!(key.sign(content.as_bytes()), sign.1, "{}", case["id"]);
        seen += 1;
    }
    assert!(seen > 5);
}

#[test]
fn wechat_requests_are_verified_and_notifications_signed_as_the_sdks_do() {
    let file = json("wechat/request_authorization.json");
    let key = Verifier::from_pem(&read("keys/wx_merchant_public.pem")).unwrap();
    for case in cases(&file) {
        let header = str(case, "authorization_example");
        let authorization = Authorization::parse(header).unwrap_or_else(|| panic!("{header}"));
        let message =
            request_message(str(case, "method"), str(case, "url"), &authorization, str(case, "body").as_bytes());
        assert_eq!(String::from_utf8_lossy(&message), str(case, "string_to_sign"), "{}", case["id"]);
        assert!(key.accepts(&message, authorization.signature), "{}", case["id"]);
    }
    let file = json("wechat/notify.json");
    let key = Signer::from_pem(&read("keys/wx_pubkey_private_pkcs8.pem")).unwrap();
    let of_key = |case: &&Value| {
        case["expect"] == "accepted" && str(&case["headers"], "Wechatpay-Serial").starts_with("PUB_KEY_ID_")
    };
    let mut seen = 0;
    for case in cases(&file).iter().filter(|case| case["headers"]["Wechatpay-Serial"].is_string()).filter(of_key) {
        let header = |name: &str| str(&case["headers"], name);
        let body = str(case, "body").as_bytes();
        let message = answer_message(header("Wechatpay-Timestamp"), header("Wechatpay-Nonce"), body);
        assert_eq!(key.sign(&message), header("Wechatpay-Signature"), "{}", case["id"]);
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn wechat_invoke_parameters_are_read_as_they_were_signed() {
    for case in cases(&json("wechat/pay_sign.json")) {
        let first =
            |names: [&str; 2]| names.iter().find_map(|name| case[*name].as_str()).unwrap_or_default().to_owned();
        let prepay_id = str(case, "prepay_id");
        let last = if str(case, "kind") == "app" { prepay_id.to_owned() } else { format!("prepay_id={prepay_id}") };
        let message = invoke_message(
            &first(["appId", "appid"]),
            &first(["timeStamp", "timestamp"]),
            &first(["nonceStr", "noncestr"]),
            &last,
        );
        assert_eq!(message, str(case, "string_to_sign"), "{}", case["id"]);
    }
}

#[test]
fn captured_requests_of_real_clients_pass_the_verifiers() {
    let file = json("captured_requests.json");
    let alipay = Verifier::from_pem(&read("keys/alipay_app_public.pem")).unwrap();
    let keys = SimKeys { alipay: vec![], wechat: vec![Arc::new(captured_merchant())] };
    let mut seen = [0, 0];
    for request in file["requests"].as_array().unwrap() {
        let (url, body) = (str(request, "url"), str(request, "body"));
        if url.starts_with("/v3/") {
            let mut headers = HeaderMap::new();
            for (name, value) in request["headers"].as_object().unwrap() {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.insert(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
            }
            let at: i64 =
                Authorization::parse(str(&request["headers"], "Authorization")).unwrap().timestamp.parse().unwrap();
            for (shift, passes) in [(0, true), (300, true), (-300, true), (301, false), (-301, false)] {
                let arrived = Arrived {
                    method: str(request, "method").parse().unwrap(),
                    uri: url.parse::<Uri>().unwrap(),
                    headers: headers.clone(),
                    body: Bytes::from(body.to_owned()),
                };
                assert_eq!(arrived.authenticate(&keys, at + shift).is_ok(), passes, "{url} {shift}");
            }
            seen[1] += 1;
        } else {
            let url = Url::options().base_url(Some(&Url::parse("http://sim").unwrap())).parse(url).unwrap();
            let params = Params::read(url.query().unwrap(), body.as_bytes());
            let content = request_content(params.all());
            assert!(alipay.accepts(content.as_bytes(), params.get("sign").unwrap()), "{}", request["client"]);
            seen[0] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 1), "{seen:?}");
}

/// The merchant of the captured requests. Only its own key matters; the other keys are arbitrary.
fn captured_merchant() -> WechatMerchant {
    let any = || Signer::from_pem(&read("keys/wx_other_private_pkcs8.pem")).unwrap();
    WechatMerchant {
        account: "captured".to_owned(),
        mchid: "1900000109".to_owned(),
        appids: vec!["wxd678efh567hg6787".to_owned()],
        bound_since: std::sync::Mutex::default(),
        merchant_serial_no: "510FBE783019212C010D88F4DD891E848C8F4B35".to_owned(),
        merchant_key: Verifier::from_pem(&read("keys/wx_merchant_public.pem")).unwrap(),
        apiv3_key: *b"dev0123456789ABCDEFabcdef-_TEST!",
        signing_keys: vec![Arc::new(("PUB_KEY_ID_0".to_owned(), any()))],
        platform: Platform::default(),
        stranger: Arc::new(any()),
    }
}
