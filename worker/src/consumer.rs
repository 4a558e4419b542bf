//! Receives deliveries in batches, settles each batch together, and acknowledges the deliveries. Only this module acks.
//!
//! The ack always follows the commit. An error in between ends the session, and the broker delivers the messages again;
//! so every effect must be idempotent. A queue allows a delivery only a few returns before it becomes a dead letter. So
//! a batch that cannot be settled now is first retried here, without being returned.
//!
//! A panic does not end the session: the batch is then settled one delivery at a time, and a delivery that panics alone
//! becomes a dead letter. This is the outermost boundary; the workers have their own around each piece of work.

use std::time::Duration;

use broker::{BrokerError, Connection, Delivery, STEP, Subscription, step, topology};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught};
use sqlx::PgPool;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How long we retry a batch that cannot be settled before we return it. A delivery may be returned 20 times. So 20
/// times this is how long a database may answer and still not settle (a revoked right, a full disk) before genuine
/// messages become dead letters. Far below the half hour after which the broker takes unacknowledged deliveries back.
const IN_HAND: Duration = Duration::from_secs(300);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often a delivery may panic alone before it counts as dead.
const TRIES_ALONE: u32 = 3;

/// The result of settling a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Its effect is durable: it leaves the queue.
    Done,
    /// It can never have an effect: it becomes a dead letter.
    Dead,
}

/// How many batches are processed at once, how large a batch may be, and how long it waits for more deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Batches that are processed at once, each from its own channel: while one waits for the database, another is
    /// prepared. With 1, batches are settled in the order of the queue; with more, there is no order.
    pub lanes: usize,
    /// The most deliveries that are settled together; each lane prefetches twice as many.
    pub max: usize,
    /// A batch is complete when no delivery has arrived for this long.
    pub gap: Duration,
    /// A batch is also complete when its first delivery has waited this long. So deliveries that arrive quickly are
    /// settled in large batches, and a single delivery waits only for `gap`.
    pub linger: Duration,
}

impl BatchOptions {
    /// One batch after another, in the order of the queue, each complete after `wait`.
    pub const fn in_order(max: usize, wait: Duration) -> BatchOptions {
        BatchOptions { lanes: 1, max, gap: wait, linger: wait }
    }
}

