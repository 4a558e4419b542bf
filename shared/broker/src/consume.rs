//! Subscriptions: a channel with one consumer and a bounded prefetch, and readers for what arrives.
//!
//! Nothing here acknowledges.

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
use crate::error::MqError;
use crate::step::step;

/// Acks are not confirmed: a channel that closes right behind them can give some of the messages back.
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
    pub async fn open(connection: &Connection, queue: &str, prefetch: u16) -> Result<Subscription, MqError> {
        let channel = step("opening a channel", connection.create_channel()).await?;
        step("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        // An empty tag lets the broker choose one, so that two consumers never collide.
        let consume =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = step("consuming a queue", consume).await?;
        Ok(Subscription { channel, consumer, queue: queue.to_owned(), cancelled: false })
    }

    /// The next delivery; `None` once [`Subscription::cancel`] was called and everything in hand was given out.
    ///
    /// # Errors
    /// Any error is the end: the stream may never yield again, so the session has to be rebuilt.
    pub async fn next(&mut self) -> Result<Option<Delivery>, MqError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Some(delivery)),
            Some(Err(source)) => Err(MqError::Amqp { doing: "receiving a delivery", source }),
            None if self.cancelled => Ok(None),
            None => Err(MqError::Cancelled(self.queue.clone())),
        }
    }

    /// Tells the broker to send no more. What it has sent already still comes out of [`Subscription::next`].
    ///
    /// # Errors
    /// When the broker does not answer, or the session broke.
    pub async fn cancel(&mut self) -> Result<(), MqError> {
        self.cancelled = true;
        let tag = self.consumer.tag();
        step("cancelling a consumer", self.channel.basic_cancel(tag, BasicCancelOptions::default())).await
    }

    /// The queue that it consumes.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether it was told to send no more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether the channel is still usable, as far as this side knows.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Lets the last acks arrive, then closes the channel; deliveries without an ack go back to the queue.
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

/// A message that its queue gave up on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The id it was published with.
    pub message_id: Option<String>,
    /// The queue it lay in.
    pub queue: Option<String>,
    /// Why it was given up: `rejected`, `delivery_limit`, `expired`, `maxlen`.
    pub reason: Option<String>,
    /// The exchange and routing key it was published to.
    pub origin: Option<String>,
    /// Its text headers, those of the dead-lettering aside.
    pub headers: Vec<(String, String)>,
    /// The bytes.
    pub body: Bytes,
}

/// What a dead letter says it is. The queue is not trusted: it may say anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterOf {
    /// A callback, which may be a job too.
    Callback(Callback),
    /// A check or a refund, of which the message is only the nudge.
    Work(JobMessage),
}

impl DeadLetter {
    /// Reads a delivery from the dead-letter queue. What is absent or of another shape is `None`: evidence, not a
    /// contract.
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

    /// What it is, if that can be read.
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

/// The value as text, where it is text.
fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}
