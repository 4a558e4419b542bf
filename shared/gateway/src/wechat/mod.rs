//! WeChat Pay (微信支付), API v3, direct merchant: one merchant account.
//!
//! - [`sign`]: what is signed, and how signatures are checked.
//! - [`callback`]: what WeChat Pay posts.
//! - [`aead`]: how its content is encrypted.
//! - [`prepay`]: what the buyer needs to pay.
//! - `query`: querying and closing an order.
//! - `refund`: refunds.
//! - `reach`: the connection check.
//! - `client`: the call itself.
//! - [`cert`]: platform certificates.
//! - `certificates`: how platform certificates are refreshed.
//! - [`sensitive`]: fields that are encrypted for WeChat Pay.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use domain::message::callback::Callback;
use domain::{AccountName, Notification, OrderNo, PaymentMethod, RefundReport, Scene};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::adapter::Gateway;
use crate::error::CallbackError;
use crate::error::GatewayError;
use crate::keys::{KeyNews, KeyStatus};
use crate::keys::{KeyRing, SigningKey};
use crate::limits::Limits;
use crate::prepay::{Payment, PrepayOrder, PrepayRequest};
use crate::query::{CloseOutcome, TradeAnswer};
use crate::reach::Reach;
use crate::refund::{RefundOrder, RefundTarget};
use crate::transport::http::measured;
use crate::transport::route::Route;
use crate::verified::Verified;

pub mod aead;
pub mod callback;
pub mod cert;
mod certificates;
mod client;
#[cfg(test)]
mod notice_tests;
pub mod prepay;
mod query;
mod reach;
mod refund;
#[cfg(test)]
mod refund_tests;
#[cfg(test)]
mod rotation_tests;
pub mod sensitive;
pub mod sign;
#[cfg(test)]
mod sign_tests;
#[cfg(test)]
mod tests;

/// Source: WeChat Pay APIv3, "申请退款": one refund of an order a minute, within a year of the payment, 50 of one payment.
pub(crate) const LIMITS: Limits = Limits {
    between_refunds: time::Duration::minutes(1),
    refundable_for: Some((time::Duration::days(365), "WeChat Pay refunds for one year after the payment")),
    refunds_of_a_payment: Some((50, "WeChat Pay refunds a payment 50 times at most")),
};

/// The headers that the signature covers, or that name the key and hold the signature.
pub const CALLBACK_HEADERS: &[&str] = &sign::HEADERS;

/// Source: WeChat Pay APIv3, D:4012791877, read 2025-11-20.
pub(super) const PRODUCTION_URL: &str = "https://api.mch.weixin.qq.com";
/// A second site, for when the first cannot be reached.
pub(super) const FALLBACK_URL: &str = "https://api2.mch.weixin.qq.com";

pub(super) use certificates::Fetched;
pub(super) use prepay::app_of;

/// A merchant's contract data at WeChat Pay, and the keys of the account.
pub(super) struct Account {
    pub name: AccountName,
    pub mchid: String,
    /// The app of each scene.
    pub appids: Vec<(Scene, String)>,
    /// Every app that the configuration names, whether in use or not.
    pub apps: BTreeSet<String>,
    pub merchant_serial_no: String,
    pub merchant_key: SigningKey,
    pub apiv3_key: aead::ApiV3Key,
    /// The previous APIv3 key, because messages encrypted with it may still arrive.
    pub previous_apiv3_key: Option<aead::ApiV3Key>,
    /// The configured verifying keys. They stay as long as the configuration names them.
    pub verify_keys: KeyRing,
    /// Whether platform certificates are fetched in addition.
    pub fetches: bool,
}

impl Account {
    /// The APIv3 keys that may have encrypted a message, the newest first.
    fn apiv3_keys(&self) -> impl Iterator<Item = &aead::ApiV3Key> {
        std::iter::once(&self.apiv3_key).chain(&self.previous_apiv3_key)
    }

    fn appid(&self, scene: Scene) -> Option<&str> {
        self.appids.iter().find(|(of, _)| *of == scene).map(|(_, appid)| appid.as_str())
    }
}

