//! Brings a buyer to WeChat Pay.
//!
//! Source: WeChat Pay APIv3, Native (D:4012791877), App (D:4013070347), JSAPI, mini program and H5 pages, "调起支付"
//! pages for the parameters of the buyer's own call, read 2025-11-20.

use domain::{Scene, shorten_bytes, shows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::macros::offset;
use time::{Duration, OffsetDateTime};
use url::form_urlencoded;

use crate::error::GatewayError;
use crate::keys::{KeyError, nonce};
use crate::prepay::{Payment, PrepayOrder, PrepayRequest, may_be_handed_on};
use crate::wechat::client::{Outcome, refusal};
use crate::wechat::sign::{Merchant, Stamp, Target, invoke_text};
use crate::wechat::{Account, Wechat};
use crate::words;

/// The parameters stored on the order. The body is stored as the text that is signed and sent, because a repeat must be
/// identical and a JSON column may reorder members.
#[derive(Serialize, Deserialize)]
struct Params {
    appid: String,
    body: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    redirect_url: Option<String>,
}

pub(super) fn request(account: &Account, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError> {
    if !order.amount.is_positive() {
        return Err(refusal("amount", "an order must cost more than nothing"));
    }
    path(order.scene)?;
    let appid = account.appid(order.scene).ok_or_else(|| refusal("scene", "no appid for this scene"))?;
    let mut body = json!({
        "appid": appid,
        "mchid": account.mchid,
        // The documentation does not say whether the limit counts characters or bytes; bytes is the stricter reading.
        // Leading invisible characters are removed, so that the shortened text shows something.
        "description": shorten_bytes(order.subject.as_str().trim_start_matches(|c| !shows(c)), 127),
        "out_trade_no": order.order_no,
        "time_expire": time_expire(order.expires_at)?,
        "notify_url": order.notify_url,
        "amount": { "total": order.amount.fen(), "currency": "CNY" },
    });
    match order.scene {
        Scene::Jsapi | Scene::Mini => {
            let openid = order.openid.as_deref().filter(|openid| !openid.is_empty());
            let openid = openid.ok_or_else(|| refusal("openid", "this scene needs the buyer's openid"))?;
            body["payer"] = json!({ "openid": openid });
        }
        Scene::H5 => {
            let ip = order.client_ip.ok_or_else(|| refusal("client_ip", "this scene needs the buyer's address"))?;
            body["scene_info"] = json!({ "payer_client_ip": ip.to_string(), "h5_info": { "type": "Wap" } });
        }
        _ => {}
    }
    let redirect_url = order.return_url.clone().filter(|_| order.scene == Scene::H5);
    let params = Params { appid: appid.to_owned(), body: body.to_string(), redirect_url };
    let params = serde_json::to_value(params).map_err(|error| GatewayError::Protocol(error.to_string()))?;
    Ok(PrepayRequest { scene: order.scene, params })
}

/// The app in an order's parameters.
pub(crate) fn app_of(params: &Value) -> Option<&str> {
    params["appid"].as_str()
}

/// Whole seconds in Beijing time, as the examples write it.
fn time_expire(at: OffsetDateTime) -> Result<String, GatewayError> {
    let out_of_range = || GatewayError::Protocol("a time beyond the calendar".to_owned());
    let local = at.checked_to_offset(offset!(+8)).ok_or_else(out_of_range)?;
    let whole = local - Duration::nanoseconds(i64::from(local.nanosecond()));
    whole.format(&Rfc3339).map_err(|error| GatewayError::Protocol(error.to_string()))
}

fn path(scene: Scene) -> Result<&'static str, GatewayError> {
    match scene {
        Scene::Native => Ok("/v3/pay/transactions/native"),
        Scene::Jsapi | Scene::Mini => Ok("/v3/pay/transactions/jsapi"),
        Scene::H5 => Ok("/v3/pay/transactions/h5"),
        Scene::App => Ok("/v3/pay/transactions/app"),
        other => Err(refusal("scene", &format!("WeChat Pay has no scene {other}"))),
    }
}

/// The scheme of the code that WeChat's camera reads. Source: WeChat Pay APIv3, Native (D:4012791877).
const CODE: &str = "weixin://";
/// The domains of the H5 cashier. Source: WeChat Pay APIv3, H5 prepay, `h5_url`.
const CASHIERS: [&str; 2] = ["tenpay.com", "weixin.qq.com"];

fn astray() -> GatewayError {
    GatewayError::Protocol("a prepay answer that leads somewhere else".to_owned())
}

/// One of the three is present, depending on the product.
#[derive(Deserialize)]
struct Prepaid {
    code_url: Option<String>,
    h5_url: Option<String>,
    prepay_id: Option<String>,
}

impl Wechat {
    pub(super) async fn prepay_inner(
        &self,
        request: &PrepayRequest,
        now: OffsetDateTime,
    ) -> Result<Payment, GatewayError> {
        let stored = Params::deserialize(&request.params).map_err(|_| refusal("params", "not made by this adapter"))?;
        let target = Target { method: "POST", path_and_query: path(request.scene)?, body: &stored.body };
        let body = match self.call(&target, now).await? {
            Outcome::Signed(body) => body,
            // The call created nothing and charged no one, so it does not matter that the answer is unsigned.
            Outcome::Failed(failure) => return Err(failure.refused()),
        };
        let prepaid: Prepaid = words::read(&body).map_err(|_| GatewayError::Protocol("a prepay answer".to_owned()))?;
        let absent = |name: &str| GatewayError::Protocol(format!("a prepay answer without {name}"));
        match request.scene {
            Scene::Native => {
                let code_url = prepaid.code_url.ok_or_else(|| absent("code_url"))?;
                if code_url.starts_with(CODE) { Ok(Payment::Qr { code_url }) } else { Err(astray()) }
            }
            Scene::H5 => {
                let url = prepaid.h5_url.ok_or_else(|| absent("h5_url"))?;
                if !may_be_handed_on(&url, &CASHIERS) {
                    return Err(astray());
                }
                Ok(Payment::Redirect { url: with_return(url, stored.redirect_url.as_deref()) })
            }
            scene => {
                let prepay_id = prepaid.prepay_id.ok_or_else(|| absent("prepay_id"))?;
                let stamp = Stamp { timestamp: now.unix_timestamp(), nonce: &nonce()? };
                let credential = Credential { appid: &stored.appid, prepay_id: &prepay_id };
                Ok(Payment::Invoke { params: invoke_params(scene, &self.merchant(), &credential, &stamp)? })
            }
        }
    }
}

fn with_return(url: String, redirect_url: Option<&str>) -> String {
    match redirect_url {
        None => url,
        Some(to) => {
            let to: String = form_urlencoded::byte_serialize(to.as_bytes()).collect();
            format!("{url}&redirect_url={to}")
        }
    }
}

/// The result of a prepay call.
#[derive(Debug, Clone, Copy)]
pub struct Credential<'a> {
    /// The app of the prepay request.
    pub appid: &'a str,
    /// WeChat Pay's id of the prepay.
    pub prepay_id: &'a str,
}

