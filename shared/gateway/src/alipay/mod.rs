//! Alipay (支付宝), OpenAPI gateway with RSA2: one merchant account, in public-key or in certificate mode.
//!
//! - [`sign`]: how requests are signed, and how callbacks are checked.
//! - [`form`]: the body of a callback.
//! - [`answer`]: the signed part of an answer.
//! - [`callback`]: what the gateway posts.
//! - `prepay`: what the buyer needs to pay.
//! - `query`: querying and closing an order.
//! - `refund`: refunds.
//! - `return_page`: what the buyer's browser brings back.
//! - `client`: the call itself.
//! - `trust`: whose signature counts.
//! - `chain` and `download`: Alipay's new certificates.
//! - [`cert`]: certificate numbers.

use std::sync::Arc;

use async_trait::async_trait;
use domain::message::callback::Callback;
use domain::{AccountName, Notification, OrderNo, PaymentMethod, RefundReport, Scene};
use time::format_description::BorrowedFormatItem;
use time::macros::{format_description, offset};
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};
use url::Url;

use crate::adapter::Gateway;
use crate::error::CallbackError;
use crate::error::GatewayError;
use crate::keys::{KeyNews, KeyStatus};
use crate::keys::{SigningKey, VerifyingKey};
use crate::limits::Limits;
use crate::prepay::{Payment, PrepayOrder, PrepayRequest};
use crate::query::{CloseOutcome, TradeAnswer};
use crate::reach::Reach;
use crate::refund::{RefundOrder, RefundTarget};
use crate::transport::http::measured;
use crate::transport::route::Route;
use crate::verified::Verified;

pub mod answer;
pub mod callback;
pub mod cert;
mod chain;
#[cfg(test)]
mod charset_tests;
mod client;
mod download;
pub mod form;
mod prepay;
mod query;
mod reach;
mod refund;
#[cfg(test)]
mod refund_tests;
mod return_page;
pub use return_page::ORDER_NO as RETURN_ORDER_NO;
pub mod sign;
#[cfg(test)]
mod sign_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod tests;
mod trust;

/// Source: Alipay, `alipay.trade.refund`: 3 s between two refunds of a trade. How long a trade can be refunded depends on the
/// contract.
pub(crate) const LIMITS: Limits =
    Limits { between_refunds: time::Duration::seconds(3), refundable_for: None, refunds_of_a_payment: None };

/// The signature is a field of the body, so no header is needed.
pub const CALLBACK_HEADERS: &[&str] = &[];

pub(super) use chain::{Issued, Roots};
pub(super) use prepay::{QR_PRODUCT_CODE, app_of};
pub(super) use trust::{Certificates, Fetched, Trust};

/// Source: Alipay OpenAPI, C:057k53, read 2025-11-20.
pub(super) const PRODUCTION_URL: &str = "https://openapi.alipay.com/gateway.do";
/// The sandbox has its own app ids and keys.
pub(super) const SANDBOX_URL: &str = "https://openapi-sandbox.dl.alipaydev.com/gateway.do";

/// A merchant's contract data at Alipay, and the keys of the account.
pub(super) struct Account {
    pub name: AccountName,
    pub gateway_url: Url,
    pub app_id: String,
    pub seller_id: String,
    /// The product code that the contract for QR codes states.
    pub qr_product_code: String,
    pub app_key: SigningKey,
    pub trust: Trust,
    /// Alipay's previous public key, for messages that it signed and that may still arrive.
    pub previous_key: Option<VerifyingKey>,
}

/// One Alipay account.
pub struct Alipay {
    account: Account,
    route: Route,
    fetched: Arc<Fetched>,
}

impl Alipay {
    /// `fetched` holds the certificates that an earlier load of the same account fetched; this account continues to use
    /// them.
    pub(super) fn new(account: Account, route: Route, fetched: Arc<Fetched>) -> Alipay {
        Alipay { account, route, fetched }
    }
}

/// Shows the name of the account and no key.
impl std::fmt::Debug for Alipay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Alipay({}, app {})", self.account.name, self.account.app_id)
    }
}

#[async_trait]
impl Gateway for Alipay {
    fn method(&self) -> PaymentMethod {
        PaymentMethod::Alipay
    }

    fn account(&self) -> &AccountName {
        &self.account.name
    }

