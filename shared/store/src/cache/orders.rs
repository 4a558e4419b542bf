//! `payment_order:{id}`: orders as their owners see them.

use runtime::error_chain::chain;
use std::sync::Arc;
use std::time::Duration;

use domain::{OrderId, UserId};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::cache::copies::{Bounds, Copied, Copies, Trust};
use crate::cache::redis::Redis;
use crate::cache::shelf::Shelf;
use crate::error::DbError;
use crate::tables::orders::{self, Order};

/// The approximate number of bytes of orders in memory.
const MEMORY: u64 = 12 << 20;
/// How many orders are loaded at the start: those that open pages will query.
const WARM: i64 = 500;
/// For how many orders a process remembers the owner: about 8 MB.
const OWNERS: u64 = 50_000;
/// The largest number of renewals that a process runs at the same time. Further changes are left to the readers, which
/// read the database themselves.
const AT_ONCE: usize = 2;

/// An order as its owner sees it. It holds nothing that we send to the gateway, because that may name the payer.
///
/// It is not an [`Order`], so nothing decides by a copy: what decides takes an order that the database has just shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCopy(Order);

impl OrderCopy {
    /// The order as it was at some moment, for showing.
    pub fn order(&self) -> &Order {
        &self.0
    }
}

impl From<Order> for OrderCopy {
    fn from(order: Order) -> OrderCopy {
        OrderCopy(Order { prepay: Value::Null, ..order })
    }
}

fn key(id: OrderId) -> String {
    format!("payment_order:{id}")
}

impl Copied for OrderCopy {
    fn key(&self) -> String {
        key(self.0.id)
    }

    fn version(&self) -> i64 {
        self.0.version
    }
}

/// The orders that have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The orders with these ids.
    Ids(Vec<OrderId>),
    /// The orders with these order numbers. Numbers without an order are ignored.
    Numbers(Vec<String>),
}

impl Changed {
    fn is_empty(&self) -> bool {
        match self {
            Changed::Ids(ids) => ids.is_empty(),
            Changed::Numbers(numbers) => numbers.is_empty(),
        }
    }

    /// The orders as the database has them now.
    async fn read(&self, db: &PgPool) -> Result<Vec<OrderCopy>, DbError> {
        let found = match self {
            Changed::Ids(ids) => orders::by_ids(db, ids).await?,
            Changed::Numbers(numbers) => orders::by_order_nos(db, numbers).await?,
        };
        Ok(found.into_iter().map(OrderCopy::from).collect())
    }
}

fn copies(shelf: Option<Shelf>, memory: u64, floors: usize) -> Copies<OrderCopy> {
    Copies::new(Bounds { name: "order", stored_for: Duration::from_secs(3600), memory, floors }, shelf)
}

/// The copies that a process shows. See [`super`].
pub struct Orders {
    copies: Copies<OrderCopy>,
    /// The owner of each order, as this process read it from PostgreSQL. It never changes.
    owners: Cache<OrderId, UserId>,
}

impl Orders {
    /// Copies in memory, and behind them in Redis if there is a [`Shelf`].
    pub(super) fn new(shelf: Option<Shelf>) -> Orders {
        Orders { copies: copies(shelf, MEMORY, 1 << 16), owners: Cache::new(OWNERS) }
    }

    /// An order as it was at some moment of the last second. Use it for showing, never for deciding.
    ///
    /// Its `user_id` comes from PostgreSQL, never from Redis: the first copy of an order that a process shows comes
    /// from PostgreSQL, and later copies from Redis must name the same owner.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn get(&self, db: &PgPool, id: OrderId) -> Result<Option<Arc<OrderCopy>>, DbError> {
        let key = key(id);
        if let Some(order) = self.copies.fresh(&key) {
            return Ok(Some(order));
        }
        let trusted = |copy: &OrderCopy| match self.owners.get(&id) {
            Some(owner) if owner == copy.0.user_id => Trust::Shown,
            Some(_) => Trust::Contradicted,
            None => Trust::NotYet,
        };
        let load = async { Ok(orders::get(db, id).await?.map(OrderCopy::from).inspect(|order| self.learn(order))) };
        self.copies.fetch(&key, trusted, load).await
    }

    /// Records that an order was shown as the database had it. This process shows no older version from now on.
    pub fn saw(&self, order: &Order) {
        self.copies.saw(&key(order.id), order.version);
        self.owners.insert(order.id, order.user_id.clone());
    }

    /// Reads what the database holds now. The process that has just changed it calls this.
    pub async fn renew(&self, db: &PgPool, changed: Changed) {
        let load = async { Ok(changed.read(db).await?.into_iter().inspect(|order| self.learn(order)).collect()) };
        if let Err(error) = self.copies.renew(load).await {
            warn!(error = chain(&error), "Copies of orders were not renewed; they are read again within a second");
        }
    }

    /// Remembers the owner that PostgreSQL states for this order.
    fn learn(&self, order: &OrderCopy) {
        self.owners.insert(order.0.id, order.0.user_id.clone());
    }

    /// Loads the newest orders.
    pub(super) async fn warm(&self, db: &PgPool) {
        let newest = async {
            let newest = orders::newest(db, WARM).await?.into_iter().map(OrderCopy::from);
            Ok(newest.inspect(|order| self.learn(order)).collect())
        };
        if let Err(error) = self.copies.renew(newest).await {
            warn!(
                error = chain(&error),
                "No orders were loaded into memory at the start; each is read when it is needed"
            );
        }
    }
}

/// Writes changed orders to Redis, for processes that change orders and show none.
#[derive(Clone, Default)]
pub struct Renewer(Option<Arc<Desk>>);

struct Desk {
    copies: Copies<OrderCopy>,
    turns: Arc<Semaphore>,
}

impl Renewer {
    /// Writes to Redis, if there is one and it has a key. Otherwise the other processes see a change within a second by
    /// themselves.
    pub fn new(redis: Option<Redis>) -> Renewer {
        let desk = |shelf| Desk { copies: copies(Some(shelf), 0, 1), turns: Arc::new(Semaphore::new(AT_ONCE)) };
        Renewer(Shelf::of(redis).map(|shelf| Arc::new(desk(shelf))))
    }

    /// Writes these orders again, in the background, so the process that changes them does not wait. Call it after the
    /// commit.
    pub fn renew(&self, db: &PgPool, changed: Changed) {
        let Some(desk) = self.0.clone().filter(|_| !changed.is_empty()) else { return };
        let Ok(turn) = desk.turns.clone().try_acquire_owned() else {
            metrics::counter!("cache_renewals_skipped_total").increment(1);
            return;
        };
        let db = db.clone();
        tokio::spawn(async move {
            if let Err(error) = desk.copies.pass_on(changed.read(&db)).await {
                warn!(error = chain(&error), "Copies of orders were not renewed; they are read again within a second");
            }
            drop(turn);
        });
    }
}
