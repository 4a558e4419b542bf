//! What an order tells a gateway, and the credential with which the buyer pays.

use domain::{Money, OrderNo, Scene, Subject};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What an order tells a gateway.
#[derive(Debug, Clone)]
pub struct PrepayOrder {
    /// Our number.
    pub order_no: OrderNo,
    /// What the buyer reads.
    pub subject: Subject,
    /// What he pays, more than nothing.
    pub amount: Money,
    /// Where he is.
    pub scene: Scene,
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// The address of the callback route of this account.
    pub notify_url: String,
    /// Where his browser returns to (Alipay page and wap).
    pub return_url: Option<String>,
    /// His id under the app (WeChat JSAPI and mini program).
    pub openid: Option<String>,
    /// His address (WeChat H5).
    pub client_ip: Option<std::net::IpAddr>,
}

/// The parameters of a prepay call as they are kept on the order. They may name the payer: no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepayRequest {
    /// Where the buyer is.
    pub scene: Scene,
    /// The gateway's own parameters, ready to be signed; of an adapter's own making and for no one else to read.
    pub params: serde_json::Value,
}

/// What the frontend does next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Payment {
    /// Send the browser there.
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
        /// As the SDK takes them.
        params: serde_json::Value,
    },
}

/// Whether an address that a gateway names may go to a buyer: HTTPS, on one of the gateway's own domains and no port of its
/// own. What is handed on is opened by browsers, and trusted.
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
