//! Fulfilment events: what downstream systems learn, and under which id.
//!
//! The id follows from the type and what the event tells of, so a repeat is recognisable. On the wire an event is a
//! CloudEvent 1.0 in AMQP binary mode: the attributes in headers, `data` as the JSON body.

use serde_json::Value;

use crate::ids::OrderId;

/// `source` of every event.
pub const SOURCE: &str = "/payment";

/// An event on its way into the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Deterministic.
    pub event_id: String,
    /// The type, which is the routing key too.
    pub kind: &'static str,
    /// The order it is about; events of one order go out in order.
    pub order_id: Option<OrderId>,
    /// What it tells.
    pub data: Value,
}

/// The types of events.
pub mod kind {
    /// An order was paid: deliver.
    pub const ORDER_PAID: &str = "order.paid";
    /// An order ended without a payment: release what was reserved.
    pub const ORDER_CLOSED: &str = "order.closed";
    /// Money of an order went back: roll back what it bought.
    pub const REFUND_SUCCEEDED: &str = "refund.succeeded";
    /// A refund will not happen under its number.
    pub const REFUND_FAILED: &str = "refund.failed";
    /// All the money of an order went back.
    pub const ORDER_REFUNDED: &str = "order.refunded";
    /// A person must look.
    pub const CASE_OPENED: &str = "case.opened";
    /// A person must look at a resolved case once more.
    pub const CASE_REOPENED: &str = "case.reopened";
    /// Every type.
    pub const ALL: [&str; 7] =
        [ORDER_PAID, ORDER_CLOSED, REFUND_SUCCEEDED, REFUND_FAILED, ORDER_REFUNDED, CASE_OPENED, CASE_REOPENED];
}