/// The error that ended consuming. Deliveries that were not acknowledged return to their queue.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError<E: std::error::Error + 'static> {
    /// An error of the session with the broker.
    #[error(transparent)]
    Mq(#[from] BrokerError),
    /// The batch could not be settled, even after some time of retries.
    #[error("the batch could not be settled")]
    Settle(#[source] E),
    /// A dead letter panicked alone. It stays in its queue, because there is no further queue for it.
    #[error("settling a dead letter failed")]
    DeadLetter(#[source] Defect),
    /// The ack had no effect, because the deliveries belong to a session that is over.
    #[error("the deliveries belong to a session that is over")]
    Stale,
}

/// A defect in settling: there is no result for each delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// It panicked.
    #[error("settling {0}")]
    Panicked(#[from] Panicked),
    /// The number of answers differs from the number of deliveries, so we cannot match them.
    #[error("{answers} answers for {deliveries} deliveries")]
    Miscounted {
        /// The number of answers.
        answers: usize,
        /// The number of deliveries.
        deliveries: usize,
    },
}

/// Consumes `queue` until `stop`, then finishes the deliveries that have arrived.
///
/// `settle` makes the effects of a batch durable and returns an answer for each delivery, in order. Its future is never
/// dropped before it completes.
///
/// # Errors
/// The first [`ConsumerError`], after the other lanes have finished as they do at a stop. The caller's supervisor
/// builds another session.
pub async fn run<S, E>(
    connection: &Connection,
    queue: &str,
    options: BatchOptions,
    stop: CancellationToken,
    settle: S,
) -> Result<(), ConsumerError<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
    E: std::error::Error + 'static,
{
    let max = options.max.max(1);
    let prefetch = u16::try_from(max.saturating_mul(2)).unwrap_or(u16::MAX);
    // The subscriptions outlive the last lane. Otherwise the broker would hand what one lane could not settle to
    // another lane at once, and each return counts.
    let mut subscriptions = Vec::new();
    for _ in 0..options.lanes.max(1) {
        subscriptions.push(Subscription::open(connection, queue, prefetch).await?);
    }
    let (options, stop) = (BatchOptions { max, ..options }, stop.child_token());
    let lanes = subscriptions.iter_mut().map(|lane| consume(connection, lane, options, &stop, &settle));
    let mut lanes = lanes.collect::<FuturesUnordered<_>>();
    let mut ended = Ok(());
    while let Some(outcome) = lanes.next().await {
        if let Err(error) = &outcome {
            stop.cancel();
            if ended.is_err() {
                warn!(queue, error = chain(error), "Another lane failed as well");
            }
        }
        ended = ended.and(outcome);
    }
    ended
}

/// One lane: a channel that processes one batch at a time.
async fn consume<S, E>(
    connection: &Connection,
    subscription: &mut Subscription,
    options: BatchOptions,
    stop: &CancellationToken,
    settle: &S,
) -> Result<(), ConsumerError<E>>
where
    S: AsyncFn(&[Delivery]) -> Result<Vec<Ack>, E>,
    E: std::error::Error + 'static,
{
    let queue = &subscription.queue().to_owned();
    let mut batch = Vec::with_capacity(options.max);
    let mut more = true;
    while more {
        more = collect(subscription, &mut batch, options, stop).await?;
        if !connection.status().connected() || !subscription.is_open() {
            return Err(BrokerError::Lost.into());
        }
        if batch.is_empty() {
            // In some releases a node that is cut off from the others keeps its clients connected and delivers nothing.
            if more && !subscription.is_cancelled() && topology::consumers(connection, queue).await? == 0 {
                return Err(BrokerError::Unheard(queue.to_owned()).into());
            }
            continue;
        }
        count_taken(queue, &batch);
        crash::at(Point::BatchTaken);
        let acks = settle_patiently(queue, &batch, subscription, stop, settle).await?;
        crash::at(Point::BatchSettled);
        acknowledge(queue, &batch, &acks).await?;
        crash::at(Point::BatchAcked);
        batch.clear();
    }
    subscription.close().await;
    Ok(())
}

/// Waits until the database answers, so that the worker consumes nothing that it cannot settle; returns early on
/// `stop`.
pub async fn database_answers(db: &PgPool, stop: &CancellationToken) {
    let mut wait = SHORTEST_WAIT;
    while let Err(error) = store::connect::in_time(store::connect::ping(db)).await {
        if wait == SHORTEST_WAIT {
            warn!(%error, "The database does not answer; nothing is consumed until it does");
        }
        tokio::select! { () = sleep(wait) => {}, () = stop.cancelled() => return }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    if wait > SHORTEST_WAIT {
        info!("The database answers again");
    }
}

/// Fills `batch` with up to `max` deliveries. It returns earlier after a `gap` without one, or `linger` after the
/// first. Returns false after the last delivery.
async fn collect(
    subscription: &mut Subscription,
    batch: &mut Vec<Delivery>,
    options: BatchOptions,
    stop: &CancellationToken,
) -> Result<bool, BrokerError> {
    // It also returns from time to time without a delivery, so that the caller notices a dead session.
    let deadline = sleep(STEP);
    tokio::pin!(deadline);
    let mut latest = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !subscription.is_cancelled() => subscription.cancel().await?,
            delivery = subscription.next() => {
                let Some(delivery) = delivery? else { return Ok(false) };
                let now = Instant::now();
                if batch.is_empty() {
                    latest = now + options.linger;
                }
                deadline.as_mut().reset(latest.min(now + options.gap));
                batch.push(delivery);
                if batch.len() == options.max {
                    return Ok(true);
                }
            }
            () = &mut deadline => return Ok(true),
        }
    }
}

/// Settles a batch. After an error it retries for a while without returning the deliveries.
async fn settle_patiently<S, E>(
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

/// Rejects the dead deliveries one by one, then acknowledges the rest with one ack.
///
/// A multiple ack covers every unacknowledged delivery on the channel up to its tag. Here that is exactly this batch:
/// the channel has one consumer, batches are in the order of delivery, and all earlier batches are settled completely.
async fn acknowledge<E: std::error::Error + 'static>(
    queue: &str,
    batch: &[Delivery],
    acks: &[Ack],
) -> Result<(), ConsumerError<E>> {
    let mut last_done = None;
    for (delivery, ack) in batch.iter().zip(acks) {
        match ack {
            Ack::Done => last_done = Some(delivery),
            // `reject`, because the meaning of a nack differs between releases of the broker.
            Ack::Dead => {
                settled(step("rejecting", delivery.reject(BasicRejectOptions { requeue: false })).await?)?;
                crash::at(Point::BatchRejected);
            }
        }
    }
    if let Some(delivery) = last_done {
        settled(step("acknowledging", delivery.ack(BasicAckOptions { multiple: true })).await?)?;
    }
    let dead = acks.iter().filter(|ack| **ack == Ack::Dead).count();
    for (name, number) in [("done", acks.len() - dead), ("dead", dead)] {
        let labels = [("queue", queue.to_owned()), ("ack", name.to_owned())];
        metrics::counter!("amqp_acked_total", &labels).increment(number as u64);
    }
    Ok(())
}

/// The client library returns false when it acknowledged nothing.
fn settled<E: std::error::Error + 'static>(sent: bool) -> Result<(), ConsumerError<E>> {
    if sent { Ok(()) } else { Err(ConsumerError::Stale) }
}

fn count_taken(queue: &str, batch: &[Delivery]) {
    let again = batch.iter().filter(|delivery| delivery.redelivered).count();
    metrics::counter!("amqp_consumed_total", "queue" => queue.to_owned()).increment(batch.len() as u64);
    metrics::counter!("amqp_redelivered_total", "queue" => queue.to_owned()).increment(again as u64);
    metrics::histogram!("amqp_batch_size", "queue" => queue.to_owned()).record(batch.len() as f64);
}
