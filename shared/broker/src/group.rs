//! Group commit on one channel.
//!
//! One task owns a channel. The client library takes a delivery tag and queues the frames in two steps, so tasks that
//! share a channel would get each other's confirms. We store and read every confirm, because the library's own "wait
//! for all" hides nacks. We answer no caller before the whole group is confirmed: the library attaches a returned
//! message to whichever confirm is resolved next, so we match returns by message id.

use std::collections::HashSet;
use std::future::ready;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, ConnectionStatus, PublisherConfirm};
use runtime::crash::{self, Point};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::BrokerError;
use crate::publish::{Message, PublishError};
use crate::step::STEP;

/// A persistent message: on disk before it is confirmed.
const PERSISTENT: u8 = 2;

/// A message to publish, in AMQP terms, with the caller that waits for it.
pub(super) struct Job {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: bytes::Bytes,
    caller: Caller,
}

/// The caller that waits for the proof of the message with this id.
struct Caller {
    id: String,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Job {
    /// # Errors
    /// [`PublishError::Invalid`] if a name is too long for AMQP.
    pub(super) fn new(message: Message, done: oneshot::Sender<Result<(), PublishError>>) -> Result<Job, PublishError> {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short("message id", &message.id)?)
            .with_content_type(short("content type", &message.content_type)?);
        if let Some(kind) = &message.kind {
            properties = properties.with_type(short("type", kind)?);
        }
        if !message.headers.is_empty() {
            let mut headers = FieldTable::default();
            for (name, value) in message.headers {
                headers.insert(short("header name", &name)?, AMQPValue::LongString(value.into()));
            }
            properties = properties.with_headers(headers);
        }
        Ok(Job {
            exchange: short("exchange", &message.exchange)?,
            routing_key: short("routing key", &message.routing_key)?,
            properties,
            body: message.body,
            caller: Caller { id: message.id, done },
        })
    }
}

impl Caller {
    fn answer(self, answer: Result<(), PublishError>) {
        // The caller may have gone; then the answer is dropped.
        let _ = self.done.send(answer);
    }
}

fn short(what: &'static str, text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| PublishError::Invalid(what))
}

/// What the channels of one session share.
#[derive(Clone, Copy)]
pub(super) struct Lane<'a> {
    /// Whether the broker blocks the connection.
    pub(super) status: &'a ConnectionStatus,
    /// The jobs. One channel at a time waits here while the others wait for confirms.
    pub(super) waiting: &'a Mutex<mpsc::Receiver<Job>>,
    /// The largest group.
    pub(super) group: usize,
    /// Stop when nothing is waiting any more.
    pub(super) drained: &'a CancellationToken,
    /// Stop after the present group.
    pub(super) broken: &'a CancellationToken,
    /// When the session began.
    pub(super) since: Instant,
}

/// If a channel gets a nack, we replace the session, unless it is younger than this. When a quorum queue loses its
/// leader, RabbitMQ 3.10 can leave a channel on which every message to that queue is refused forever, while other
/// channels work.
const REFUSED_FOR_GOOD: Duration = Duration::from_secs(5);

