//! A gateway that the test controls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::message::callback::Callback;
use domain::{AccountName, Notification, OrderNo, PaymentMethod, RefundReport};
use gateway::{
    CallbackError, CloseOutcome, Gateway, GatewayError, Payment, PrepayOrder, PrepayRequest, Reach, RefundOrder,
    RefundTarget, TradeAnswer, Verified,
};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::world::{GATEWAYS, PATIENCE};

/// How the puppet answers a prepay call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Works,
    Slow(Duration),
    /// Says that it was called, and works once it is let go.
    Waits,
    Refuses,
    /// Our account, and no order.
    RefusesUs,
    SaysPaid,
    IsAway,
    LosesTheAnswer,
    Babbles,
    SaysClosed,
    Panics,
}

/// A gateway that the test controls; the real adapter handles callbacks.
pub struct Puppet {
    real: Arc<dyn Gateway>,
    pub mood: Mutex<Mood>,
    pub calls: AtomicUsize,
    /// The parameters of each call.
    pub prepaid: Mutex<Vec<Value>>,
    /// A permit for each call that waits, and for each that may go on. A notice would remember one of two at once.
    called: Semaphore,
    let_go: Semaphore,
}

impl Puppet {
    pub fn new() -> Puppet {
        let real = GATEWAYS.get(PaymentMethod::Wechat, &AccountName::parse("main").unwrap()).unwrap();
        Puppet {
            real,
            mood: Mutex::new(Mood::Works),
            calls: AtomicUsize::new(0),
            prepaid: Mutex::default(),
            called: Semaphore::new(0),
            let_go: Semaphore::new(0),
        }
    }

    /// Until a call is at work, in [`Mood::Waits`].
    pub async fn is_called(&self) {
        let call = timeout(PATIENCE, self.called.acquire()).await.expect("a call of the gateway");
        call.expect("it is never closed").forget();
    }

    /// Lets that call go on.
    pub fn let_go(&self) {
        self.let_go.add_permits(1);
    }

    pub fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl Gateway for Puppet {
    fn method(&self) -> PaymentMethod {
        PaymentMethod::Wechat
    }

    fn account(&self) -> &AccountName {
        self.real.account()
    }

    fn prepay_request(&self, order: &PrepayOrder) -> Result<PrepayRequest, GatewayError> {
        self.real.prepay_request(order)
    }

    async fn prepay(&self, request: &PrepayRequest, _: OffsetDateTime) -> Result<Payment, GatewayError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        self.prepaid.lock().unwrap().push(request.params.clone());
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Works => {}
            Mood::Slow(wait) => tokio::time::sleep(wait).await,
            Mood::Waits => {
                self.called.add_permits(1);
                self.let_go.acquire().await.expect("it is never closed").forget();
            }
            Mood::SaysPaid => {
                let (code, message) = ("INVALID_REQUEST".to_owned(), "该订单已支付, secret words".to_owned());
                return Err(GatewayError::Refused { code, message });
            }
            Mood::SaysClosed => {
                let (code, message) = ("ORDER_CLOSED".to_owned(), "secret words".to_owned());
                return Err(GatewayError::Refused { code, message });
            }
            Mood::Refuses => {
                let (code, message) = ("RULE_LIMIT".to_owned(), "secret words".to_owned());
                return Err(GatewayError::Refused { code, message });
            }
            Mood::RefusesUs => {
                let (code, message) = ("NO_AUTH".to_owned(), "secret words".to_owned());
                return Err(GatewayError::Misconfigured { code, message });
            }
            Mood::IsAway => return Err(GatewayError::Unavailable("connection refused".to_owned())),
            Mood::LosesTheAnswer => return Err(GatewayError::Unknown("timeout".to_owned())),
            Mood::Babbles => return Err(GatewayError::Protocol("not JSON".to_owned())),
            Mood::Panics => panic!("secret words"),
        }
        // Different on each call, as real credentials are.
        Ok(Payment::Qr { code_url: format!("weixin://wxpay/bizpayurl?pr={call}") })
    }

    async fn query(&self, _: &OrderNo, _: OffsetDateTime) -> Result<TradeAnswer, GatewayError> {
        Err(GatewayError::Unavailable("not asked for".to_owned()))
    }

    async fn close(&self, _: &OrderNo, _: OffsetDateTime) -> Result<CloseOutcome, GatewayError> {
        Err(GatewayError::Unavailable("not asked for".to_owned()))
    }

    async fn refund(&self, _: &RefundOrder, _: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        Err(GatewayError::Unavailable("not asked for".to_owned()))
    }

    async fn query_refund(&self, _: &RefundOrder, _: OffsetDateTime) -> Result<RefundReport, GatewayError> {
        Err(GatewayError::Unavailable("not asked for".to_owned()))
    }

    async fn redirect_refund(
        &self,
        _: &RefundOrder,
        _: &str,
        _: &RefundTarget,
        _: OffsetDateTime,
    ) -> Result<RefundReport, GatewayError> {
        Err(GatewayError::Unavailable("not asked for".to_owned()))
    }

    fn verify(&self, callback: Callback, now: Option<OffsetDateTime>) -> Result<Verified<Callback>, CallbackError> {
        self.real.verify(callback, now)
    }

    fn takes(&self, callback: &Verified<Callback>) -> Result<(), CallbackError> {
        self.real.takes(callback)
    }

    fn read(
        &self,
        callback: &Verified<Callback>,
        now: OffsetDateTime,
    ) -> Result<Verified<Notification>, CallbackError> {
        self.real.read(callback, now)
    }

    async fn reach(&self, now: OffsetDateTime) -> Result<Reach, GatewayError> {
        self.real.reach(now).await
    }

    fn signs(&self) -> bool {
        self.real.signs()
    }
}
