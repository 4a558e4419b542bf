//! Alipay and WeChat Pay behind one trait. A provider's own field names stop in its folder.
//!
//! What a gateway says is believed only as [`Verified`]: its constructor is private to this module tree, and each place
//! that calls it has just checked a signature.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::domain::{AccountName, Fact, Merchant, Money, Notification, OrderNo, PaymentMethod, Scene, Source, Subject};
use crate::job::Callback;

mod accounts;
pub mod alipay;
mod breaker;
mod error;
mod http;
pub mod keys;
mod reach;
mod refund;
mod ring;
mod road;
mod tend;
#[cfg(test)]
mod testing;
mod times;
pub mod wechat;
mod words;

pub use accounts::{AccountFault, Gateways, NoAccount};
pub use error::GatewayError;
pub use reach::Reach;
pub use refund::{RefundOrder, RefundState, RefundTarget};
pub use tend::{Ending, KeyNews, KeyStatus, WARN_DAYS, endings};

/// A value whose origin was proved by a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// For adapters alone, right after the check.
    fn new(value: T) -> Verified<T> {
        Verified(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The value, for good.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Verified<Trade> {
    /// What an answer about an order tells, as a callback would have told it. The proof goes with it: the answer was
    /// signed, and it is about an order of this account, because the account asked for it by its number.
    pub fn told_of(&self, gateway: &dyn Gateway, order_no: &OrderNo, notice_id: String) -> Verified<Notification> {
        Verified(Notification {
            method: gateway.method(),
            account: gateway.account().clone(),
            notice_id,
            source: Source::Query,
            merchant: self.0.merchant.clone(),
            order_no: order_no.to_string(),
            fact: self.0.fact.clone(),
            doubt: self.0.doubt.clone(),
        })
    }
}

/// One merchant account at one gateway.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Which gateway.
    fn method(&self) -> PaymentMethod;

    /// Which account.
    fn account(&self) -> &AccountName;

    /// The parameters of the prepay call, fixed once for the order's life: a repeat sends the same.
    ///
    /// # Errors
    /// [`GatewayError::Refused`] when the order lacks what the scene needs (a payer's openid, a client address).
    fn prepay_request(&self, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError>;

    /// The credential with which the buyer pays, where it needs no call: Alipay's page, wap and app are texts that we
    /// sign. `None`: it must be asked for.
    ///
    /// # Errors
    /// As [`Gateway::prepay`].
    fn prepay_here(&self, _request: &PrepayRequest, _now: OffsetDateTime) -> Result<Option<Payment>, GatewayError> {
        Ok(None)
    }

    /// The credential with which the buyer pays, asked for where [`Gateway::prepay_here`] has none. Signs with a fresh
    /// timestamp and nonce.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn prepay(&self, request: &PrepayRequest, now: OffsetDateTime) -> Result<Payment, GatewayError>;

    /// For how long the buyer can pay with a credential that [`Gateway::prepay`] has brought. `None`: it needs no keeping,
    /// since we sign it ourselves. Two hours is what both gateways say of theirs.
    fn credential_lives(&self, _scene: Scene) -> Option<time::Duration> {
        Some(time::Duration::hours(2))
    }

    /// Asks what became of an order.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn query(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<TradeAnswer, GatewayError>;

    /// Closes an unpaid order. A payment that was faster is no error but [`CloseOutcome::NotClosed`]: query again.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn close(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<CloseOutcome, GatewayError>;

    /// Asks for a refund. What is sent depends on `refund` alone, so that a repeat is the same request.
    ///
    /// # Errors
    /// See [`GatewayError`]. After [`GatewayError::Unknown`] and [`GatewayError::Protocol`] the money may have moved, and
    /// a refusal need not be about this attempt: [`Gateway::query_refund`] before any repeat, and before giving up.
    async fn refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundState, GatewayError>;

    /// Asks how a refund went. Every state but [`RefundState::Absent`] is the gateway's signed word. WeChat Pay says
    /// absent in a 404 that nobody signed; it permits no more than the same request under the same number, which
    /// refunds once however often it comes. That is why this is not a [`Verified`].
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn query_refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundState, GatewayError>;

    /// Sends a refund that could not be delivered another way. `gateway_refund_no` is the number that the gateway gave
    /// it. WeChat Pay alone; at Alipay no refund gets stuck.
    ///
    /// # Errors
    /// See [`GatewayError`]; as after [`Gateway::refund`] it may have happened.
    async fn redirect_refund(
        &self,
        refund: &RefundOrder,
        gateway_refund_no: &str,
        to: &RefundTarget,
        now: OffsetDateTime,
    ) -> Result<RefundState, GatewayError>;

    /// Checks that the gateway signed these bytes. With `now` the clock window counts too: that is the ingress's; a
    /// worker passes `None`, since a backlog must not make a genuine callback stale.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn verify(&self, callback: Callback, now: Option<OffsetDateTime>) -> Result<Verified<Callback>, CallbackError>;

    /// Whether an authentic message is one to store and say success to. A gateway repeats what is refused here.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn takes(&self, _callback: &Verified<Callback>) -> Result<(), CallbackError> {
        Ok(())
    }

    /// [`Gateway::verify`] and [`Gateway::takes`] for a callback that arrives: a key that is not known is asked for once, and
    /// what was verified is counted by the key that signed it, so that a change of keys can be watched.
    ///
    /// # Errors
    /// See [`CallbackError`].
    async fn verify_arriving(
        &self,
        callback: Callback,
        now: OffsetDateTime,
    ) -> Result<Verified<Callback>, CallbackError> {
        let again = callback.clone();
        let mut verified = self.verify(callback, Some(now));
        if let Err(error) = &verified
            && let Some(serial) = error.wanted_key()
            && self.look_for_key(serial, now).await
        {
            verified = self.verify(again, Some(now));
        }
        let verified = verified?;
        self.takes(&verified)?;
        tend::count_callback(self.method(), self.account(), self.key_of(&verified));
        Ok(verified)
    }

    /// Decrypts and translates. `now` is our clock: a time that it makes impossible is not believed.
    ///
    /// # Errors
    /// [`CallbackError::Unopened`], [`CallbackError::Undecodable`].
    fn read(&self, callback: &Verified<Callback>, now: OffsetDateTime)
    -> Result<Verified<Notification>, CallbackError>;

    /// The order number in the query string with which a buyer's browser comes back from the cashier, to show a page:
    /// it says nothing of a payment, and whoever has the address can send it again. A gateway that signs no returns
    /// refuses them all.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn verify_return(&self, _query: &str) -> Result<Verified<String>, CallbackError> {
        Err(CallbackError::Malformed("this gateway signs no returns"))
    }

    /// Asks the gateway which keys it signs with, beside those that were configured.
    ///
    /// # Errors
    /// See [`GatewayError`]; the keys that were known stay.
    async fn refresh_keys(&self, _now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        Ok(KeyNews::Fixed)
    }

    /// Asks the gateway for a key that a message named and nobody here knows, unless that was done a moment ago: anybody
    /// can name keys. Takes 2.5 s at most. True when it is worth to look again.
    async fn look_for_key(&self, _serial: &str, _now: OffsetDateTime) -> bool {
        false
    }

    /// The key that signed a callback, from the bounded set of those that are loaded.
    fn key_of(&self, _callback: &Verified<Callback>) -> String {
        "fixed".to_owned()
    }

    /// Asks the gateway about an order that cannot exist, for whoever wants to know whether the way, our key and the
    /// gateway's key are in order. Changes nothing anywhere.
    ///
    /// # Errors
    /// [`GatewayError`] when there was no answer, or one that is no answer to this.
    async fn reach(&self, now: OffsetDateTime) -> Result<Reach, GatewayError>;

    /// Whether our private key signs what its own public half takes.
    fn signs(&self) -> bool;

    /// The keys and certificates of this account that have an end or can be missing.
    fn key_status(&self) -> Vec<KeyStatus> {
        Vec::new()
    }
}