/// One WeChat Pay account.
pub struct Wechat {
    account: Account,
    route: Route,
    keys: certificates::Keys,
}

impl Wechat {
    /// `fetched` holds the certificates that an earlier load of the same account fetched; this account continues to use
    /// them.
    pub(super) fn new(account: Account, route: Route, fetched: Arc<Fetched>) -> Wechat {
        let keys = certificates::Keys::new(&account.verify_keys, fetched);
        Wechat { account, route, keys }
    }
}

/// Shows the name of the account and no key.
impl std::fmt::Debug for Wechat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wechat({}, mchid {})", self.account.name, self.account.mchid)
    }
}

#[async_trait]
impl Gateway for Wechat {
    fn method(&self) -> PaymentMethod {
        PaymentMethod::Wechat
    }

    fn account(&self) -> &AccountName {
        &self.account.name
    }

    fn prepay_request(&self, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError> {
        prepay::request(&self.account, order)
    }

    async fn prepay(&self, request: &PrepayRequest, now: OffsetDateTime) -> Result<Payment, GatewayError> {
        measured(PaymentMethod::Wechat, "prepay", self.prepay_inner(request, now)).await
    }

    /// Source: WeChat Pay APIv3, `h5_url` is valid for five minutes, `code_url` and `prepay_id` for two hours, read
    /// 2025-11-20.
    fn credential_lives(&self, scene: Scene) -> Option<time::Duration> {
        Some(if scene == Scene::H5 { time::Duration::minutes(5) } else { time::Duration::hours(2) })
    }

    async fn query(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<TradeAnswer, GatewayError> {
        measured(PaymentMethod::Wechat, "query", self.query_inner(order_no, now)).await
    }

    async fn close(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<CloseOutcome, GatewayError> {
        measured(PaymentMethod::Wechat, "close", self.close_inner(order_no, now)).await
    }

    async fn refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        measured(PaymentMethod::Wechat, "refund", self.refund_inner(refund, now)).await
    }

    async fn query_refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        measured(PaymentMethod::Wechat, "query_refund", self.query_refund_inner(refund, now)).await
    }

    async fn redirect_refund(
        &self,
        refund: &RefundOrder,
        gateway_refund_no: &str,
        to: &RefundTarget,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        measured(PaymentMethod::Wechat, "redirect_refund", self.redirect_inner(refund, gateway_refund_no, to, now))
            .await
    }

    fn verify(&self, callback: Callback, now: Option<OffsetDateTime>) -> Result<Verified<Callback>, CallbackError> {
        sign::verify(&self.ring(), |name| callback.header(name), &callback.body, now)?;
        Ok(Verified::new(callback))
    }

    /// Refuses what cannot be decrypted: WeChat Pay sends it again, and by then the right key may be loaded.
    fn takes(&self, callback: &Verified<Callback>) -> Result<(), CallbackError> {
        callback::opens(&self.account, callback)
    }

    fn read(
        &self,
        callback: &Verified<Callback>,
        now: OffsetDateTime,
    ) -> Result<Verified<Notification>, CallbackError> {
        callback::read(&self.account, callback, now)
    }

    async fn refresh_keys(&self, now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        if !self.account.fetches {
            return Ok(KeyNews::Fixed);
        }
        measured(PaymentMethod::Wechat, "certificates", self.fetch_certificates(now)).await
    }

    async fn look_for_key(&self, serial: &str, now: OffsetDateTime) -> bool {
        self.account.fetches && self.look_for(serial, now).await
    }

    fn key_of(&self, callback: &Verified<Callback>) -> String {
        callback.get().header(sign::SERIAL).unwrap_or_default().to_owned()
    }

    async fn reach(&self, now: OffsetDateTime) -> Result<Reach, GatewayError> {
        measured(PaymentMethod::Wechat, "reach", self.reach_inner(now)).await
    }

    fn signs(&self) -> bool {
        self.account.merchant_key.signs()
    }

    fn key_status(&self) -> Vec<KeyStatus> {
        self.status()
    }
}

/// The time in UTC, as all code outside the adapter uses it. `None` also if it is beyond the calendar in UTC.
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)
}
