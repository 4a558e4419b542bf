//! What four independent witnesses tell of a run: the gateways' ledger, the database, the client's log and the consumer's.
//!
//! [`World::history`](crate::World::history) asks them all; [`judge`] reads what they said and names every contradiction. A
//! history is plain data and judging asks nobody, so a test can take a sound one, plant a fault, and see it found.

mod judge;
mod outside;
mod read;
mod refunds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sqlx::FromRow;

pub use judge::{Invariant, Violation, judge, judge_at_any_moment};
pub use outside::{Balance, balance};

/// Everything that was told.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// By the gateways: every trade, with its refunds and with whom they told of it.
    pub trades: Vec<Trade>,
    /// By the client: every answer to a request that creates something.
    pub answers: Vec<Answered>,
    /// By the consumer of the events: every delivery, in the order of arrival.
    pub deliveries: Vec<Delivered>,
    /// By the database.
    pub orders: Vec<Order>,
    /// By the database: the movements of money in.
    pub payments: Vec<Payment>,
    /// By the database, each with its movement of money out.
    pub refunds: Vec<Refund>,
    /// By the database: the evidence of callbacks.
    pub callbacks: Vec<Callback>,
    /// By the database: the bodies of callbacks that wait as jobs.
    pub waiting: Vec<String>,
    /// By the database: the outbox.
    pub events: Vec<Event>,
    /// By the database: what each Idempotency-Key has made, orders and refunds.
    pub named_by_keys: Vec<String>,
    /// By the database: what people were to look at.
    pub cases: Vec<Case>,
    /// Whether what was on the road was lost with a broker. Callbacks may have been, and events go out again from some
    /// point on; the money has to agree all the same.
    pub road_lost: bool,
}

/// One trade at a gateway.
#[derive(Debug, Clone, Deserialize)]
pub struct Trade {
    /// Which gateway.
    pub gateway: String,
    /// Our number of the order.
    #[serde(rename = "out_trade_no")]
    pub order_no: String,
    /// The gateway's own number.
    pub trade_no: Option<String>,
    /// `offered` `waiting` `paid` `closed`.
    pub state: String,
    /// How much.
    pub amount_fen: i64,
    /// How much went back.
    pub refunded_fen: i64,
    /// How often something wrong was answered with success.
    pub wrong_accepted: i64,
    /// What the gateway told of it.
    pub notices: Vec<Notice>,
    /// What went back, or was to.
    pub refunds: Vec<ReturnedThere>,
    /// Limits of refunds that were run into.
    pub violations: BTreeMap<String, i64>,
}

/// One callback, however often it was sent.
#[derive(Debug, Clone, Deserialize)]
pub struct Notice {
    /// The gateway's id of it.
    pub id: String,
    /// How often it was answered with success.
    pub accepted: i64,
}

/// One refund at a gateway.
#[derive(Debug, Clone, Deserialize)]
pub struct ReturnedThere {
    /// Our number of the refund.
    #[serde(rename = "out_refund_no")]
    pub refund_no: String,
    /// How much.
    pub amount_fen: i64,
    /// `processing` `success` `closed` `abnormal`.
    pub state: String,
    /// How often money moved for it.
    pub effects: i64,
    /// Whether somebody made it in the gateway's console, and not the service.
    #[serde(default)]
    pub console: bool,
    /// Whether a notice of its end was answered with success.
    #[serde(default)]
    pub delivered: bool,
}

/// An answer to a request that creates something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The Idempotency-Key.
    pub key: String,
    /// The status.
    pub status: u16,
    /// The body.
    pub text: String,
    /// Whether it says to come again: then it is not final.
    pub come_again: bool,
}

/// One delivery of an event.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The event's id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// What it tells.
    pub data: Value,
}

/// A row of `payment_orders`.
#[derive(Debug, Clone, FromRow)]
pub struct Order {
    /// Our id.
    pub id: String,
    /// Our number.
    pub order_no: String,
    /// Where it stands.
    pub status: String,
    /// How often it has moved, and one more.
    pub version: i64,
    /// How much.
    pub amount_fen: i64,
    /// How much of it went back.
    pub refunded_fen: i64,
    /// The trade that paid it.
    pub trade_no: Option<String>,
    /// Whether it has ever been closed.
    pub was_closed: bool,
    /// Whether its end was asked for while it was pending: that raises its version once.
    pub close_requested: bool,
}

