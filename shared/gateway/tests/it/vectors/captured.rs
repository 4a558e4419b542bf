//! Complete requests of real SDK clients: they sign the same text as we do.

use std::collections::HashMap;

use gateway::alipay::sign::string_to_sign;
use gateway::keys::{Certificate, VerifyingKey};
use gateway::wechat::sign::{Stamp, Target, request_text};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{Outcome, VectorFile, same, text};

#[test]
fn captured_requests() {
    let file = VectorFile::open("captured_requests.json");
    let alipay = VerifyingKey::from_spki_pem(&file.pem("alipay_app_public_key")).expect("the public key");
    let wechat = Certificate::from_pem(&file.pem("wechat_merchant_certificate")).expect("the certificate");
    file.each("requests", |request| {
        let base = Url::parse("http://gateway.example").expect("a URL");
        let url = base.join(text(request, "url")).map_err(|error| error.to_string())?;
        if url.path() == "/gateway.do" {
            return signed_for_alipay(&alipay, &url, text(request, "body"));
        }
        signed_for_wechat(&wechat, &url, request)
    });
}

/// Checks the signature over the parameters of URL and body together.
fn signed_for_alipay(key: &VerifyingKey, url: &Url, body: &str) -> Outcome {
    let params: Vec<_> = url.query_pairs().chain(form_urlencoded::parse(body.as_bytes())).collect();
    let sign = params.iter().find(|(name, _)| name == "sign").ok_or("no sign")?;
    let covered = string_to_sign(params.iter().map(|(name, value)| (name.as_ref(), value.as_ref())));
    same("verified", key.verify(covered.as_bytes(), &sign.1), true)
}

fn signed_for_wechat(certificate: &Certificate, url: &Url, request: &Value) -> Outcome {
    let headers = request["headers"].as_object().ok_or("no headers")?;
    let (_, authorization) =
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization")).ok_or("no Authorization")?;
    let fields = authorization_fields(authorization.as_str().unwrap_or_default())?;
    same("serial", fields["serial_no"], certificate.serial.as_str())?;
    let path_and_query = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let target = Target { method: text(request, "method"), path_and_query, body: text(request, "body") };
    let timestamp = fields["timestamp"].parse().map_err(|_| "timestamp")?;
    let covered = request_text(&target, &Stamp { timestamp, nonce: fields["nonce_str"] });
    same("verified", certificate.key.verify(covered.as_bytes(), fields["signature"]), true)
}

/// The five fields of an `Authorization` header, in any order.
pub(super) fn authorization_fields(header: &str) -> Result<HashMap<&str, &str>, String> {
    let fields = header.strip_prefix("WECHATPAY2-SHA256-RSA2048 ").ok_or("another scheme")?;
    let field = |pair| -> Option<(&str, &str)> {
        let (name, value): (&str, &str) = str::split_once(pair, '=')?;
        Some((name, value.strip_prefix('"')?.strip_suffix('"')?))
    };
    let fields: Option<HashMap<_, _>> = fields.split(',').map(field).collect();
    let fields = fields.ok_or("not name=\"value\"")?;
    let mut names: Vec<_> = fields.keys().copied().collect();
    names.sort_unstable();
    same("names", names, vec!["mchid", "nonce_str", "serial_no", "signature", "timestamp"])?;
    Ok(fields)
}
