//! `alipay.open.app.alipaycert.download`: the certificate with which Alipay signs now.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::answer::Problem;
use super::params::Call;
use crate::json::text;

pub(crate) fn download(call: &Call) -> Result<Map<String, Value>, Problem> {
    let wanted = text(&call.biz_content, "alipay_cert_sn").ok_or_else(|| missing("alipay_cert_sn"))?;
    let mode = call.merchant.certificates.as_ref().filter(|_| call.certified);
    let mode = mode.ok_or_else(|| Problem::invalid("isv.missing-app-cert-sn", "应用未使用公钥证书模式"))?;
    // Only the certificate that signs now has content. For any other number the content is empty.
    let content = match mode.current() {
        current if current.sn == wanted => STANDARD.encode(current.pem),
        _ => STANDARD.encode(""),
    };
    Ok(Map::from_iter([("alipay_cert_content".to_owned(), json!(content))]))
}

fn missing(name: &str) -> Problem {
    Problem::new("40001", "isv.missing-parameter", format!("缺少{name}参数"))
}
