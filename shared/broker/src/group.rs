//! Group commit on one channel.
//!
//! One task owns a channel: the client library takes a delivery tag and queues the frames in two steps, so tasks that
//! share a channel get each other's confirms. Each confirm is kept and read, because the library's own "wait for all"
//! hides nacks. And nobody is answered before the whole group is confirmed, because the library hands a returned
//! message to whichever confirm is resolved next: returns are matched by message id.

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

use crate::error::MqError;
use crate::publish::{Message, PublishError};
use crate::step::STEP;

/// A persistent message: on disk before it is confirmed.
const PERSISTENT: u8 = 2;

/// A message on its way, in the words of AMQP, and whom to tell.
pub(super) struct Job {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: bytes::Bytes,
    caller: Caller,
}

/// Who waits for the proof of the message with this id.
struct Caller {
    id: String,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Job {
    /// # Errors
    /// [`PublishError::Invalid`] where a name is too long for AMQP.
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
        // The caller may have gone; then nobody needs to know.
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
    /// The jobs; one channel waits at a time, the others are confirming.
    pub(super) waiting: &'a Mutex<mpsc::Receiver<Job>>,
    /// The largest group.
    pub(super) group: usize,
    /// End when nothing is waiting any more.
    pub(super) drained: &'a CancellationToken,
    /// End after the group in hand.
    pub(super) broken: &'a CancellationToken,
    /// When the session began.
    pub(super) since: Instant,
}

/// A channel that is refused a message is replaced, unless it is younger than this. When a quorum queue loses its leader,
/// RabbitMQ 3.10 can leave a channel refusing whatever goes to that queue for ever, and another channel is refused nothing.
const REFUSED_FOR_GOOD: Duration = Duration::from_secs(5);

impl Lane<'_> {
    /// Owns `channel` and publishes group after group; returns when told to, or with the channel's first error.
    pub(super) async fn publish(self, channel: Channel) -> Result<(), MqError> {
        let mut jobs = Vec::with_capacity(self.group);
        while self.take(&mut jobs).await {
            let mut sent = Sent::default();
            let published = self.send(&channel, jobs.drain(..), &mut sent).await;
            crash::at(Point::PublishSent);
            // Even after an error: those that went out before it may have been confirmed.
            let confirmed = self.confirm(sent).await;
            published.and(confirmed)?;
        }
        Ok(())
    }

    /// Takes what is waiting; false when it is time to end.
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
    /// The library's publish ends when its frames are written, by a thread of its own. Waiting for one before the next is
    /// handed over would cost two changes of thread for each message and a packet of its own; so all are handed over first.
    async fn send(&self, channel: &Channel, jobs: impl Iterator<Item = Job>, sent: &mut Sent) -> Result<(), MqError> {
        // Jobs whose callers have gone have been stored elsewhere meanwhile.
        let writing: Vec<_> =
            jobs.filter(|job| !job.caller.done.is_closed()).map(|job| hand_over(channel, job)).collect();
        let mut deadline = Instant::now() + STEP;
        let mut failed = Ok(());
        for (caller, written) in writing {
            match self.until(&mut deadline, written).await {
                Some(Ok(confirm)) => sent.confirms.push((caller, confirm)),
                Some(Err(source)) => {
                    caller.answer(Err(PublishError::Lost(source.to_string())));
                    failed = failed.and(Err(MqError::Amqp { doing: "publishing", source }));
                }
                None => {
                    caller.answer(Err(PublishError::TimedOut));
                    sent.abandoned = true;
                    failed = failed.and(Err(MqError::TimedOut("publishing")));
                }
            }
        }
        failed
    }

    /// Awaits every confirm of the group, and only then answers. All of them share one deadline: a broker that confirms
    /// nothing costs its callers one [`STEP`], not one for each message. Once it has passed for one, none is proof.
    async fn confirm(&self, sent: Sent) -> Result<(), MqError> {
        let mut deadline = Instant::now() + STEP;
        let mut returned = HashSet::new();
        // A return whose message is not known. A message that was given up on can have taken one with it.
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
                    // It may be a neighbour's, and a nack can carry it just as well.
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
                    error.get_or_insert(MqError::Amqp { doing: "awaiting a confirm", source });
                    Err(PublishError::Lost(text))
                }
                None => {
                    stranger = true;
                    error.get_or_insert(MqError::TimedOut("the confirm of a message"));
                    Err(PublishError::TimedOut)
                }
            };
            outcomes.push((caller, outcome));
        }
        if refused && self.since.elapsed() > REFUSED_FOR_GOOD {
            error.get_or_insert(MqError::Refused);
        }
        // A return that names none of the group leaves open whose it is: then nobody here has proof.
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

    /// Awaits `future` until the deadline, which does not pass while the broker blocks the connection: ending the session
    /// would not help, since the next one is blocked too. `None` when the time is over; what is ready then is taken.
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

/// What became of handing a group over.
#[derive(Default)]
struct Sent {
    /// The published part, in the order of publishing.
    confirms: Vec<(Caller, PublisherConfirm)>,
    /// Whether some were given up on before they were written. They may go out yet.
    abandoned: bool,
}

/// The end of handing a message over.
type Written = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// Has the connection write a job, in the order of the calls; waits for nothing.
fn hand_over(channel: &Channel, job: Job) -> (Caller, Written) {
    let Job { exchange, routing_key, properties, body, caller } = job;
    let (channel, options) = (channel.clone(), BasicPublishOptions { mandatory: true, ..Default::default() });
    let mut written: Written =
        Box::pin(async move { channel.basic_publish(exchange, routing_key, options, &body, properties).await });
    // The first poll takes the delivery tag and queues the frames; whoever waits for the rest polls again.
    match written.as_mut().now_or_never() {
        Some(ended) => (caller, Box::pin(ready(ended))),
        None => (caller, written),
    }
}
