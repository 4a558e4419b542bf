//! What the run needs at the broker: its own queues, and the service's queues empty.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const STEP: Duration = Duration::from_secs(10);
/// The queue for bare publishes.
const CONFIRMS: &str = "bench.confirms";
/// Makes events routable; it has no consumer.
const SINK: &str = "bench.sink";
/// The queue on which the latency measurement sees events arrive.
const ARRIVALS: &str = "bench.arrivals";
const EVENTS: &str = "payment.events";
const CALLBACKS: &str = "payment.callbacks";

/// See the module.
pub(crate) struct Broker {
    connection: Connection,
    channel: Channel,
}

impl Broker {
    /// Connects as the deploy user and declares the run's own queues. The service's topology must exist already.
    pub(crate) async fn set_up(admin_url: &str) -> Result<Broker> {
        let properties = ConnectionProperties::default().with_connection_name("bench".into());
        let connection =
            timeout(STEP, Connection::connect(admin_url, properties)).await.context("the broker does not answer")?;
        let connection = connection.context("connecting to the broker")?;
        let channel = connection.create_channel().await?;
        let broker = Broker { connection, channel };
        broker.declare(CONFIRMS, &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await?;
        broker.declare(SINK, &[("x-max-length", AMQPValue::LongInt(1))]).await?;
        broker.bind(SINK, "#").await?;
        Ok(broker)
    }

    /// Removes what is left of the run.
    pub(crate) async fn tear_down(&self) -> Result<()> {
        self.empty().await?;
        for queue in [CONFIRMS, SINK, ARRIVALS] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.context("deleting a queue")?;
        }
        // The work is done; a close that hangs must not delay the end.
        let _ = timeout(STEP, self.connection.close(200, "bye".into())).await;
        Ok(())
    }

    /// Empties the queues in which a repeat may leave messages.
    pub(crate) async fn empty(&self) -> Result<()> {
        for queue in [CALLBACKS, "payment.dead", CONFIRMS] {
            let purged = self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await;
            purged.with_context(|| format!("emptying {queue}"))?;
        }
        Ok(())
    }

    /// Waits until no callback is ready in the queue.
    pub(crate) async fn until_callbacks_consumed(&self, within: Duration) -> Result<()> {
        let since = Instant::now();
        while self.depth(CALLBACKS).await? > 0 {
            ensure!(since.elapsed() < within, "{CALLBACKS} is not empty after {} s", within.as_secs());
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// The number of callbacks in the queue.
    pub(crate) async fn callbacks_queued(&self) -> Result<u32> {
        self.depth(CALLBACKS).await
    }

    /// Publishes each body with a confirm, with at most `window` confirms outstanding, on one channel.
    pub(crate) async fn publish_bare(&self, bodies: &[Vec<u8>], window: usize) -> Result<Duration> {
        let channel = self.confirming().await?;
        let mut in_flight: VecDeque<PublisherConfirm> = VecDeque::with_capacity(window);
        let began = Instant::now();
        for body in bodies {
            if in_flight.len() == window
                && let Some(oldest) = in_flight.pop_front()
            {
                confirmed(oldest).await?;
            }
            in_flight.push_back(publish(&channel, body).await?);
        }
        for confirm in in_flight {
            confirmed(confirm).await?;
        }
        let took = began.elapsed();
        channel.close(200, "bye".into()).await?;
        self.until_depth(CONFIRMS, bodies.len()).await?;
        Ok(took)
    }

    /// A channel for confirmed publishes.
    pub(crate) async fn confirming(&self) -> Result<Channel> {
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Notes the time of every `order.paid` as it arrives, until `expected` have arrived.
    pub(crate) async fn arrivals(&self, expected: usize, within: Duration) -> Result<JoinHandle<Result<Vec<Arrival>>>> {
        // A new queue for each repeat: an earlier consumer would take a share of the messages.
        self.channel.queue_delete(ARRIVALS.into(), QueueDeleteOptions::default()).await?;
        self.declare(ARRIVALS, &[]).await?;
        self.bind(ARRIVALS, "order.paid").await?;
        let channel = self.connection.create_channel().await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = channel.basic_consume(ARRIVALS.into(), "".into(), options, FieldTable::default()).await?;
        let (tell, mut incoming) = mpsc::channel::<Arrival>(1024);
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                if tell.send(Arrival { at: Instant::now(), data: delivery.data.to_vec() }).await.is_err() {
                    break;
                }
            }
            // The channel must exist as long as its consumer.
            drop(channel);
        });
        Ok(tokio::spawn(async move {
            let mut arrived = Vec::with_capacity(expected);
            while arrived.len() < expected {
                match timeout(within, incoming.recv()).await {
                    Ok(Some(arrival)) => arrived.push(arrival),
                    Ok(None) => bail!("the subscription ended"),
                    Err(_) => bail!("{} of {expected} events arrived, then none for {within:?}", arrived.len()),
                }
            }
            Ok(arrived)
        }))
    }

    /// Verifies that a queue contains what was published; its count is updated with a little delay.
    async fn until_depth(&self, queue: &str, expected: usize) -> Result<()> {
        let since = Instant::now();
        while self.depth(queue).await? as usize != expected {
            ensure!(since.elapsed() < STEP, "{queue} does not hold the {expected} messages that were confirmed");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn depth(&self, queue: &str) -> Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        Ok(found.with_context(|| format!("looking at {queue}"))?.message_count())
    }

    async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) -> Result<()> {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        self.channel.queue_declare(queue.into(), durable, table).await.with_context(|| format!("declaring {queue}"))?;
        Ok(())
    }

    async fn bind(&self, queue: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        let bound = self.channel.queue_bind(queue.into(), EVENTS.into(), key.into(), options, FieldTable::default());
        bound.await.with_context(|| format!("binding {queue}"))
    }
}

/// One event and its arrival time.
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) data: Vec<u8>,
}

/// A persistent publish to the quorum queue for bare publishes.
pub(crate) async fn publish(channel: &Channel, body: &[u8]) -> Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    // Without `mandatory` the broker confirms at once what no queue receives, and the limit would be meaningless.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    Ok(channel.basic_publish("".into(), CONFIRMS.into(), options, body, properties).await?)
}

/// Waits for the confirm of a publish.
pub(crate) async fn confirmed(confirm: PublisherConfirm) -> Result<()> {
    match timeout(STEP, confirm).await.context("no confirm in time")?? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not confirmed: {other:?}"),
    }
}
