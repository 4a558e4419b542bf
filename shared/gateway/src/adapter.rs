//! What every adapter can do: one trait for both gateways.

use async_trait::async_trait;
use domain::message::callback::Callback;
use domain::{AccountName, Notification, OrderNo, PaymentMethod, Scene, Source};
use time::OffsetDateTime;

use crate::error::{CallbackError, GatewayError};
use crate::keys::{KeyNews, KeyStatus};
use crate::prepay::{Payment, PrepayOrder, PrepayRequest};
use crate::query::{CloseOutcome, Trade, TradeAnswer};
use crate::reach::Reach;
use crate::refund::{RefundOrder, RefundState, RefundTarget};
use crate::verified::Verified;

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
        count_callback(self.method(), self.account(), self.key_of(&verified));
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

impl Verified<Trade> {
    /// What an answer about an order tells, as a callback would have told it. The proof goes with it: the answer was
    /// signed, and it is about an order of this account, because the account asked for it by its number.
    pub fn told_of(&self, gateway: &dyn Gateway, order_no: &OrderNo, notice_id: String) -> Verified<Notification> {
        Verified::new(Notification {
            method: gateway.method(),
            account: gateway.account().clone(),
            notice_id,
            source: Source::Query,
            merchant: self.get().merchant.clone(),
            order_no: order_no.to_string(),
            fact: self.get().fact.clone(),
            doubt: self.get().doubt.clone(),
        })
    }
}

/// Counts a verified callback by the key that signed it: the labels are as many as keys were ever loaded.
fn count_callback(method: PaymentMethod, account: &AccountName, serial: String) {
    let (gateway, account) = (method.as_str(), account.to_string());
    metrics::counter!("callbacks_by_serial_total", "gateway" => gateway, "account" => account, "serial" => serial)
        .increment(1);
}
