//! Whole flows: the built programs as child processes, real servers, and the simulator in the gateways' place.
//!
//! Reading order: [`world`] (what a test holds), [`servers`] (where database and broker are), [`process`] (one program
//! and its log), [`gateways`] (the buyer's and the gateways' side), [`shop`] (the merchant's frontend), [`downstream`]
//! (who consumes the events), [`history`] (what the independent witnesses tell, and whether it agrees), [`books`] (when to
//! ask them), [`load`] (buyers who never stop), [`disk`] (one that can be full), [`held`] (the moment between a gateway's answer and the commit).
//!
//! Nothing here sleeps to wait for something: [`eventually`] looks until a deadline.

pub mod books;
pub mod disk;
pub mod downstream;
pub mod gateways;
pub mod held;
pub mod history;
pub mod load;
pub mod metrics;
pub mod process;
pub mod secrets;
pub mod servers;
pub mod shop;
pub mod world;

use std::time::{Duration, Instant};

pub use gateway_sim::ledger::Gateway;
pub use gateway_sim::notify::{Overrides, SignedCallback, Wrong};
pub use load::Made;
pub use shop::Order;
pub use world::{Setup, World};

/// How long anything may take that has no reason to take long.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(25);

/// Looks until there is something to see.
///
/// # Panics
/// When there is nothing to see in time; `what` says what was waited for.
pub async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(began.elapsed() < within, "not within {} s: {what}", within.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// The path segment and column value of a gateway.
#[must_use]
pub fn slug(gateway: Gateway) -> &'static str {
    match gateway {
        Gateway::Alipay => "alipay",
        Gateway::Wechat => "wechat",
    }
}

/// A text that no other run uses.
#[must_use]
pub fn unique() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}
