//! The hub of open pages: one poll asks the database about every order that somebody watches. An order that cannot be read
//! keeps no other from its page.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::db::orders::{self, Order};
use shared::db::{DbError, in_time};
use shared::domain::OrderId;
use shared::panics::caught;
use shared::telemetry::chain;
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::problem::ApiError;

/// How often the database is asked while anybody watches.
const EVERY: Duration = Duration::from_millis(500);
/// How often it is asked while it does not answer.
const EVERY_WHILE_AWAY: Duration = Duration::from_secs(2);
/// Orders asked about in one statement.
const CHUNK: usize = 1000;
/// Pages that may watch one order.
const PER_ORDER: usize = 5;

/// A handle; clones share the watchers.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    watched: Mutex<HashMap<OrderId, Watched>>,
    open: AtomicUsize,
    most: usize,
    arrived: Notify,
    stop: CancellationToken,
}

struct Watched {
    newest: watch::Sender<Arc<Order>>,
    watchers: usize,
}

/// One page's view of one order; leaves the hub when dropped.
pub struct Subscription {
    hub: Hub,
    order: OrderId,
    /// The newest state known.
    pub newest: watch::Receiver<Arc<Order>>,
}

impl Hub {
    /// A hub for at most `most` pages; they end with `stop`.
    pub fn new(most: usize, stop: CancellationToken) -> Hub {
        let (watched, open) = (Mutex::default(), AtomicUsize::new(0));
        Hub(Arc::new(Inner { watched, open, most, arrived: Notify::new(), stop }))
    }

    /// Watches an order from the state just read.
    ///
    /// # Errors
    /// [`ApiError::TooManyStreams`] for the order, [`ApiError::StreamsFull`] for the process.
    pub fn watch(&self, order: Order) -> Result<Subscription, ApiError> {
        let mut watched = self.watched();
        if self.0.open.load(Ordering::Relaxed) >= self.0.most {
            return Err(ApiError::StreamsFull);
        }
        let (id, order) = (order.id, Arc::new(order));
        let fresh = || Watched { newest: watch::Sender::new(order.clone()), watchers: 0 };
        let entry = watched.entry(id).or_insert_with(fresh);
        if entry.watchers >= PER_ORDER {
            return Err(ApiError::TooManyStreams);
        }
        entry.watchers += 1;
        if entry.newest.borrow().version < order.version {
            entry.newest.send_replace(order);
        }
        let newest = entry.newest.subscribe();
        metrics::gauge!("order_streams").set((self.0.open.fetch_add(1, Ordering::Relaxed) + 1) as f64);
        self.0.arrived.notify_one();
        Ok(Subscription { hub: self.clone(), order: id, newest })
    }

    /// Asks the database until the process stops; rests while nobody watches.
    pub async fn run(&self, db: PgPool) {
        let mut away = false;
        let work = async {
            loop {
                if self.watched().is_empty() {
                    self.0.arrived.notified().await;
                }
                let asked = caught(in_time(self.ask(&db))).await.unwrap_or_else(|panic| {
                    panic.noted("payment-api", "streams", &"the orders that are watched");
                    Ok(())
                });
                if away != asked.is_err() {
                    away = !away;
                    match &asked {
                        Ok(()) => info!("Order streams see the database again"),
                        Err(error) => warn!(%error, "Order streams wait for the database"),
                    }
                }
                sleep(if away { EVERY_WHILE_AWAY } else { EVERY }).await;
            }
        };
        tokio::select! { () = work => {}, () = self.0.stop.cancelled() => {} }
    }

    /// Tells the watchers of every order that has changed.
    async fn ask(&self, db: &PgPool) -> Result<(), DbError> {
        let known: Vec<(OrderId, i64)> =
            self.watched().iter().map(|(id, watched)| (*id, watched.newest.borrow().version)).collect();
        for chunk in known.chunks(CHUNK) {
            let ids: Vec<OrderId> = chunk.iter().map(|(id, _)| *id).collect();
            let versions: HashMap<OrderId, i64> = orders::versions(db, &ids).await?.into_iter().collect();
            for (id, known) in chunk {
                if versions.get(id).is_none_or(|version| version <= known) {
                    continue;
                }
                match caught(orders::get(db, *id)).await {
                    Ok(Ok(Some(order))) => self.show(order),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) if error.blames_the_rows() => {
                        warn!(order_id = %id, error = chain(&error), "Order {id} cannot be read for its page");
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(panic) => drop(panic.noted("payment-api", "streams", id)),
                }
            }
        }
        Ok(())
    }

    /// Hands a newer state to the pages of its order.
    fn show(&self, order: Order) {
        if let Some(watched) = self.watched().get(&order.id) {
            // A page that came meanwhile may have brought a newer one.
            watched.newest.send_if_modified(|newest| {
                let newer = newest.version < order.version;
                if newer {
                    *newest = Arc::new(order);
                }
                newer
            });
        }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<OrderId, Watched>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Cancelled when the process stops.
    pub fn stop(&self) -> CancellationToken {
        self.hub.0.stop.clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watched = self.hub.watched();
        if let Some(entry) = watched.get_mut(&self.order) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                watched.remove(&self.order);
            }
        }
        metrics::gauge!("order_streams").set((self.hub.0.open.fetch_sub(1, Ordering::Relaxed) - 1) as f64);
    }
}
