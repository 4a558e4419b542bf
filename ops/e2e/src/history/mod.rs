//! What four independent witnesses say about a run: the gateways' ledger, the database, the client's log and the
//! consumer's log.
//!
//! [`World::history`](crate::World::history) collects it from all of them; [`judge`] compares it and names every
//! contradiction. A history is plain data and judging needs no I/O. So a test can start with a sound history, plant
//! a fault, and check that it is found.

mod judge;
mod outside;
mod read;
mod refunds;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sqlx::FromRow;

pub use judge::{judge, judge_at_any_moment};
pub use outside::{Balance, balance};
pub use violation::{Invariant, Violation};

/// Everything that the witnesses recorded.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// From the gateways: every trade, with its refunds and its notices.
    pub trades: Vec<Trade>,
    /// From the client: every answer to a request that creates something.
    pub answers: Vec<Answered>,
    /// From the consumer of the events: every delivery, in the order of arrival.
    pub deliveries: Vec<Delivered>,
    /// From the database: the orders.
    pub orders: Vec<Order>,
    /// From the database: the movements of money in.
    pub payments: Vec<Payment>,
    /// From the database: the refunds, each with its movement of money out.
    pub refunds: Vec<Refund>,
    /// From the database: the evidence of callbacks.
    pub callbacks: Vec<Callback>,
    /// From the database: the bodies of callbacks that wait as jobs.
    pub waiting: Vec<String>,
    /// From the database: the outbox.
    pub events: Vec<Event>,
    /// From the database: the orders and refunds that each Idempotency-Key created.
    pub named_by_keys: Vec<String>,
    /// From the database: the cases for people.
    pub cases: Vec<Case>,
    /// Whether messages in flight were lost with a broker. Then callbacks may be lost, and the relay publishes
    /// events again from some point on. The money must agree all the same.
    pub messages_lost: bool,
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
    /// The amount.
    pub amount_fen: i64,
    /// The amount that was refunded.
    pub refunded_fen: i64,
    /// How many times a wrong callback was answered with success.
    pub wrong_accepted: i64,
    /// The notices that the gateway sent about it.
    pub notices: Vec<Notice>,
    /// Its refunds, done or not.
    pub refunds: Vec<ReturnedThere>,
    /// How many times each limit for refunds was exceeded.
    pub violations: BTreeMap<String, i64>,
}

/// One callback, however many times it was sent.
#[derive(Debug, Clone, Deserialize)]
pub struct Notice {
    /// The gateway's id of it.
    pub id: String,
    /// How many times it was answered with success.
    pub accepted: i64,
}

/// One refund at a gateway.
#[derive(Debug, Clone, Deserialize)]
pub struct ReturnedThere {
    /// Our number of the refund.
    #[serde(rename = "out_refund_no")]
    pub refund_no: String,
    /// The amount.
    pub amount_fen: i64,
    /// `processing` `success` `closed` `abnormal`.
    pub state: String,
    /// How many times money moved for it.
    pub effects: i64,
    /// Whether a person made it in the gateway's console, and not the service.
    #[serde(default)]
    pub console: bool,
    /// Whether a notice of its final state was answered with success.
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
    /// Whether the answer has `Retry-After`: then it is not final.
    pub come_again: bool,
}

/// One delivery of an event.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The event's id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// The event's data.
    pub data: Value,
}

/// A row of `payment_orders`.
#[derive(Debug, Clone, FromRow)]
pub struct Order {
    /// Our id.
    pub id: String,
    /// Our number.
    pub order_no: String,
    /// The status.
    pub status: String,
    /// 1, plus the number of moves.
    pub version: i64,
    /// The amount.
    pub amount_fen: i64,
    /// The refunded part of the amount.
    pub refunded_fen: i64,
    /// The trade that paid it.
    pub trade_no: Option<String>,
    /// Whether it has ever been closed.
    pub was_closed: bool,
    /// Whether its close was requested while it was pending: that raises its version once.
    pub close_requested: bool,
}

/// A succeeded payment, a row of `payment_transactions`.
#[derive(Debug, Clone, FromRow)]
pub struct Payment {
    /// Our id.
    pub id: String,
    /// The order's id.
    pub order_id: String,
    /// The trade.
    pub trade_no: String,
    /// The amount.
    pub amount_fen: i64,
}

/// A row of `refund_records`, and its row of `payment_transactions`.
#[derive(Debug, Clone, FromRow)]
pub struct Refund {
    /// Our id.
    pub id: String,
    /// The order's id.
    pub order_id: String,
    /// The id of the payment that it refunds.
    pub payment_id: String,
    /// Our number.
    pub refund_no: String,
    /// The amount.
    pub amount_fen: i64,
    /// The status.
    pub status: String,
    /// Who made it: `service` `outside`.
    pub origin: String,
    /// Whether the service recorded, before it sent the refund, that it would send it.
    pub sent: bool,
    /// Whether the order's own user requested it, and so with an Idempotency-Key.
    pub of_its_user: bool,
    /// When it last changed, in microseconds.
    pub moved_at: i64,
    /// Its movement of money, as order, amount and status; `None` if there is none.
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
    /// The kind.
    pub kind: String,
    /// The order's id.
    pub order_id: Option<String>,
    /// The gateway's number; for a late or second payment, its trade.
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
    /// The event's data.
    pub data: Value,
}

impl History {
    /// The cases of an order.
    fn cases_of<'a>(&'a self, order: &'a Order) -> impl Iterator<Item = &'a Case> {
        self.cases.iter().filter(|case| case.order_id.as_ref() == Some(&order.id))
    }
}

impl History {
    /// Whether money arrived for the order that is not its own payment.
    fn has_money_beside(&self, order: &Order) -> bool {
        let kinds = ["late_payment", "double_payment", "refunded_elsewhere", "amount_mismatch", "wrong_method"];
        let mut payments = self.payments.iter().filter(|payment| payment.order_id == order.id);
        let own = |payment: &Payment| order.was_paid() && order.trade_no.as_ref() == Some(&payment.trade_no);
        payments.any(|payment| !own(payment)) || self.cases_of(order).any(|case| kinds.contains(&case.kind.as_str()))
    }
}

impl Order {
    /// Whether it was paid.
    #[must_use]
    pub fn was_paid(&self) -> bool {
        !matches!(self.status.as_str(), "pending" | "closed")
    }

    /// Its version before its first move.
    #[must_use]
    pub fn first_version(&self) -> i64 {
        1 + i64::from(self.close_requested)
    }
}

impl Refund {
    /// Whether it is still under way.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        matches!(self.status.as_str(), "pending" | "processing")
    }

    /// Whether its amount is returned, or can still be.
    #[must_use]
    pub fn reserves(&self) -> bool {
        !matches!(self.status.as_str(), "requested" | "failed" | "declined" | "withdrawn")
    }

    /// Whether the refund was made outside the service.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.origin == "outside"
    }

    /// Whether the money was refunded.
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

    /// Whether it was refused permanently. An answer that the key was used for another request says nothing about
    /// the first request.
    #[must_use]
    pub fn refused(&self) -> bool {
        let of_another = self.status == 422 && self.text.contains("idempotency_key_reused");
        (400..500).contains(&self.status) && !self.come_again && !of_another
    }
}
