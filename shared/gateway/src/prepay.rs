//! The order data that we send to a gateway, and the credential with which the buyer pays.

use domain::{Money, OrderNo, Scene, Subject};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The order data that we send to a gateway.
#[derive(Debug, Clone)]
pub struct PrepayOrder {
    /// Our number.
    pub order_no: OrderNo,
    /// The description that the buyer reads.
    pub subject: Subject,
    /// The amount to pay, more than zero.
    pub amount: Money,
    /// Where the buyer pays (browser, app, QR code and so on).
    pub scene: Scene,
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// The address of the callback route of this account.
    pub notify_url: String,
    /// Where the buyer's browser returns to (Alipay page and wap).
    pub return_url: Option<String>,
    /// The buyer's id under the app (WeChat JSAPI and mini program).
    pub openid: Option<String>,
    /// The buyer's IP address (WeChat H5).
    pub client_ip: Option<std::net::IpAddr>,
}

/// The parameters of a prepay call as stored on the order. They may name the payer, so there is no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepayRequest {
    /// Where the buyer pays.
    pub scene: Scene,
    /// The gateway's own parameters, ready to be signed. Only the adapter that made them reads them.
    pub params: serde_json::Value,
}

/// What the frontend does next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Payment {
    /// Send the browser to this address.
    Redirect {
        /// The cashier's address.
        url: String,
    },
    /// Show a QR code of this text.
    Qr {
        /// The text to encode.
        code_url: String,
    },
    /// Hand these parameters to the gateway's SDK or script.
    Invoke {
        /// In the form that the SDK expects.
        params: serde_json::Value,
    },
}

/// Whether we may pass an address from the gateway to a buyer. It must be HTTPS, on one of the gateway's own domains
/// and without an explicit port, because browsers open what we pass on, and buyers trust it.
pub(crate) fn may_be_handed_on(address: &str, domains: &[&str]) -> bool {
    let Ok(url) = url::Url::parse(address) else { return false };
    let bare = url.scheme() == "https" && url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let of =
        |host: &str, domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    bare && url.domain().is_some_and(|host| domains.iter().any(|domain| of(host, domain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_gateways_own_addresses_are_handed_on() {
        for (address, may) in [
            ("https://wx.tenpay.com/cgi-bin/mmpayweb-bin/checkmweb?prepay_id=wx1", true),
            ("https://tenpay.com/", true),
            ("http://wx.tenpay.com/", false),
            ("https://wx.tenpay.com.evil.example/", false),
            ("https://eviltenpay.com/", false),
            ("https://wx.tenpay.com@evil.example/", false),
            ("https://wx.tenpay.com:8443/", false),
            ("https://192.0.2.1/", false),
            ("javascript:alert(1)//wx.tenpay.com", false),
            ("//wx.tenpay.com/", false),
            ("", false),
        ] {
            assert_eq!(may_be_handed_on(address, &["tenpay.com"]), may, "{address}");
        }
    }
}
