//! Retries a batch that cannot be settled now, without returning it, and isolates a delivery that shows a defect.

use std::time::Duration;

use broker::{Delivery, Subscription, topology};
use runtime::error_chain::chain;
use runtime::panics::caught;
use sqlx::PgPool;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::consumer::outcome::{Ack, ConsumerError, Defect};

/// How long we retry a batch that cannot be settled before we return it. A delivery may be returned 20 times. So 20
/// times this is how long a database may answer and still not settle (a revoked right, a full disk) before genuine
/// messages become dead letters. Far below the half hour after which the broker takes unacknowledged deliveries back.
const IN_HAND: Duration = Duration::from_secs(300);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often a delivery may panic alone before it counts as dead.
const TRIES_ALONE: u32 = 3;

/// Waits until the database answers, so that the worker consumes nothing that it cannot settle; returns early on
/// `stop`.
pub async fn database_answers(db: &PgPool, stop: &CancellationToken) {
    let mut wait = SHORTEST_WAIT;
    while let Err(error) = store::connect::in_time(store::connect::ping(db)).await {
        if wait == SHORTEST_WAIT {
            warn!(error = chain(&error), "The database does not answer; nothing is consumed until it does");
        }
        tokio::select! { () = sleep(wait) => {}, () = stop.cancelled() => return }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    if wait > SHORTEST_WAIT {
        info!("The database answers again");
    }
}

/// Settles a batch. After an error it retries for a while without returning the deliveries.
pub(super) async fn settle_patiently<S, E>(
    queue: &str,
    batch: &[Delivery],
    subscription: &Subscription,
    stop: &CancellationToken,
    settle: &S,
) -> Result<Vec<Ack>, ConsumerError<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
    E: std::error::Error + 'static,
{
    let give_back = Instant::now() + IN_HAND;
    let mut wait = SHORTEST_WAIT;
    loop {
        let error = match settle_apart(queue, batch, settle).await {
            Err(ConsumerError::Settle(error)) => error,
            ended => return ended,
        };
        let next = Instant::now() + wait;
        if next > give_back || stop.is_cancelled() || !subscription.is_open() {
            return Err(ConsumerError::Settle(error));
        }
        metrics::counter!("amqp_batches_failed_total", "queue" => queue.to_owned()).increment(1);
        if wait == SHORTEST_WAIT {
            let reason = chain(&error);
            warn!(error = reason, deliveries = batch.len(), "A batch cannot be settled now; it will be tried again");
        }
        tokio::select! { () = sleep_until(next) => {}, () = stop.cancelled() => {} }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Settles a batch together. If that shows a defect, it settles one delivery at a time.
async fn settle_apart<S, E>(queue: &str, batch: &[Delivery], settle: &S) -> Result<Vec<Ack>, ConsumerError<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
    E: std::error::Error + 'static,
{
    let defect = match settle_once(batch, settle).await {
        Ok(acks) => return Ok(acks),
        Err(Unsettled::Error(error)) => return Err(ConsumerError::Settle(error)),
        Err(Unsettled::Defect(defect)) => defect,
    };
    metrics::counter!("amqp_batches_apart_total", "queue" => queue.to_owned()).increment(1);
    error!(queue, deliveries = batch.len(), error = %defect, "A batch showed a defect; its deliveries are settled one by one");
    let mut acks = Vec::with_capacity(batch.len());
    for delivery in batch.chunks(1) {
        acks.push(settle_alone(queue, delivery, settle).await?);
    }
    Ok(acks)
}

/// Settles one delivery, with a few tries if it shows a defect. After the last try it becomes a dead letter.
async fn settle_alone<S, E>(queue: &str, delivery: &[Delivery], settle: &S) -> Result<Ack, ConsumerError<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
    E: std::error::Error + 'static,
{
    let mut tries = 0;
    loop {
        let defect = match settle_once(delivery, settle).await {
            Ok(acks) => return Ok(acks.first().copied().unwrap_or(Ack::Dead)),
            Err(Unsettled::Error(error)) => return Err(ConsumerError::Settle(error)),
            Err(Unsettled::Defect(defect)) => defect,
        };
        tries += 1;
        if tries < TRIES_ALONE {
            continue;
        }
        if queue == topology::DEAD {
            return Err(ConsumerError::DeadLetter(defect));
        }
        let id = delivery.first().and_then(|delivery| delivery.properties.message_id().as_ref());
        let id = id.map_or("none", |id| id.as_str());
        error!(queue, id, error = %defect, "Message {id} shows a defect each time; it becomes a dead letter");
        return Ok(Ack::Dead);
    }
}

/// Why one call did not settle its deliveries.
enum Unsettled<E> {
    /// Something that passes, such as a database that is down.
    Error(E),
    /// The deliveries, or our code, are at fault: a repeat does not help.
    Defect(Defect),
}

async fn settle_once<S, E>(batch: &[Delivery], settle: &S) -> Result<Vec<Ack>, Unsettled<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
{
    match caught(Box::pin(settle(batch))).await {
        Ok(Ok(acks)) if acks.len() == batch.len() => Ok(acks),
        Ok(Ok(acks)) => Err(Unsettled::Defect(Defect::Miscounted { answers: acks.len(), deliveries: batch.len() })),
        Ok(Err(error)) => Err(Unsettled::Error(error)),
        Err(panic) => {
            let panicked = panic.noted("consumer", "batch", &format_args!("{} deliveries", batch.len()));
            Err(Unsettled::Defect(panicked.into()))
        }
    }
}
