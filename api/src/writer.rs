//! Orders that come together are written together: one statement, one commit, one wait for the disk.
//!
//! Nobody waits for company. While a statement is under way, those that come meanwhile wait for its lane, and go together
//! in the next one; on a quiet day each goes alone. A panic concerns one order: its lane goes on.

use std::slice;
use std::sync::Arc;

use futures_util::future::join_all;
use runtime::crash::{self, Point};
use runtime::panics::caught;
use sqlx::PgPool;
use store::DbError;
use store::retry::anew;
use store::tables::orders::{self, Created, NewOrder};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Statements under way at once: while one waits for the disk, the next one is carried out.
const LANES: usize = 2;
/// The most orders in one statement.
const GROUP: usize = 64;

/// See the module. Its lanes end with it.
pub struct OrderWriter {
    db: PgPool,
    jobs: mpsc::Sender<Job>,
}

/// An order, and whom to tell.
struct Job {
    new: NewOrder,
    done: oneshot::Sender<Result<Created, DbError>>,
}

impl OrderWriter {
    /// A writer with its lanes. Needs a tokio runtime.
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
    /// [`DbError`]; the order may have been made all the same when the connection was lost.
    pub async fn create(&self, new: NewOrder) -> Result<Created, DbError> {
        let (done, written) = oneshot::channel();
        match self.jobs.send(Job { new, done }).await {
            Ok(()) => written.await.unwrap_or(Err(DbError::Moved)),
            // The lanes are gone, which only a panic explains.
            Err(mpsc::error::SendError(Job { new, .. })) => alone(&self.db, new).await,
        }
    }
}

/// Writes group after group; one lane waits for the next at a time.
async fn lane(db: PgPool, waiting: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut jobs = Vec::with_capacity(GROUP);
    while waiting.lock().await.recv_many(&mut jobs, GROUP).await > 0 {
        let (new, done): (Vec<_>, Vec<_>) = jobs.drain(..).map(|Job { new, done }| (new, done)).unzip();
        for (done, created) in done.into_iter().zip(write(&db, new).await) {
            // One that panicked has no answer: dropping `done` is an error for the request that waits.
            let Some(created) = created else { continue };
            // Whoever asked may have gone; his order is made all the same, as if he had gone a moment later.
            let _ = done.send(created);
        }
    }
}

/// One statement for all. If it fails, each is tried alone, so that one order's fault is no other's. `None`: it panicked.
async fn write(db: &PgPool, new: Vec<NewOrder>) -> Vec<Option<Result<Created, DbError>>> {
    match caught(anew(|| create(db, &new))).await {
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
    anew(|| create(db, slice::from_ref(&new))).await?.pop().ok_or(DbError::Moved)
}

async fn create(db: &PgPool, new: &[NewOrder]) -> Result<Vec<Created>, DbError> {
    for new in new {
        let _ = crash::met(Point::OrderDrafted, new.order_no.as_str());
    }
    orders::create(db, new).await
}
