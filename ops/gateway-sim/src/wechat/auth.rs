//! Authenticates the caller: the `Authorization` header signs the exact target and bytes.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{Problem, signed};
use super::sign::{Authorization, request_message};
use crate::calls::At;
use crate::clock;
use crate::keys::{SimKeys, WechatMerchant};
use crate::ledger::Gateway;
use crate::state::Shared;

/// A clock may differ by this much.
const TOLERANCE_SECONDS: u64 = 300;

/// A call whose signature was verified.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) merchant: Arc<WechatMerchant>,
    pub(crate) uri: Uri,
    wanted_serial: Option<String>,
    body: Bytes,
}

impl FromRequest<Shared> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, sim: &Shared) -> Result<Call, Response> {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        let body = Bytes::from_request(request, sim).await.map_err(IntoResponse::into_response)?;
        let arrived = Arrived { method, uri, headers, body };
        arrived.authenticate(&sim.keys, clock::now().unix_timestamp()).map_err(Problem::into_response)
    }
}

impl Call {
    pub(crate) fn json(&self) -> Result<Value, Problem> {
        serde_json::from_slice(&self.body).map_err(|_| Problem::new(400, "PARAM_ERROR", "请求体不是合法的 JSON"))
    }

    /// The value of `Wechatpay-Serial`.
    pub(crate) fn wanted_serial(&self) -> Option<&str> {
        self.wanted_serial.as_deref()
    }

    /// The gateway, account and order for which the call is counted and its faults are chosen.
    pub(crate) fn at<'a>(&'a self, out_trade_no: Option<&'a str>) -> At<'a> {
        At { gateway: Gateway::Wechat, account: &self.merchant.account, out_trade_no }
    }

    /// Signs a success; an error is unsigned.
    pub(crate) fn answer(&self, result: Result<Option<Value>, Problem>) -> Response {
        match result {
            Ok(body) => signed(&self.merchant, self.wanted_serial.as_deref(), body.as_ref()),
            Err(problem) => problem.into_response(),
        }
    }
}

/// A request as it arrived.
pub(crate) struct Arrived {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Arrived {
    /// Checks headers, clock, merchant, certificate and signature, in this order.
    pub(crate) fn authenticate(self, keys: &SimKeys, now: i64) -> Result<Call, Problem> {
        for name in ["user-agent", "accept"] {
            if self.header(name).is_none() {
                return Err(Problem::new(400, "INVALID_REQUEST", format!("Http头缺少{name}")));
            }
        }
        let at = |field: &str, issue: &str| json!({ "field": field, "issue": issue, "location": "authorization" });
        let Some(authorization) = self.header("authorization").and_then(Authorization::parse) else {
            let message = "Http头Authorization值格式错误，请参考《微信支付商户REST API签名规则》";
            return Err(Problem::sign_error(message, at("authorization", "invalid format")));
        };
        let fresh = |at: &i64| now.abs_diff(*at) <= TOLERANCE_SECONDS;
        if authorization.timestamp.parse::<i64>().ok().filter(fresh).is_none() {
            let message = "Http头Authorization中的timestamp与发起请求的时间不得超过5分钟";
            return Err(Problem::sign_error(message, at("timestamp", "expired")));
        }
        let Some(merchant) = keys.wechat_mchid(authorization.mchid) else {
            return Err(Problem::sign_error("商户号不存在，请检查Authorization中的mchid", at("mchid", "unknown")));
        };
        if authorization.serial_no != merchant.merchant_serial_no {
            let message = "商户证书序列号有误。请使用签名私钥匹配的证书序列号";
            return Err(Problem::sign_error(message, at("serial_no", "not match")));
        }
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let message = request_message(self.method.as_str(), target, &authorization, &self.body);
        if !merchant.merchant_key.accepts(&message, authorization.signature) {
            let mut detail = at("signature", "sign not match");
            detail["sign_information"] = json!({
                "method": self.method.as_str(),
                "url": target,
                "sign_message_length": message.len(),
                "truncated_sign_message": String::from_utf8_lossy(&message).chars().take(300).collect::<String>(),
            });
            return Err(Problem::sign_error("签名错误，请检查后再试", detail));
        }
        let merchant = Arc::clone(merchant);
        let wanted_serial = self.header("wechatpay-serial").map(str::to_owned);
        Ok(Call { merchant, uri: self.uri, wanted_serial, body: self.body })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
    }
}