/// The signed parameters with which the buyer's WeChat is called; all values are text. An app signs the bare id, a page
/// and a mini program sign `prepay_id=…`. The mini program signs its appid but does not send it.
///
/// # Errors
/// [`KeyError::Library`].
pub fn invoke_params(
    scene: Scene,
    merchant: &Merchant<'_>,
    credential: &Credential<'_>,
    stamp: &Stamp<'_>,
) -> Result<Value, KeyError> {
    let Credential { appid, prepay_id } = credential;
    let (timestamp, nonce) = (stamp.timestamp.to_string(), stamp.nonce);
    if scene == Scene::App {
        let sign = merchant.key.sign(invoke_text(appid, stamp, prepay_id).as_bytes())?;
        return Ok(json!({
            "appid": appid, "partnerid": merchant.mchid, "prepayid": prepay_id, "package": "Sign=WXPay",
            "noncestr": nonce, "timestamp": timestamp, "sign": sign,
        }));
    }
    let package = format!("prepay_id={prepay_id}");
    let sign = merchant.key.sign(invoke_text(appid, stamp, &package).as_bytes())?;
    let mut params = json!({
        "timeStamp": timestamp, "nonceStr": nonce, "package": package, "signType": "RSA", "paySign": sign,
    });
    if scene == Scene::Jsapi {
        params["appId"] = json!(appid);
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_last_moment_is_sent_in_whole_seconds_of_beijing() {
        assert_eq!(time_expire(datetime!(2026-01-05 16:20:30.987 UTC)).unwrap(), "2026-01-06T00:20:30+08:00");
    }

    #[test]
    fn the_way_back_is_encoded_whole() {
        let url = with_return("https://wx.example/x?a=1".to_owned(), Some("https://shop.example/pay?x=1&y=大"));
        assert_eq!(
            url,
            "https://wx.example/x?a=1&redirect_url=https%3A%2F%2Fshop.example%2Fpay%3Fx%3D1%26y%3D%E5%A4%A7"
        );
    }
}
