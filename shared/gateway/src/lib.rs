//! Alipay and WeChat Pay behind one trait. The field names of a provider stay inside its folder.
//!
//! Data from a gateway is trusted only as [`Verified`]. Its constructor is private to this module tree, and each place
//! that calls it has just checked a signature.

mod accounts;
mod adapter;
pub mod alipay;
mod error;
pub mod keys;
mod limits;
mod notification;
mod prepay;
mod query;
mod reach;
mod refund;
#[cfg(test)]
mod testing;
mod times;
mod transport;
mod verified;
pub mod wechat;
mod words;

use domain::PaymentMethod;
use domain::message::callback::Callback;

pub use accounts::{AccountFault, Gateways, NoAccount};
pub use adapter::Gateway;
pub use error::{CallbackError, GatewayError};
pub use keys::{Ending, KeyNews, KeyStatus, WARN_DAYS, endings};
pub use limits::{Limits, limits};
pub use prepay::{Payment, PrepayOrder, PrepayRequest};
pub use query::{CloseOutcome, Trade, TradeAnswer};
pub use reach::Reach;
pub use refund::{RefundOrder, RefundTarget};
pub use verified::Verified;

/// The names, in lower case, of the headers that a callback of this gateway needs in addition to its body.
pub const fn callback_headers(method: PaymentMethod) -> &'static [&'static str] {
    match method {
        PaymentMethod::Alipay => alipay::CALLBACK_HEADERS,
        PaymentMethod::Wechat => wechat::CALLBACK_HEADERS,
    }
}

/// The app with which an order was placed, by the parameters stored on the order. `None`: they name no app.
pub fn app_of_order(method: PaymentMethod, prepay: &serde_json::Value) -> Option<&str> {
    let params = &prepay["params"];
    match method {
        PaymentMethod::Alipay => alipay::app_of(params),
        PaymentMethod::Wechat => wechat::app_of(params),
    }
}

/// Names a callback by the bytes that its signature covers and by the signature. The name stays the same however the
/// form is encoded, so one signed message can open at most one case.
pub fn essence(callback: &Callback) -> String {
    let covered = match callback.method {
        PaymentMethod::Alipay => alipay::form::essence(&callback.body),
        PaymentMethod::Wechat => wechat::sign::essence(|name| callback.header(name), &callback.body),
    };
    domain::message::callback::digest(&covered)
}
