//! The addresses of a trade's pages.

use url::form_urlencoded::byte_serialize;

use crate::ledger::{Gateway, Trade};

/// The address of a trade's cashier.
pub(crate) fn cashier_path(trade: &Trade) -> String {
    format!("/cashier/{}/{}?account={}", slug(trade.gateway()), percent(&trade.out_trade_no), percent(&trade.account))
}

/// Whether a browser may be redirected to this address.
pub(crate) fn is_web(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

/// A gateway in an address.
pub(crate) fn slug(gateway: Gateway) -> &'static str {
    match gateway {
        Gateway::Alipay => "alipay",
        Gateway::Wechat => "wechat",
    }
}

/// Text in an address.
pub(crate) fn percent(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}
