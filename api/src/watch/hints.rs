//! Brings forward the check of a pending order whose buyer has come back, or is waiting for the payment to appear.
//!
//! The row of the check decides for all processes together ([`store::tables::hints`]), and the check worker queries the
//! gateway. This process only avoids database statements that cannot have an effect: it remembers for a minute when
//! each order was last read. A hint never delays the answer of its request. A hint that finds no free turn is dropped.

use runtime::error_chain::chain;
use std::sync::Arc;
use std::time::Duration;

use domain::{OrderId, OrderStatus};
use moka::sync::Cache;
use sqlx::PgPool;
use store::DbError;
use store::connect::in_time;
use store::tables::hints::{Hint, hint};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;

/// A read after a pause this long means that the buyer has come back.
const PAUSE: Duration = Duration::from_secs(10);
/// The shortest time between two statements about one order.
const APART: Duration = Duration::from_secs(1);
/// How many orders are remembered.
const REMEMBERED: u64 = 20_000;
/// How long an order is remembered after its last read.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How many statements run at once.
const AT_ONCE: usize = 4;

/// A handle. Clones share the same memory.
#[derive(Clone)]
pub struct Hints(Arc<Inner>);

struct Inner {
    seen: Cache<OrderId, Seen>,
    turns: Arc<Semaphore>,
}

/// When this process last read the order, and when it last sent which hint.
#[derive(Clone, Copy)]
struct Seen {
    read: Instant,
    sent: (Instant, Hint),
}

impl Default for Hints {
    fn default() -> Hints {
        let seen = Cache::builder().max_capacity(REMEMBERED).time_to_idle(FORGOTTEN).build();
        Hints(Arc::new(Inner { seen, turns: Arc::new(Semaphore::new(AT_ONCE)) }))
    }
}

impl Hints {
    /// The buyer has come with a proof, or a page begins to watch the order.
    pub fn came_back(&self, db: &PgPool, order: (OrderId, OrderStatus)) {
        self.give(db, order, true);
    }

    /// A client has read the order.
    pub fn read(&self, db: &PgPool, order: (OrderId, OrderStatus)) {
        self.give(db, order, false);
    }

    fn give(&self, db: &PgPool, (order, status): (OrderId, OrderStatus), back: bool) {
        if status != OrderStatus::Pending {
            return;
        }
        let Some(kind) = self.worth(order, Instant::now(), back) else { return };
        let Ok(turn) = self.0.turns.clone().try_acquire_owned() else {
            return count(kind, "left_out", 1);
        };
        let db = db.clone();
        tokio::spawn(async move {
            // A lost hint is harmless: the next one has the same effect.
            if let Err(error) = send(&db, &[order], kind).await {
                warn!(error = chain(&error), order_id = %order, "A check was not brought forward");
            }
            drop(turn);
        });
    }

    /// The hint that is worth a database statement now, if any.
    fn worth(&self, order: OrderId, now: Instant, back: bool) -> Option<Hint> {
        let known = self.0.seen.get(&order);
        let back = back || known.is_none_or(|seen| now.duration_since(seen.read) >= PAUSE);
        let kind = if back { Hint::Back } else { Hint::Watched };
        // A row that has just refused the weaker hint may accept the stronger one.
        let spent = known.map(|seen| seen.sent).filter(|(at, sent)| now.duration_since(*at) < APART && kind <= *sent);
        self.0.seen.insert(order, Seen { read: now, sent: spent.unwrap_or((now, kind)) });
        spent.is_none().then_some(kind)
    }
}

/// Sends hints about several orders. Returns the orders whose checks are now due: the gateway will be queried about
/// them.
///
/// # Errors
/// [`DbError`].
pub async fn send(db: &PgPool, orders: &[OrderId], kind: Hint) -> Result<Vec<OrderId>, DbError> {
    let due = in_time(hint(db, orders, kind)).await.inspect_err(|_| count(kind, "error", orders.len()))?;
    count(kind, "asked", due.len());
    count(kind, "not_yet", orders.len() - due.len());
    Ok(due)
}

fn count(kind: Hint, outcome: &'static str, number: usize) {
    let labels = [("kind", kind.as_str()), ("outcome", outcome)];
    metrics::counter!("check_hints_total", &labels).increment(number as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_watches_and_who_comes_after_a_pause_is_back() {
        let (hints, began) = (Hints::default(), Instant::now());
        let (order, other) = (OrderId::from_u128(1), OrderId::from_u128(2));
        let at = |millis| began + Duration::from_millis(millis);
        assert_eq!(hints.worth(order, at(0), false), Some(Hint::Back));
        assert_eq!(hints.worth(order, at(999), false), None);
        assert_eq!(hints.worth(other, at(999), false), Some(Hint::Back));
        assert_eq!(hints.worth(order, at(1000), false), Some(Hint::Watched));
        assert_eq!(hints.worth(order, at(1500), true), Some(Hint::Back));
        assert_eq!(hints.worth(order, at(2000), true), None, "the row would refuse it");
        assert_eq!(hints.worth(order, at(11_999), false), Some(Hint::Watched));
        assert_eq!(hints.worth(order, at(21_999), false), Some(Hint::Back));
    }
}
