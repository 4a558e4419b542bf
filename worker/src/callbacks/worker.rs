//! The worker that settles callbacks, and what it works with.

use gateway::Gateways;
use runtime::clock::Clock;
use sqlx::PgPool;
use store::cache::Renewer;

/// Settles callbacks.
pub struct CallbackWorker {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// The gateways, whose keys prove that a callback is authentic.
    pub gateways: Gateways,
    /// The clock.
    pub clock: Clock,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}
