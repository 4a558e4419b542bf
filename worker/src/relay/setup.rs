//! The relay, and what it works with.

use std::collections::HashSet;

use broker::Publisher;
use domain::message::event::kind::{
    CASE_OPENED, CASE_REOPENED, EXTRA_PAYMENT_RECEIVED, EXTRA_PAYMENT_REFUND_FAILED, EXTRA_PAYMENT_REFUNDED,
    REFUND_ABNORMAL, REFUND_DECLINED, REFUND_REQUESTED, REFUND_WITHDRAWN,
};
use runtime::clock::Clock;
use secrecy::SecretString;
use sqlx::PgPool;
use store::cache::Renewer;

use super::retention::Periods;

/// Event types that a consumer does not have to bind.
const OPTIONAL: [&str; 9] = [
    REFUND_REQUESTED,
    REFUND_DECLINED,
    REFUND_WITHDRAWN,
    REFUND_ABNORMAL,
    EXTRA_PAYMENT_RECEIVED,
    EXTRA_PAYMENT_REFUNDED,
    EXTRA_PAYMENT_REFUND_FAILED,
    CASE_OPENED,
    CASE_REOPENED,
];

/// The settings of an operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Event types that count as published even if no queue is bound for them.
    pub optional_events: HashSet<String>,
    /// The wait before we try again to publish an event for which no queue is bound.
    pub unroutable_retry: time::Duration,
    /// How far back events are published again after the broker was wiped.
    pub republish: time::Duration,
    /// How long rows are stored.
    pub periods: Periods,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            optional_events: OPTIONAL.map(str::to_owned).into(),
            unroutable_retry: time::Duration::seconds(30),
            republish: time::Duration::days(7),
            periods: Periods::default(),
        }
    }
}

/// Publishes due jobs and new events to the broker.
pub struct Relay {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// Publishes on one channel, so that events stay in their order.
    pub publisher: Publisher,
    /// The broker's address, for the session that looks after the topology.
    pub amqp_url: SecretString,
    /// The clock.
    pub clock: Clock,
    /// The settings of an operator.
    pub settings: Settings,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}