/// The names of the headers that a callback of this gateway needs beside its body, in lower case.
pub const fn callback_headers(method: PaymentMethod) -> &'static [&'static str] {
    match method {
        PaymentMethod::Alipay => alipay::CALLBACK_HEADERS,
        PaymentMethod::Wechat => wechat::CALLBACK_HEADERS,
    }
}

/// The app that an order was placed with, by the parameters that the order keeps. `None`: they name none.
pub fn app_of_order(method: PaymentMethod, prepay: &serde_json::Value) -> Option<&str> {
    let params = &prepay["params"];
    match method {
        PaymentMethod::Alipay => alipay::app_of(params),
        PaymentMethod::Wechat => wechat::app_of(params),
    }
}

/// Names a callback by what its signature covers, and by the signature: the same bytes, however the form is written. What is
/// signed once can so open one case at most.
pub fn essence(callback: &Callback) -> String {
    let covered = match callback.method {
        PaymentMethod::Alipay => alipay::sign::essence(&callback.body),
        PaymentMethod::Wechat => wechat::sign::essence(|name| callback.header(name), &callback.body),
    };
    crate::job::digest(&covered)
}

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
fn may_be_handed_on(address: &str, domains: &[&str]) -> bool {
    let Ok(url) = url::Url::parse(address) else { return false };
    let bare = url.scheme() == "https" && url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let of =
        |host: &str, domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    bare && url.domain().is_some_and(|host| domains.iter().any(|domain| of(host, domain)))
}

