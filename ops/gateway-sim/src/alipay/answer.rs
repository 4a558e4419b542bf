//! Answers of `gateway.do`: the node, its signature, and the error bodies.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use encoding_rs::GBK;
use serde_json::{Map, Value, json};

use crate::keys::AlipayMerchant;
use crate::odd::{Charset, Refuse};

/// A refusal in the form of Alipay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) sub_code: String,
    pub(crate) sub_msg: String,
}

impl Problem {
    pub(crate) fn new(code: impl Into<String>, sub_code: impl Into<String>, sub_msg: impl Into<String>) -> Problem {
        Problem { code: code.into(), sub_code: sub_code.into(), sub_msg: sub_msg.into() }
    }

    /// The refusal that the faults configure.
    pub(crate) fn chosen(refuse: &Refuse) -> Problem {
        Problem::new(&refuse.code, &refuse.sub_code, &refuse.message)
    }

    pub(crate) fn invalid(sub_code: &str, sub_msg: &str) -> Problem {
        Problem::new("40002", sub_code, sub_msg)
    }

    pub(crate) fn business(sub_code: &str, sub_msg: impl Into<String>) -> Problem {
        Problem::new("40004", format!("ACQ.{sub_code}"), sub_msg)
    }

    fn node(&self) -> Value {
        let msg = match self.code.as_str() {
            "20000" => "Service Currently Unavailable",
            "40001" => "Missing Required Arguments",
            "40002" => "Invalid Arguments",
            "40005" => "Call Limited",
            "40006" => "Insufficient Permissions",
            _ => "Business Failed",
        };
        json!({ "code": self.code, "msg": msg, "sub_code": self.sub_code, "sub_msg": self.sub_msg })
    }
}

/// The result of one call. The merchant is known only once its signature was verified, and only then is the answer
/// signed.
pub(crate) struct Outcome<'a> {
    pub(crate) method: &'a str,
    pub(crate) merchant: Option<&'a AlipayMerchant>,
    /// Whether the answer names the certificate that signs it.
    pub(crate) certified: bool,
    pub(crate) charset: Charset,
    pub(crate) result: Result<Map<String, Value>, Problem>,
}

impl Outcome<'_> {
    /// Like the real gateway, it answers HTTP 200 for failures too, and sends JSON with an HTML content type.
    pub(crate) fn into_response(self) -> Response {
        let node = match self.result {
            Ok(fields) => {
                let mut node = json!({ "code": "10000", "msg": "Success" });
                if let Value::Object(members) = &mut node {
                    members.extend(fields);
                }
                node
            }
            Err(problem) => problem.node(),
        };
        let node = written(&node, self.charset);
        let name = node_name(self.method);
        let end = match self.merchant {
            Some(merchant) => {
                let sign = merchant.sign(&node);
                let mode = merchant.certificates.as_ref().filter(|_| self.certified);
                let sn = mode.map(|mode| format!(r#""alipay_cert_sn":"{}","#, mode.current().sn)).unwrap_or_default();
                format!(r#",{sn}"sign":"{sign}"}}"#)
            }
            None => "}".to_owned(),
        };
        let body = [format!(r#"{{"{name}":"#).as_bytes(), &node, end.as_bytes()].concat();
        let content_type = match self.charset {
            Charset::Gbk => "text/html;charset=GBK",
            Charset::GbkUnnamed => "text/html",
            Charset::Utf8 | Charset::Garbage => "text/html;charset=utf-8",
        };
        (StatusCode::OK, [(CONTENT_TYPE, content_type)], body).into_response()
    }
}

/// The bytes of a node; the signature covers exactly these bytes.
fn written(node: &Value, charset: Charset) -> Vec<u8> {
    let text = node.to_string();
    match charset {
        Charset::Utf8 => text.into_bytes(),
        Charset::Gbk | Charset::GbkUnnamed => GBK.encode(&text).0.into_owned(),
        Charset::Garbage => {
            match node["sub_msg"].as_str().filter(|words| !words.is_empty()).and_then(|words| text.split_once(words)) {
                // Neither UTF-8 nor GBK, and without a quote.
                Some((head, tail)) => [head.as_bytes(), b"\xff\xfe\x80\xc3", tail.as_bytes()].concat(),
                None => text.into_bytes(),
            }
        }
    }
}

/// `alipay.trade.query` → `alipay_trade_query_response`; an invalid method name gets `error_response`.
fn node_name(method: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'.';
    if method.is_empty() || method.len() > 128 || !method.bytes().all(plain) {
        return "error_response".to_owned();
    }
    format!("{}_response", method.replace('.', "_"))
}