    fn prepay_request(&self, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError> {
        prepay::request(&self.account, order)
    }

    fn prepay_here(&self, request: &PrepayRequest, now: OffsetDateTime) -> Result<Option<Payment>, GatewayError> {
        prepay::here(&self.account, request, now)
    }

    async fn prepay(&self, request: &PrepayRequest, now: OffsetDateTime) -> Result<Payment, GatewayError> {
        match self.prepay_here(request, now)? {
            Some(payment) => Ok(payment),
            None => measured(PaymentMethod::Alipay, "prepay", self.precreate(request, now)).await,
        }
    }

    /// Source: `alipay.trade.precreate` (05osv9): a code is valid for two hours.
    fn credential_lives(&self, scene: Scene) -> Option<time::Duration> {
        (scene == Scene::Qr).then_some(time::Duration::hours(2))
    }

    async fn query(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<TradeAnswer, GatewayError> {
        measured(PaymentMethod::Alipay, "query", self.query_inner(order_no, now)).await
    }

    async fn close(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<CloseOutcome, GatewayError> {
        measured(PaymentMethod::Alipay, "close", self.close_inner(order_no, now)).await
    }

    async fn refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        measured(PaymentMethod::Alipay, "refund", self.refund_inner(refund, now)).await
    }

    async fn query_refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        measured(PaymentMethod::Alipay, "query_refund", self.query_refund_inner(refund, now)).await
    }

    async fn redirect_refund(
        &self,
        _refund: &RefundOrder,
        _gateway_refund_no: &str,
        _to: &RefundTarget,
        _now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        Err(client::refusal("redirect_refund", "Alipay has no other way for a refund"))
    }

    /// The protocol defines no clock window: `now` only decides which certificates are in force.
    fn verify(&self, callback: Callback, now: Option<OffsetDateTime>) -> Result<Verified<Callback>, CallbackError> {
        self.verify_form(&callback.body, now.unwrap_or(callback.received_at))?;
        Ok(Verified::new(callback))
    }

    /// A buyer's return is signed by the same rule and key; only a notice has an id and a type.
    fn takes(&self, callback: &Verified<Callback>) -> Result<(), CallbackError> {
        callback::is_notice(callback)
    }

    fn read(
        &self,
        callback: &Verified<Callback>,
        now: OffsetDateTime,
    ) -> Result<Verified<Notification>, CallbackError> {
        callback::read(&self.account, callback, now)
    }

    fn verify_return(&self, query: &str) -> Result<Verified<String>, CallbackError> {
        return_page::read(self, query)
    }

    async fn refresh_keys(&self, now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        if self.account.certificates().is_none() {
            return Ok(KeyNews::Fixed);
        }
        measured(PaymentMethod::Alipay, "certificates", self.refresh(now)).await
    }

    async fn look_for_key(&self, serial: &str, now: OffsetDateTime) -> bool {
        self.look_for(serial, now).await
    }

    fn key_of(&self, callback: &Verified<Callback>) -> String {
        self.name_of_key(&callback.get().body, callback.get().received_at)
    }

    async fn reach(&self, now: OffsetDateTime) -> Result<Reach, GatewayError> {
        measured(PaymentMethod::Alipay, "reach", self.reach_inner(now)).await
    }

    fn signs(&self) -> bool {
        self.account.app_key.signs()
    }

    fn key_status(&self) -> Vec<KeyStatus> {
        self.status()
    }
}

const BEIJING: UtcOffset = offset!(+8);
const CLOCK: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

/// `yyyy-MM-dd HH:mm:ss` in Beijing time, independent of the time zone of this process.
fn beijing_text(at: OffsetDateTime) -> Result<String, GatewayError> {
    let out_of_range = || GatewayError::Protocol("a time beyond the calendar".to_owned());
    let local = at.checked_to_offset(BEIJING).ok_or_else(out_of_range)?;
    // Fails only for years that need a sign.
    local.format(CLOCK).map_err(|error| GatewayError::Protocol(error.to_string()))
}

/// The time in UTC, as all code outside the adapter uses it.
fn parse_beijing(text: &str) -> Option<OffsetDateTime> {
    // Some fields have a fraction of a second: `gmt_refund`.
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    PrimitiveDateTime::parse(whole, CLOCK).ok()?.assume_offset(BEIJING).checked_to_offset(UtcOffset::UTC)
}
