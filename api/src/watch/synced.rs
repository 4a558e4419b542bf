//! What a sync of an order has found.

use store::tables::orders::Order;
use time::OffsetDateTime;

/// The result of a sync. All requests about one order share it.
pub struct Synced {
    /// Our record before.
    pub before: Order,
    /// Our record now.
    pub after: Order,
    /// When the gateway last answered, and the state in its own words. `None`: it was never queried.
    pub gateway: Option<(OffsetDateTime, String)>,
    /// Whether the gateway has answered since the request.
    pub answered: bool,
}
