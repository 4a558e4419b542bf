//! Brings a buyer to Alipay's cashier.
//!
//! Source: Alipay OpenAPI, `alipay.trade.page.pay` (028r8t), `wap.pay` (02ivbs), `app.pay` (02e7gq), `precreate`
//! (05osv9), read 2025-11-20.

use domain::Scene;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use url::form_urlencoded;

use crate::alipay::client::{Call, refusal};
use crate::alipay::{Account, Alipay, beijing_text, sign};
use crate::error::GatewayError;
use crate::prepay::{Payment, PrepayOrder, PrepayRequest, may_be_handed_on};

/// The product code of a QR code unless the contract names another one (05osuz).
pub(crate) const QR_PRODUCT_CODE: &str = "QR_CODE_OFFLINE";

/// The parameters stored on the order. `biz_content` is stored as the signed text, because a JSON column may reorder
/// members.
#[derive(Serialize, Deserialize)]
struct Params {
    /// The app with which the order was placed. A later call signs with the app that the account has at that time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    app_id: Option<String>,
    method: String,
    notify_url: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    return_url: Option<String>,
    biz_content: String,
}

pub(super) fn request(account: &Account, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError> {
    if !order.amount.is_positive() {
        return Err(refusal("amount", "an order must cost more than nothing"));
    }
    let (method, product_code) = match order.scene {
        Scene::Page => ("alipay.trade.page.pay", "FAST_INSTANT_TRADE_PAY"),
        Scene::Wap => ("alipay.trade.wap.pay", "QUICK_WAP_WAY"),
        Scene::App => ("alipay.trade.app.pay", "QUICK_MSECURITY_PAY"),
        Scene::Qr => ("alipay.trade.precreate", account.qr_product_code.as_str()),
        other => return Err(refusal("scene", &format!("Alipay has no scene {other}"))),
    };
    let mut biz_content = json!({
        "out_trade_no": order.order_no,
        "total_amount": order.amount.to_string(),
        "subject": order.subject,
        "product_code": product_code,
        // Without it the buyer can pay on a page for 15 days (028r8t).
        "time_expire": beijing_text(order.expires_at)?,
    });
    let browser = matches!(order.scene, Scene::Page | Scene::Wap);
    let return_url = order.return_url.clone().filter(|_| browser);
    if let (Scene::Wap, Some(url)) = (order.scene, &return_url) {
        biz_content["quit_url"] = json!(url);
    }
    let params = Params {
        app_id: Some(account.app_id.clone()),
        method: method.to_owned(),
        notify_url: order.notify_url.clone(),
        return_url,
        biz_content: biz_content.to_string(),
    };
    let params = serde_json::to_value(params).map_err(|error| GatewayError::Protocol(error.to_string()))?;
    Ok(PrepayRequest { scene: order.scene, params })
}

/// The app in an order's parameters; older releases stored none.
pub(crate) fn app_of(params: &serde_json::Value) -> Option<&str> {
    params["app_id"].as_str()
}

/// The domains that a QR code may lead to; the second is the sandbox's. Source: Alipay, `alipay.trade.precreate`,
/// `qr_code`.
const CODES: [&str; 2] = ["alipay.com", "alipaydev.com"];

#[derive(Deserialize)]
struct Precreated {
    out_trade_no: String,
    qr_code: String,
}

#[derive(Deserialize)]
struct BizContent {
    out_trade_no: String,
}

impl Params {
    fn of(request: &PrepayRequest) -> Result<Params, GatewayError> {
        Params::deserialize(&request.params).map_err(|_| refusal("params", "not made by this adapter"))
    }

    fn call(&self) -> Call<'_> {
        Call {
            method: &self.method,
            notify_url: Some(&self.notify_url),
            return_url: self.return_url.as_deref(),
            biz_content: &self.biz_content,
        }
    }
}

/// Page, wap and app credentials need only a signature. Alipay creates the trade when the buyer arrives, and shows
/// errors to the buyer alone.
pub(super) fn here(
    account: &Account,
    request: &PrepayRequest,
    now: OffsetDateTime,
) -> Result<Option<Payment>, GatewayError> {
    if request.scene == Scene::Qr {
        return Ok(None);
    }
    let stored = Params::of(request)?;
    let call = stored.call();
    let mut params = call.public_params(account, now)?;
    params.push(("biz_content", call.biz_content.to_owned()));
    let sign = sign::sign(&account.app_key, params.iter().map(|(n, v)| (*n, v.as_str())))?;
    params.push(("sign", sign));
    if request.scene == Scene::App {
        let order_string = form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
        // The app's SDK uses the text as it is; the official server SDKs also write `%20`.
        let order_string = order_string.replace('+', "%20");
        return Ok(Some(Payment::Invoke { params: json!({ "order_string": order_string }) }));
    }
    let mut url = account.gateway_url.clone();
    url.query_pairs_mut().extend_pairs(&params);
    Ok(Some(Payment::Redirect { url: url.into() }))
}

impl Alipay {
    /// Requests a QR code.
    pub(super) async fn precreate(
        &self,
        request: &PrepayRequest,
        now: OffsetDateTime,
    ) -> Result<Payment, GatewayError> {
        let stored = Params::of(request)?;
        let made: Precreated = self.call(&stored.call(), now).await?.success()?;
        let requested = serde_json::from_str::<BizContent>(&stored.biz_content);
        if !requested.is_ok_and(|requested| requested.out_trade_no == made.out_trade_no) {
            return Err(GatewayError::Protocol("a code for another order".to_owned()));
        }
        if !may_be_handed_on(&made.qr_code, &CODES) {
            return Err(GatewayError::Protocol("a code that leads somewhere else".to_owned()));
        }
        Ok(Payment::Qr { code_url: made.qr_code })
    }
}
