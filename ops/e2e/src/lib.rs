//! End-to-end tests: the built programs as child processes, real servers, and the simulator in place of the gateways.
//!
//! Reading order: [`world`] (what a test holds), [`servers`] (the database and the broker), [`process`] (one
//! program and its log), [`http`] (the clients), [`gateways`] (the buyer's and the gateways' side), [`shop`] (the
//! merchant's frontend), [`downstream`] (the consumer of the events), [`history`] (what the independent witnesses say,
//! and whether they agree), [`books`] (when to compare them), [`load`] (buyers who never stop), [`disk`] (a disk that a
//! test can fill), [`held`] (the moment between a gateway's answer and the commit).
//!
//! No test sleeps for a fixed time to wait for something: [`eventually`] polls until a deadline.

pub mod books;
pub mod disk;
pub mod downstream;
pub mod gateways;
pub mod held;
pub mod history;
pub mod http;
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

/// The deadline for everything that has no reason to take long.
pub const SOON: Duration = Duration::from_secs(30);

/// The interval between two polls.
const LOOK: Duration = Duration::from_millis(25);

/// Polls until `look` returns a value.
///
/// # Panics
/// When `look` returns nothing in time; `what` names what was awaited.
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
