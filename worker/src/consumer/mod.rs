//! Receives deliveries in batches, settles each batch together, and acknowledges the deliveries. Only this file acks.
//!
//! The ack always follows the commit. An error in between ends the session, and the broker delivers the messages again;
//! so every effect must be idempotent. A queue allows a delivery only a few returns before it becomes a dead letter. So
//! a batch that cannot be settled now is first retried (`patience`), without being returned.
//!
//! A panic does not end the session: the batch is then settled one delivery at a time, and a delivery that panics alone
//! becomes a dead letter. This is the outermost boundary; the workers have their own around each piece of work.

use broker::{BrokerError, Connection, Delivery, STEP, Subscription, step, topology};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

mod options;
mod outcome;
mod patience;

pub use options::BatchOptions;
pub use outcome::{Ack, ConsumerError, Defect};
pub use patience::database_answers;

use patience::settle_patiently;

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

/// One lane: a channel that processes one batch at a time. It acknowledges a batch only after `settle` has made its
/// effects durable.
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
                return Err(BrokerError::ConsumerUnknown(queue.to_owned()).into());
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
