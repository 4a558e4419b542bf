//! The hub of open pages: one poll queries the database for all orders that a page watches. An order that cannot be
//! read does not block the updates of other orders.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::{OrderId, OrderStatus};
use runtime::error_chain::chain;
use runtime::panics::caught;
use sqlx::PgPool;
use store::DbError;
use store::connect::in_time;
use store::tables::hints as row;
use store::tables::hints::Hint;
use store::tables::orders::{self, Order};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::answer::problem::ApiError;
use crate::watch::hints;

/// How often the hub queries the database while any page watches.
const EVERY: Duration = Duration::from_millis(500);
/// How often the hub queries the database while the database does not answer.
const EVERY_WHILE_AWAY: Duration = Duration::from_secs(2);
/// Orders in one statement.
const CHUNK: usize = 1000;
/// Pages that may watch one order.
const PER_ORDER: usize = 5;

/// A handle. Clones share the watchers.
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
    pace: Pace,
}

/// How often the hub requests a check of an order that is watched and stays pending.
struct Pace {
    /// Hints that caused a query to the gateway. The hint of the page that opened the stream counts too.
    given: usize,
    /// Hints that the row has refused since then.
    refused: u8,
    next: Instant,
}

/// The hub repeats a refused hint after [`AGAIN`], because a query may just be under way. After this many refusals in a
/// row it waits for the normal gap.
const SOON: u8 = 4;
const AGAIN: Duration = Duration::from_secs(1);

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { given: 1, refused: 0, next: now + AGAIN }
    }

    fn after(&mut self, due: bool, now: Instant) {
        (self.given, self.refused) = if due { (self.given + 1, 0) } else { (self.given, self.refused + 1) };
        let soon = !due && self.refused < SOON;
        if !soon {
            self.refused = 0;
        }
        self.next = now + if soon { AGAIN } else { row::gap(self.given).unsigned_abs() };
    }
}

/// One page that watches one order. Dropping it removes the page from the hub.
pub struct Subscription {
    hub: Hub,
    order: OrderId,
    /// The newest known state of the order.
    pub newest: watch::Receiver<Arc<Order>>,
}

impl Hub {
    /// A hub for at most `most` pages. All pages end when `stop` is cancelled.
    pub fn new(most: usize, stop: CancellationToken) -> Hub {
        let (watched, open) = (Mutex::default(), AtomicUsize::new(0));
        Hub(Arc::new(Inner { watched, open, most, arrived: Notify::new(), stop }))
    }

    /// Starts to watch an order. `order` is the state that was just read.
    ///
    /// # Errors
    /// [`ApiError::TooManyStreams`] if the order has too many pages, [`ApiError::StreamsFull`] if the process has too
    /// many.
    pub fn watch(&self, order: Order) -> Result<Subscription, ApiError> {
        let mut watched = self.watched();
        if self.0.open.load(Ordering::Relaxed) >= self.0.most {
            return Err(ApiError::StreamsFull);
        }
        let (id, order) = (order.id, Arc::new(order));
        let now = Instant::now();
        let fresh = || Watched { newest: watch::Sender::new(order.clone()), watchers: 0, pace: Pace::new(now) };
        let entry = watched.entry(id).or_insert_with(fresh);
        if entry.watchers >= PER_ORDER {
            return Err(ApiError::TooManyStreams);
        }
        entry.watchers += 1;
        entry.pace = Pace::new(now);
        if entry.newest.borrow().version < order.version {
            entry.newest.send_replace(order);
        }
        let newest = entry.newest.subscribe();
        metrics::gauge!("order_streams").set((self.0.open.fetch_add(1, Ordering::Relaxed) + 1) as f64);
        self.0.arrived.notify_one();
        Ok(Subscription { hub: self.clone(), order: id, newest })
    }

    /// Polls the database until the process stops. It rests while no page watches.
    pub async fn run(&self, db: PgPool) {
        let mut away = false;
        let work = async {
            loop {
                if self.watched().is_empty() {
                    self.0.arrived.notified().await;
                }
                let polled = caught(in_time(self.poll(&db))).await.unwrap_or_else(|panic| {
                    panic.noted("payment-api", "streams", &"the orders that are watched");
                    Ok(())
                });
                if polled.is_ok()
                    && let Err(panic) = caught(self.hint(&db)).await
                {
                    panic.noted("payment-api", "hints", &"the orders that are watched");
                }
                if away != polled.is_err() {
                    away = !away;
                    match &polled {
                        Ok(()) => info!("Order streams can read the database again"),
                        Err(error) => warn!(error = chain(&error), "Order streams wait for the database"),
                    }
                }
                sleep(if away { EVERY_WHILE_AWAY } else { EVERY }).await;
            }
        };
        tokio::select! { () = work => {}, () = self.0.stop.cancelled() => {} }
    }

    /// Notifies the watchers of every order that has changed.
    async fn poll(&self, db: &PgPool) -> Result<(), DbError> {
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

    /// Sends a newer state to the pages of its order.
    fn show(&self, order: Order) {
        if let Some(watched) = self.watched().get(&order.id) {
            // A page that opened in the meantime may have brought a newer state.
            watched.newest.send_if_modified(|newest| {
                let newer = newest.version < order.version;
                if newer {
                    *newest = Arc::new(order);
                }
                newer
            });
        }
    }

    /// Requests checks of the watched orders that are still pending, each order at its own pace.
    async fn hint(&self, db: &PgPool) {
        let now = Instant::now();
        let is_due =
            |watched: &Watched| watched.pace.next <= now && watched.newest.borrow().status == OrderStatus::Pending;
        let due: Vec<OrderId> =
            self.watched().iter().filter(|(_, watched)| is_due(watched)).map(|(id, _)| *id).collect();
        for chunk in due.chunks(CHUNK) {
            let hinted = hints::send(db, chunk, Hint::Watched).await.unwrap_or_else(|error| {
                warn!(error = chain(&error), "The checks of watched orders were not brought forward");
                Vec::new()
            });
            let mut watched = self.watched();
            for id in chunk {
                if let Some(watched) = watched.get_mut(id) {
                    watched.pace.after(hinted.contains(id), now);
                }
            }
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
