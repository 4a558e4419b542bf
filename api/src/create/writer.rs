//! Orders that arrive together are written together: one statement, one commit, one wait for the disk.
//!
//! No order waits for other orders to arrive. Orders that arrive while a statement runs wait for it, and go together in
//! the next statement. Under low load each order is written alone. A panic affects one order: its lane continues.

use std::slice;
use std::sync::Arc;

use futures_util::future::join_all;
use runtime::crash::{self, Point};
use runtime::panics::caught;
use sqlx::PgPool;
use store::DbError;
use store::retry::retry;
use store::tables::orders::{self, Created, NewOrder};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Statements that run at once: while one waits for the disk, the next one is executed.
const LANES: usize = 2;
/// The most orders in one statement.
const GROUP: usize = 64;

/// See the module. Dropping the writer ends its lanes.
pub struct OrderWriter {
    db: PgPool,
    jobs: mpsc::Sender<Job>,
}

/// An order, and the channel for its result.
struct Job {
    new: NewOrder,
    done: oneshot::Sender<Result<Created, DbError>>,
}

impl OrderWriter {
    /// Starts a writer and its lanes. Needs a tokio runtime.
    pub fn start(db: PgPool) -> OrderWriter {
        let (jobs, waiting) = mpsc::channel(GROUP);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..LANES {
            tokio::spawn(lane(db.clone(), waiting.clone()));
        }
        OrderWriter { db, jobs }
    }

    /// See [`orders::create`]. No two orders under way may have the same user and key.
    ///
    /// # Errors
    /// [`DbError`]. If the connection was lost, the order may still have been created.
    pub async fn create(&self, new: NewOrder) -> Result<Created, DbError> {
        let (done, written) = oneshot::channel();
        match self.jobs.send(Job { new, done }).await {
            Ok(()) => written.await.unwrap_or(Err(DbError::Moved)),
            // The lanes are gone. Only a panic can explain that.
            Err(mpsc::error::SendError(Job { new, .. })) => alone(&self.db, new).await,
        }
    }
}

/// Writes one group after another. Only one lane at a time waits for the next group.
async fn lane(db: PgPool, waiting: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut jobs = Vec::with_capacity(GROUP);
    while waiting.lock().await.recv_many(&mut jobs, GROUP).await > 0 {
        let (new, done): (Vec<_>, Vec<_>) = jobs.drain(..).map(|Job { new, done }| (new, done)).unzip();
        for (done, created) in done.into_iter().zip(write(&db, new).await) {
            // An order that panicked has no result. Dropping `done` gives an error to the request that waits.
            let Some(created) = created else { continue };
            // The request may be gone. Its order is created anyway, as if the client had left a moment later.
            let _ = done.send(created);
        }
    }
}

/// Writes all orders in one statement. If it fails, each order is tried alone, so that one bad order does not affect
/// the others. `None`: the order panicked.
async fn write(db: &PgPool, new: Vec<NewOrder>) -> Vec<Option<Result<Created, DbError>>> {
    match caught(retry(|| create(db, &new))).await {
        Ok(Ok(created)) => return created.into_iter().map(|created| Some(Ok(created))).collect(),
        Ok(Err(error)) if new.len() == 1 => return vec![Some(Err(error))],
        Ok(Err(_)) => {}
        Err(panic) => drop(panic.noted("payment-api", "orders", &format_args!("{} orders", new.len()))),
    }
    let each = new.into_iter().map(async |new| {
        let order_no = new.order_no.clone();
        let created = caught(alone(db, new)).await;
        created.map_err(|panic| panic.noted("payment-api", "orders", &order_no)).ok()
    });
    join_all(each).await
}

async fn alone(db: &PgPool, new: NewOrder) -> Result<Created, DbError> {
    retry(|| create(db, slice::from_ref(&new))).await?.pop().ok_or(DbError::Moved)
}

async fn create(db: &PgPool, new: &[NewOrder]) -> Result<Vec<Created>, DbError> {
    for new in new {
        let _ = crash::met(Point::OrderDrafted, new.order_no.as_str());
    }
    orders::create(db, new).await
}
