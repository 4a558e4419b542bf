//! Fulfilment events: what we report to downstream systems, and under which id.
//!
//! The id is derived from the type and the subject of the event, so a consumer can recognise a repeat. On the wire an
//! event is a CloudEvent 1.0 in AMQP binary mode: the attributes are headers, and `data` is the JSON body.

use serde_json::Value;

use crate::ids::OrderId;

/// `source` of every event.
pub const SOURCE: &str = "/payment";

/// An event on its way into the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The id, which is deterministic.
    pub event_id: String,
    /// The type, which is also the routing key.
    pub kind: &'static str,
    /// The order that it is about. Events of one order are published in order.
    pub order_id: Option<OrderId>,
    /// The content.
    pub data: Value,
}

/// The types of events.
pub mod kind {
    /// An order was paid: deliver the goods.
    pub const ORDER_PAID: &str = "order.paid";
    /// An order was closed without a payment: release what was reserved.
    pub const ORDER_CLOSED: &str = "order.closed";
    /// Money of an order was returned: roll back what it bought.
    pub const REFUND_SUCCEEDED: &str = "refund.succeeded";
    /// A refund will not happen under its number.
    pub const REFUND_FAILED: &str = "refund.failed";
    /// A refund was requested, and a person must approve it.
    pub const REFUND_REQUESTED: &str = "refund.requested";
    /// A request for a refund was declined.
    pub const REFUND_DECLINED: &str = "refund.declined";
    /// A refund was taken back before the gateway had it.
    pub const REFUND_WITHDRAWN: &str = "refund.withdrawn";
    /// The gateway accepted a refund and could not deliver the money.
    pub const REFUND_ABNORMAL: &str = "refund.abnormal";
    /// A payment arrived that its order was not owed.
    pub const EXTRA_PAYMENT_RECEIVED: &str = "extra_payment.received";
    /// Money of a payment that was not owed was returned.
    pub const EXTRA_PAYMENT_REFUNDED: &str = "extra_payment.refunded";
    /// A refund of a payment that was not owed will not happen under its number.
    pub const EXTRA_PAYMENT_REFUND_FAILED: &str = "extra_payment.refund_failed";
    /// All the money of an order was returned.
    pub const ORDER_REFUNDED: &str = "order.refunded";
    /// A person must look at a new case.
    pub const CASE_OPENED: &str = "case.opened";
    /// A person must look at a resolved case again.
    pub const CASE_REOPENED: &str = "case.reopened";
    /// Every type.
    pub const ALL: [&str; 14] = [
        ORDER_PAID,
        ORDER_CLOSED,
        REFUND_REQUESTED,
        REFUND_DECLINED,
        REFUND_WITHDRAWN,
        REFUND_SUCCEEDED,
        REFUND_FAILED,
        REFUND_ABNORMAL,
        ORDER_REFUNDED,
        EXTRA_PAYMENT_RECEIVED,
        EXTRA_PAYMENT_REFUNDED,
        EXTRA_PAYMENT_REFUND_FAILED,
        CASE_OPENED,
        CASE_REOPENED,
    ];
}
