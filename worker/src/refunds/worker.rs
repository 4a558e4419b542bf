//! The worker of refunds, and what it works with.

use gateway::Gateways;
use runtime::clock::Clock;
use sqlx::PgPool;
use store::cache::Renewer;

use crate::refunds::budget::Budget;

/// Works on refunds.
pub struct RefundWorker {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// The gateways to call.
    pub gateways: Gateways,
    /// The base of the callback routes, as the gateways see them.
    pub public_url: String,
    /// The clock.
    pub clock: Clock,
    /// How many requests may be under way.
    pub budget: Budget,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}
