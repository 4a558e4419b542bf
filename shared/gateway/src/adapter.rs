//! What every adapter can do: one trait for both gateways.

use async_trait::async_trait;
use domain::message::callback::Callback;
use domain::{AccountName, Notification, OrderNo, PaymentMethod, RefundReport, Scene};
use time::OffsetDateTime;

use crate::error::{CallbackError, GatewayError};
use crate::keys::{KeyNews, KeyStatus};
use crate::prepay::{Payment, PrepayOrder, PrepayRequest};
use crate::query::{CloseOutcome, TradeAnswer};
use crate::reach::Reach;
use crate::refund::{RefundOrder, RefundTarget};
use crate::verified::Verified;

/// One merchant account at one gateway.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Which gateway.
    fn method(&self) -> PaymentMethod;

    /// Which account.
    fn account(&self) -> &AccountName;

    /// The parameters of the prepay call. They are fixed for the life of the order: a repeat sends the same parameters.
    ///
    /// # Errors
    /// [`GatewayError::Refused`] when the order lacks what the scene needs (a payer's openid, a client address).
    fn prepay_request(&self, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError>;

    /// The credential with which the buyer pays, if we can make it without a call: Alipay's page, wap and app
    /// credentials are texts that we sign. `None`: the caller must request it with [`Gateway::prepay`].
    ///
    /// # Errors
    /// As [`Gateway::prepay`].
    fn prepay_here(&self, _request: &PrepayRequest, _now: OffsetDateTime) -> Result<Option<Payment>, GatewayError> {
        Ok(None)
    }

    /// Requests the credential with which the buyer pays, for scenes where [`Gateway::prepay_here`] returns `None`.
    /// Signs with a fresh timestamp and nonce.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn prepay(&self, request: &PrepayRequest, now: OffsetDateTime) -> Result<Payment, GatewayError>;

    /// How long the buyer can pay with a credential that [`Gateway::prepay`] returned. `None`: the service need not
    /// store it, because we sign it ourselves. Both gateways document two hours for theirs.
    fn credential_lives(&self, _scene: Scene) -> Option<time::Duration> {
        Some(time::Duration::hours(2))
    }

    /// Queries the state of an order.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn query(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<TradeAnswer, GatewayError>;

    /// Closes an unpaid order. If the buyer paid first, that is not an error but [`CloseOutcome::NotClosed`]: query
    /// again.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn close(&self, order_no: &OrderNo, now: OffsetDateTime) -> Result<CloseOutcome, GatewayError>;

    /// Requests a refund. The request depends on `refund` alone, so a repeat sends the same request.
    ///
    /// # Errors
    /// See [`GatewayError`]. After [`GatewayError::Unknown`] and [`GatewayError::Protocol`] the money may have moved,
    /// and a refusal may concern another attempt. Call [`Gateway::query_refund`] before any repeat, and before giving
    /// up.
    async fn refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError>;

    /// Queries the state of a refund. Every reported state is signed, except that WeChat Pay reports an absent refund in
    /// an unsigned 404. So the result is not a [`Verified`], and [`domain::RefundState::Absent`] does not end a refund
    /// alone. It permits sending the same request with the same number again, for which the gateway refunds once. If the
    /// gateway has refused the request, `Absent` fails the refund. It leaves a failed refund as it is.
    ///
    /// # Errors
    /// See [`GatewayError`].
    async fn query_refund(&self, refund: &RefundOrder, now: OffsetDateTime) -> Result<RefundReport, GatewayError>;

    /// Sends an undeliverable refund to another target. `gateway_refund_no` is the gateway's number of the refund. Only
    /// WeChat Pay needs this; at Alipay no refund gets stuck.
    ///
    /// # Errors
    /// See [`GatewayError`]; as with [`Gateway::refund`], the refund may have happened despite the error.
    async fn redirect_refund(
        &self,
        refund: &RefundOrder,
        gateway_refund_no: &str,
        to: &RefundTarget,
        now: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError>;

    /// Checks that the gateway signed these bytes. The ingress passes `now`, which adds the check of the clock window.
    /// A worker passes `None`, because a backlog must not make a genuine callback stale.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn verify(&self, callback: Callback, now: Option<OffsetDateTime>) -> Result<Verified<Callback>, CallbackError>;

    /// Whether we store an authentic message and answer success. The gateway sends a message again if we refuse it
    /// here.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn takes(&self, _callback: &Verified<Callback>) -> Result<(), CallbackError> {
        Ok(())
    }

    /// [`Gateway::verify`] and [`Gateway::takes`] for a callback that arrives. If the key is unknown or not in
    /// force, it queries the gateway for that key once. It counts each verified callback by the signing key, so that operators can watch a
    /// key rotation.
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
        count_callback(self.method(), self.account(), self.key_of(&verified));
        Ok(verified)
    }

    /// Decrypts and translates the callback. `now` is our clock: a time that is impossible by it is not believed.
    ///
    /// # Errors
    /// [`CallbackError::Unopened`], [`CallbackError::Undecodable`].
    fn read(&self, callback: &Verified<Callback>, now: OffsetDateTime)
    -> Result<Verified<Notification>, CallbackError>;

    /// The order number in the query string with which a buyer's browser returns from the cashier. It serves only to
    /// show a page: it proves no payment, and anyone who has the address can send it again. A gateway that signs no
    /// returns refuses them all.
    ///
    /// # Errors
    /// See [`CallbackError`].
    fn verify_return(&self, _query: &str) -> Result<Verified<String>, CallbackError> {
        Err(CallbackError::Malformed("this gateway signs no returns"))
    }

    /// Queries the gateway for the keys that it signs with, in addition to the configured keys.
    ///
    /// # Errors
    /// See [`GatewayError`]; the keys that are already loaded stay.
    async fn refresh_keys(&self, _now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        Ok(KeyNews::Fixed)
    }

    /// Queries the gateway for a key that a message named and that is not loaded. Skips the query if one was made a
    /// moment ago, because anyone can name keys. Takes 2.5 s at most. True if another lookup of the key may succeed.
    async fn look_for_key(&self, _serial: &str, _now: OffsetDateTime) -> bool {
        false
    }

    /// The key that signed a callback. It comes from the bounded set of loaded keys.
    fn key_of(&self, _callback: &Verified<Callback>) -> String {
        "fixed".to_owned()
    }

    /// Queries an order that cannot exist, to check that the network path, our key and the gateway's key work. Changes
    /// nothing at the gateway or here.
    ///
    /// # Errors
    /// [`GatewayError`] if there was no answer, or if the answer does not match this query.
    async fn reach(&self, now: OffsetDateTime) -> Result<Reach, GatewayError>;

    /// Whether our private key makes signatures that its own public half accepts.
    fn signs(&self) -> bool;

    /// The keys and certificates of this account that can expire or be missing.
    fn key_status(&self) -> Vec<KeyStatus> {
        Vec::new()
    }
}

/// Counts a verified callback by the signing key. There are only as many label values as keys were ever loaded.
fn count_callback(method: PaymentMethod, account: &AccountName, serial: String) {
    let (gateway, account) = (method.as_str(), account.to_string());
    metrics::counter!("callbacks_by_serial_total", "gateway" => gateway, "account" => account, "serial" => serial)
        .increment(1);
}
