//! Copies of orders and of the configuration, in memory and in Redis. Copies are for showing: whatever decides about money
//! or about an order reads the database.
//!
//! What a copy may be used for follows from when the database was asked for it. A copy is shown for one second from that
//! moment ([`FRESH`]), however many layers it went through: the copy in Redis carries the
//! moment, by the clock of Redis itself, and memory shows what it took from there no longer than what is left of the second.
//! So it does not matter whether the news of a change ever reach Redis: they only make a change seen sooner. Nothing is taken
//! for final: even a refunded order can be paid a second time. Redis keeps an order for an hour and the configuration for a
//! day, past its second as a fence: an older version that comes late never replaces a newer one.
//!
//! What that promises to readers:
//! - Whoever asks more than a second after a change was committed sees it, in every process. The bound on a paid order is
//!   twice that.
//! - Within a process no reader sees a version and, asking again after that, an older one. This holds for everything the
//!   process has shown, whatever way it took ([`Orders::saw`]), for all readers together, and while entries are evicted.
//! - A reader who changes over to another process may meet an older version there, for no longer than that second.
//!
//! Redis that is dead, slow or wiped costs speed only: a call has [`redis::LIMIT`], a connection that fails is given up and
//! made again in the background, and until it is there nobody waits for it. Without Redis memory alone is used.
//!
//! Redis is not trusted: a copy counts only with its HMAC (`shelf.rs`), and who may read an order is never read from Redis
//! ([`Orders::get`]).
//!
//! What is kept names neither payer nor parameters of a payment.

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

/// For how long a copy is shown, from the moment at which the database was asked.
pub const FRESH: Duration = Duration::from_secs(1);

/// All copies that a process shows.
pub struct Cache {
    /// Orders by id.
    pub orders: Orders,
    /// What buyers may choose just now.
    pub config: Config,
}

impl Cache {
    /// In memory, and behind it in Redis if there is one and it has a key.
    pub fn new(redis: Option<Redis>) -> Cache {
        let shelf = Shelf::of(redis);
        Cache { orders: Orders::new(shelf.clone()), config: Config::new(shelf) }
    }

    /// Fills it with what will be asked for first. What cannot be had now is asked for when it is needed.
    pub async fn warm(&self, db: &PgPool) {
        tokio::join!(self.config.renew(db), self.orders.warm(db));
    }
}

impl Default for Cache {
    /// In memory alone.
    fn default() -> Cache {
        Cache::new(None)
    }
}
