//! Subscriptions: a channel with one consumer and a bounded prefetch, and functions that read the deliveries.
//!
//! This module acknowledges nothing.

use std::time::Duration;

use bytes::Bytes;
use domain::message::callback::Callback;
use domain::message::job::{JobKind, JobMessage};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};

use crate::callback::callback_of;
use crate::error::BrokerError;
use crate::step::step;

/// The broker does not confirm acks. If a channel closes right after them, some of the messages can return to the
/// queue.
const ACKS_ON_THE_WAY: Duration = Duration::from_secs(1);

/// One consumer on a channel of its own, so that a multiple ack covers this consumer's deliveries alone.
pub struct Subscription {
    channel: Channel,
    consumer: Consumer,
    queue: String,
    cancelled: bool,
}

impl Subscription {
    /// Begins to consume `queue` with at most `prefetch` deliveries unacknowledged.
    ///
    /// # Errors
    /// When the broker refuses (no such queue, no permission) or does not answer.
    pub async fn open(connection: &Connection, queue: &str, prefetch: u16) -> Result<Subscription, BrokerError> {
        let channel = step("opening a channel", connection.create_channel()).await?;
        step("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        // An empty tag lets the broker choose one, so that two consumers never collide.
        let consume =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = step("consuming a queue", consume).await?;
        Ok(Subscription { channel, consumer, queue: queue.to_owned(), cancelled: false })
    }

    /// The next delivery. `None` once [`Subscription::cancel`] was called and every delivery that had arrived was
    /// returned.
    ///
    /// # Errors
    /// Every error is final: the stream may never yield again, so the session must be rebuilt.
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Some(delivery)),
            Some(Err(source)) => Err(BrokerError::Amqp { doing: "receiving a delivery", source }),
            None if self.cancelled => Ok(None),
            None => Err(BrokerError::Cancelled(self.queue.clone())),
        }
    }

    /// Asks the broker to send no more deliveries. Those that it has sent already still come out of
    /// [`Subscription::next`].
    ///
    /// # Errors
    /// When the broker does not answer, or the session is broken.
    pub async fn cancel(&mut self) -> Result<(), BrokerError> {
        self.cancelled = true;
        let tag = self.consumer.tag();
        step("cancelling a consumer", self.channel.basic_cancel(tag, BasicCancelOptions::default())).await
    }

    /// The queue that it consumes.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether [`Subscription::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether the channel is still usable, as far as this side knows.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Waits until the last acks have arrived, then closes the channel. Deliveries without an ack return to the queue.
    pub async fn close(&mut self) {
        tokio::time::sleep(ACKS_ON_THE_WAY).await;
        // Closed or broken already: nothing is left to do.
        let _ = step("closing a channel", self.channel.close(200, "bye".into())).await;
    }
}

/// The headers that hold text, with their names.
pub fn headers(delivery: &Delivery) -> impl Iterator<Item = (&str, &str)> {
    let table = delivery.properties.headers().as_ref().into_iter().flat_map(|headers| headers.inner());
    table.filter_map(|(name, value)| Some((name.as_str(), text(value)?)))
}

/// A message that its queue has dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The id it was published with.
    pub message_id: Option<String>,
    /// The queue it was in.
    pub queue: Option<String>,
    /// Why it was dead-lettered: `rejected`, `delivery_limit`, `expired`, `maxlen`.
    pub reason: Option<String>,
    /// The exchange and routing key it was published to.
    pub origin: Option<String>,
    /// Its text headers, without those of the dead-lettering.
    pub headers: Vec<(String, String)>,
    /// The bytes.
    pub body: Bytes,
}

/// The content of a dead letter, as it claims to be. We do not trust the queue: the content may be forged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterOf {
    /// A callback, which may also be a job.
    Callback(Callback),
    /// A check or a refund. The message is only its nudge.
    Work(JobMessage),
}

impl DeadLetter {
    /// Reads a delivery from the dead-letter queue. A field that is absent or of another type is `None`: the fields are
    /// evidence, not a contract.
    pub fn from_delivery(delivery: &Delivery) -> DeadLetter {
        let table = delivery.properties.headers().as_ref();
        let death = table.and_then(|headers| first_death(headers));
        let field = |name: &str| death.and_then(|death| text(death.inner().get(name)?)).map(str::to_owned);
        let routing_key = death.and_then(|death| match death.inner().get("routing-keys")? {
            AMQPValue::FieldArray(keys) => text(keys.as_slice().first()?),
            _ => None,
        });
        let origin = field("exchange").map(|exchange| format!("{exchange}/{}", routing_key.unwrap_or_default()));
        DeadLetter {
            message_id: delivery.properties.message_id().as_ref().map(ToString::to_string),
            queue: field("queue"),
            reason: field("reason"),
            origin,
            headers: headers(delivery)
                .filter(|(name, _)| !name.starts_with("x-"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: Bytes::copy_from_slice(&delivery.data),
        }
    }

    /// Its content, if it can be read.
    pub fn of(&self) -> Option<LetterOf> {
        match JobKind::of_queue(self.queue.as_deref()?)?.spec().is_nudged {
            true => Some(LetterOf::Work(serde_json::from_slice(&self.body).ok()?)),
            false => Some(LetterOf::Callback(callback_of(&self.body).ok()?)),
        }
    }
}

/// The newest entry of `x-death`.
fn first_death(headers: &FieldTable) -> Option<&FieldTable> {
    match headers.inner().get("x-death")? {
        AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

/// The value as text, if it is text.
fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}