/// An order as the gateway sees it. `fact` is [`Fact::Nothing`] while the buyer can still pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trade {
    /// What happened.
    pub fact: Fact,
    /// The gateway's own word for the state, for a person to read.
    pub state: String,
    /// Whose it is by the answer, as far as the answer says.
    pub merchant: Merchant,
    /// See [`Notification::doubt`].
    pub doubt: Option<String>,
}

/// What a gateway answers when it is asked about an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TradeAnswer {
    /// It knows the order, and has signed how it stands.
    Found(Verified<Trade>),
    /// It knows no such order. WeChat Pay says so in an unsigned 404, so it proves nothing about money.
    Absent {
        /// The gateway's own word for it, for a person to read.
        state: String,
    },
}

impl TradeAnswer {
    /// The trade, if the gateway knows one.
    pub fn found(self) -> Option<Verified<Trade>> {
        match self {
            TradeAnswer::Found(trade) => Some(trade),
            TradeAnswer::Absent { .. } => None,
        }
    }
}

/// How a close ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseOutcome {
    /// Nobody can pay it any more.
    Closed,
    /// The gateway knows no such trade (Alipay, before the buyer came): it may still come to be until it expires.
    NoTrade,
    /// It is in another state: query.
    NotClosed,
}

/// Why a callback is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// Lacks a header or a field without which nothing can be checked.
    #[error("malformed callback: {0}")]
    Malformed(&'static str),
    /// Outside the clock window.
    #[error("stale timestamp")]
    Stale,
    /// The gateway tests whether we check signatures.
    #[error("signature probe")]
    Probe,
    /// Names a key that is not loaded.
    #[error("unknown key {serial}")]
    UnknownKey {
        /// The key's name, cut to a sane length.
        serial: String,
    },
    /// Names a certificate that is loaded and does not count now.
    #[error("key {serial} {time}")]
    KeyNotInForce {
        /// The certificate's name.
        serial: String,
        /// Which end of its time this lies beyond.
        time: keys::KeyTime,
    },
    /// The named key did not sign these bytes.
    #[error("bad signature")]
    BadSignature,
    /// Authentic, and no key of ours decrypts it. Another key may.
    #[error("no key of this account decrypts the callback: {0}")]
    Unopened(String),
    /// Authentic, and cannot be read.
    #[error("undecodable callback: {0}")]
    Undecodable(String),
}

impl CallbackError {
    /// The key that is needed and not there, which the gateway may be asked for.
    fn wanted_key(&self) -> Option<&str> {
        match self {
            CallbackError::UnknownKey { serial } | CallbackError::KeyNotInForce { serial, .. } => Some(serial),
            _ => None,
        }
    }
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

    #[test]
    fn a_refusal_that_says_paid_is_told_from_the_others() {
        for (code, message, paid) in [
            ("ORDER_PAID", "", true),
            ("INVALID_REQUEST", "该订单已支付", true),
            ("ACQ.TRADE_HAS_SUCCESS", "交易已被支付", true),
            ("ORDER_CLOSED", "该订单已关闭", false),
            ("OUT_TRADE_NO_USED", "商户订单号重复", false),
            ("PARAM_ERROR", "支付金额错误", false),
        ] {
            let refused = GatewayError::Refused { code: code.to_owned(), message: message.to_owned() };
            assert_eq!(refused.says_paid(), paid, "{code} {message}");
        }
        assert!(!GatewayError::Unavailable("已支付".to_owned()).says_paid());
    }
}
