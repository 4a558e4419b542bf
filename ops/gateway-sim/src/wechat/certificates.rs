//! `GET /v3/certificates`: the platform certificates, each encrypted with the APIv3 key.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::Problem;
use super::auth::Call;
use crate::calls::CallKind;
use crate::clock;
use crate::crypto::{ALPHANUMERIC, random_text, seal};
use crate::keys::{PlatformCertificate, WechatMerchant};
use crate::state::Shared;

const AAD: &str = "certificate";

/// A merchant without platform certificates has only WeChat Pay's public key; the answer says so.
pub(crate) async fn list(State(sim): State<Shared>, call: Call) -> Response {
    let certificates = call.merchant.platform.certificates();
    sim.calls.count(call.at(None), CallKind::Certificates);
    let answer = match certificates.is_empty() {
        true => {
            Err(Problem::new(404, "RESOURCE_NOT_EXISTS", "无可用的平台证书，请在商户平台-API安全申请使用微信支付公钥"))
        }
        false => {
            let list: Vec<Value> = certificates.iter().map(|certificate| entry(&call.merchant, certificate)).collect();
            Ok(Some(json!({ "data": list })))
        }
    };
    call.answer(answer)
}

fn entry(merchant: &WechatMerchant, certificate: &PlatformCertificate) -> Value {
    let nonce = random_text(12, ALPHANUMERIC);
    let mut bytes = [0; 12];
    bytes.copy_from_slice(nonce.as_bytes());
    let ciphertext = seal(&merchant.apiv3_key, &bytes, AAD.as_bytes(), certificate.pem.as_bytes());
    json!({
        "serial_no": certificate.key.0,
        "effective_time": clock::wechat(certificate.from),
        "expire_time": clock::wechat(certificate.until),
        "encrypt_certificate": {
            "algorithm": "AEAD_AES_256_GCM", "nonce": nonce, "associated_data": AAD, "ciphertext": ciphertext,
        },
    })
}