/// A succeeded payment, a row of `payment_transactions`.
#[derive(Debug, Clone, FromRow)]
pub struct Payment {
    /// Our id.
    pub id: String,
    /// Of which order.
    pub order_id: String,
    /// The trade.
    pub trade_no: String,
    /// How much.
    pub amount_fen: i64,
}

/// A row of `refund_records`, and its row of `payment_transactions`.
#[derive(Debug, Clone, FromRow)]
pub struct Refund {
    /// Our id.
    pub id: String,
    /// Of which order.
    pub order_id: String,
    /// Which payment it returns.
    pub payment_id: String,
    /// Our number.
    pub refund_no: String,
    /// How much.
    pub amount_fen: i64,
    /// Where it stands.
    pub status: String,
    /// Who made it: `service` `outside`.
    pub origin: String,
    /// Whether it is on record that it was about to be sent.
    pub sent: bool,
    /// Whether the order's own user asked for it, so with an Idempotency-Key.
    pub of_its_user: bool,
    /// When it moved last, in microseconds.
    pub moved_at: i64,
    /// Its movement of money, as order, amount and status; `None`: there is none.
    pub movement: Option<String>,
}

/// A row of `callbacks`.
#[derive(Debug, Clone, FromRow)]
pub struct Callback {
    /// Which gateway.
    pub gateway: String,
    /// The gateway's id of it.
    pub notice_id: String,
}

/// A row of `cases`.
#[derive(Debug, Clone, FromRow)]
pub struct Case {
    /// Why.
    pub kind: String,
    /// Of which order.
    pub order_id: Option<String>,
    /// The gateway's number, of a late or second payment its trade.
    pub number: String,
    /// Whether it waits for people.
    pub open: bool,
}

/// A row of `events`.
#[derive(Debug, Clone, FromRow)]
pub struct Event {
    /// Deterministic.
    pub event_id: String,
    /// The type.
    pub kind: String,
    /// The order it is about.
    pub order_id: Option<String>,
    /// What it tells.
    pub data: Value,
}

impl History {
    /// The cases of an order.
    fn cases_of<'a>(&'a self, order: &'a Order) -> impl Iterator<Item = &'a Case> {
        self.cases.iter().filter(|case| case.order_id.as_ref() == Some(&order.id))
    }
}

impl History {
    /// Whether money came for the order that it was not owed.
    fn has_money_beside(&self, order: &Order) -> bool {
        let kinds = ["late_payment", "double_payment", "refunded_elsewhere", "amount_mismatch", "wrong_method"];
        let mut payments = self.payments.iter().filter(|payment| payment.order_id == order.id);
        let own = |payment: &Payment| order.was_paid() && order.trade_no.as_ref() == Some(&payment.trade_no);
        payments.any(|payment| !own(payment)) || self.cases_of(order).any(|case| kinds.contains(&case.kind.as_str()))
    }
}

impl Order {
    /// Whether its money came.
    #[must_use]
    pub fn was_paid(&self) -> bool {
        !matches!(self.status.as_str(), "pending" | "closed")
    }

    /// Its version before it moved for the first time.
    #[must_use]
    pub fn first_version(&self) -> i64 {
        1 + i64::from(self.close_requested)
    }
}

impl Refund {
    /// Whether it is on its way.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        matches!(self.status.as_str(), "pending" | "processing")
    }

    /// Whether the money went back without us.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.origin == "outside"
    }

    /// Whether the money went back.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status == "succeeded"
    }
}

impl Answered {
    /// Whether something was created.
    #[must_use]
    pub fn created(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it was refused for good. That the key was used for another request says nothing of the first one.
    #[must_use]
    pub fn refused(&self) -> bool {
        let of_another = self.status == 422 && self.text.contains("idempotency_key_reused");
        (400..500).contains(&self.status) && !self.come_again && !of_another
    }
}
