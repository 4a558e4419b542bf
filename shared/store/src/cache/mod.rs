//! Copies of orders and of the configuration, in memory and in Redis. Copies are only for showing: code that decides
//! about money or about an order reads the database.
//!
//! The moment when we queried the database decides how long a copy may be used. A copy is shown for one second from
//! that moment ([`FRESH`]), however many layers it passed through. A copy in Redis carries that moment, by the clock of
//! Redis itself. Memory shows a copy from Redis only for the rest of that second. So correctness does not depend on
//! Redis receiving news of a change; the news only makes a change visible sooner. No state counts as final: even a
//! refunded order can be paid a second time. Redis stores an order for an hour and the configuration for a day. After
//! its second a copy only serves as a fence: an older version that arrives late never replaces a newer one.
//!
//! What readers can rely on:
//! - A reader that queries more than a second after a change was committed sees the change, in every process. For a
//!   paid order the bound is two seconds.
//! - Within one process, no reader sees a version and then an older one. This covers everything that the process has
//!   shown, from whatever source ([`Orders::saw`]), for all readers together, and while entries are evicted.
//! - A reader that switches to another process may see an older version there, for at most that second.
//!
//! If Redis is down, slow or wiped, we only lose speed. A call may take [`redis::LIMIT`]. A connection that fails is
//! dropped and made again in the background, and no caller waits for it. Without Redis, only memory is used.
//!
//! We do not trust Redis: a copy counts only with a valid HMAC (`shelf.rs`), and the owner of an order never comes from
//! Redis ([`Orders::get`]).
//!
//! Copies contain neither the payer nor the parameters of a payment.

mod config;
mod copies;
mod floors;
mod orders;
pub mod redis;
mod shelf;

use std::time::Duration;

use sqlx::PgPool;

pub use config::Config;
pub use orders::{Changed, OrderCopy, Orders, Renewer};
pub use redis::{Redis, RedisConfig};
pub use shelf::CopiesKey;

use shelf::Shelf;

/// How long a copy is shown, counted from the moment when we queried the database.
pub const FRESH: Duration = Duration::from_secs(1);

/// All copies that a process shows.
pub struct Cache {
    /// Orders by id.
    pub orders: Orders,
    /// What buyers can choose at present.
    pub config: Config,
}

impl Cache {
    /// Copies in memory, and behind them in Redis if there is one and it has a key.
    pub fn new(redis: Option<Redis>) -> Cache {
        let shelf = Shelf::of(redis);
        Cache { orders: Orders::new(shelf.clone()), config: Config::new(shelf) }
    }

    /// Fills the cache with what will be needed first. What cannot be read now is read when it is needed.
    pub async fn warm(&self, db: &PgPool) {
        tokio::join!(self.config.renew(db), self.orders.warm(db));
    }
}

impl Default for Cache {
    /// Copies in memory only.
    fn default() -> Cache {
        Cache::new(None)
    }
}