impl Lane<'_> {
    /// Owns `channel` and publishes group after group. Returns when it has to stop, or with the channel's first error.
    pub(super) async fn publish(self, channel: Channel) -> Result<(), BrokerError> {
        let mut jobs = Vec::with_capacity(self.group);
        while self.take(&mut jobs).await {
            let mut sent = Sent::default();
            let published = self.send(&channel, jobs.drain(..), &mut sent).await;
            crash::at(Point::PublishSent);
            // Also after an error: messages that were sent before it may have been confirmed.
            let confirmed = self.confirm(sent).await;
            published.and(confirmed)?;
        }
        Ok(())
    }

    /// Takes the waiting jobs; false when it is time to stop.
    async fn take(&self, jobs: &mut Vec<Job>) -> bool {
        let take = async {
            let mut waiting = self.waiting.lock().await;
            tokio::select! {
                biased;
                taken = waiting.recv_many(jobs, self.group) => taken > 0,
                () = self.drained.cancelled() => false,
            }
        };
        tokio::select! {
            biased;
            () = self.broken.cancelled() => false,
            taken = take => taken,
        }
    }

    /// Publishes the jobs whose callers still wait.
    ///
    /// The library's publish ends when its own thread has written the frames. If we waited for each message before the
    /// next, every message would cost two thread switches and a packet of its own. So we queue all of them first.
    async fn send(
        &self,
        channel: &Channel,
        jobs: impl Iterator<Item = Job>,
        sent: &mut Sent,
    ) -> Result<(), BrokerError> {
        // If a caller has gone, it has stored its message elsewhere.
        let writing: Vec<_> =
            jobs.filter(|job| !job.caller.done.is_closed()).map(|job| hand_over(channel, job)).collect();
        let mut deadline = Instant::now() + STEP;
        let mut failed = Ok(());
        for (caller, written) in writing {
            match self.until(&mut deadline, written).await {
                Some(Ok(confirm)) => sent.confirms.push((caller, confirm)),
                Some(Err(source)) => {
                    caller.answer(Err(PublishError::Lost(source.to_string())));
                    failed = failed.and(Err(BrokerError::Amqp { doing: "publishing", source }));
                }
                None => {
                    caller.answer(Err(PublishError::TimedOut));
                    sent.abandoned = true;
                    failed = failed.and(Err(BrokerError::TimedOut("publishing")));
                }
            }
        }
        failed
    }

    /// Waits for every confirm of the group, and only then answers. All share one deadline: a broker that confirms
    /// nothing costs its callers one [`STEP`], not one for each message. If one confirm misses the deadline, no confirm
    /// of the group counts as proof.
    async fn confirm(&self, sent: Sent) -> Result<(), BrokerError> {
        let mut deadline = Instant::now() + STEP;
        let mut returned = HashSet::new();
        // True after a return that we cannot match. A message that we stopped waiting for can also have taken a return
        // with it.
        let mut stranger = sent.abandoned;
        let mut outcomes = Vec::with_capacity(sent.confirms.len());
        let mut error = None;
        let mut refused = false;
        for (caller, confirm) in sent.confirms {
            let outcome = match self.until(&mut deadline, confirm).await {
                Some(Ok(confirmation)) => {
                    refused |= matches!(confirmation, Confirmation::Nack(_));
                    let outcome = match &confirmation {
                        Confirmation::Ack(_) => Ok(()),
                        Confirmation::Nack(_) => Err(PublishError::Refused("nack".to_owned())),
                        Confirmation::NotRequested => Err(PublishError::Refused("no confirm mode".to_owned())),
                    };
                    // The returned message may belong to another confirm, and a nack can carry it too.
                    if let Some(message) = confirmation.take_message() {
                        match message.delivery.properties.message_id() {
                            Some(id) => drop(returned.insert(id.to_string())),
                            None => stranger = true,
                        }
                    }
                    outcome
                }
                Some(Err(source)) => {
                    let text = source.to_string();
                    error.get_or_insert(BrokerError::Amqp { doing: "awaiting a confirm", source });
                    Err(PublishError::Lost(text))
                }
                None => {
                    stranger = true;
                    error.get_or_insert(BrokerError::TimedOut("the confirm of a message"));
                    Err(PublishError::TimedOut)
                }
            };
            outcomes.push((caller, outcome));
        }
        if refused && self.since.elapsed() > REFUSED_FOR_GOOD {
            error.get_or_insert(BrokerError::Refused);
        }
        // If a return matches no message of the group, we do not know whose it is. Then no caller of the group has
        // proof.
        stranger |= !returned.iter().all(|id| outcomes.iter().any(|(caller, _)| caller.id == *id));
        for (caller, outcome) in outcomes {
            let returned = returned.contains(&caller.id);
            caller.answer(match outcome {
                Ok(()) if returned => Err(PublishError::Unroutable),
                Ok(()) if stranger => Err(PublishError::Lost("a return could not be matched".to_owned())),
                outcome => outcome,
            });
        }
        error.map_or(Ok(()), Err)
    }

    /// Waits for `future` until the deadline. The deadline is extended while the broker blocks the connection: ending
    /// the session would not help, because the next one is blocked too. `None` when the time is over; a result that is
    /// ready by then still counts.
    async fn until<F: Future>(&self, deadline: &mut Instant, future: F) -> Option<F::Output> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                () = sleep_until(*deadline) => match self.status.blocked() {
                    true => *deadline = Instant::now() + STEP,
                    false => return None,
                },
            }
        }
    }
}

/// The result of sending a group.
#[derive(Default)]
struct Sent {
    /// The published messages, in the order of publishing.
    confirms: Vec<(Caller, PublisherConfirm)>,
    /// Whether we stopped waiting for some messages before they were written. They may still be sent.
    abandoned: bool,
}

/// The rest of the work of sending one message.
type Written = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// Queues a job on the connection, in the order of the calls, without waiting.
fn hand_over(channel: &Channel, job: Job) -> (Caller, Written) {
    let Job { exchange, routing_key, properties, body, caller } = job;
    let (channel, options) = (channel.clone(), BasicPublishOptions { mandatory: true, ..Default::default() });
    let mut written: Written =
        Box::pin(async move { channel.basic_publish(exchange, routing_key, options, &body, properties).await });
    // The first poll takes the delivery tag and queues the frames; the task that waits for the rest polls again.
    match written.as_mut().now_or_never() {
        Some(ended) => (caller, Box::pin(ready(ended))),
        None => (caller, written),
    }
}
