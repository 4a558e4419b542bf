//! A downstream system: it has its own queue for events, notes every delivery, and reconnects when its session breaks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, Consumer, message};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::{SOON, eventually, unique};

const EXCHANGE: &str = "payment.events";
/// Each step of the protocol must finish within this time.
const STEP: Duration = Duration::from_secs(5);
/// The pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(300);

/// One delivery of an event.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// `cloudEvents:id`.
    pub id: String,
    /// The routing key, which is the type.
    pub kind: String,
    /// All headers that are text.
    pub headers: BTreeMap<String, String>,
    /// `content_type`.
    pub content_type: String,
    /// The body.
    pub data: Value,
    /// Whether the broker had delivered it before.
    pub redelivered: bool,
    /// When it arrived.
    pub at: Instant,
}

/// See the module.
pub struct Downstream {
    seen: Arc<Mutex<Vec<Delivery>>>,
    task: JoinHandle<()>,
}

impl Downstream {
    /// Consumes every event from now on. `urls` are the nodes of the broker, separated by commas.
    pub async fn start(urls: &str) -> Downstream {
        let seen = Arc::<Mutex<Vec<Delivery>>>::default();
        let nodes: Vec<String> = urls.split(',').map(str::to_owned).collect();
        let queue = Queue::on(nodes.len());
        let mut nodes = nodes.into_iter().cycle();
        let mut next = move || nodes.next().expect("a broker has a node");
        let first =
            eventually("a subscription to the events", SOON, async || subscribe(&next(), &queue).await.ok()).await;
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut session = Some(first);
            loop {
                if let Some((connection, consumer)) = session.take() {
                    note(consumer, &noted).await;
                    drop(connection);
                }
                // The interruption can be short or long. After a wipe, the queue and its binding are declared again.
                match timeout(STEP * 2, subscribe(&next(), &queue)).await {
                    Ok(Ok(built)) => session = Some(built),
                    _ => sleep(PAUSE).await,
                }
            }
        });
        Downstream { seen, task }
    }

    /// Every delivery so far.
    #[must_use]
    pub fn all(&self) -> Vec<Delivery> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The deliveries about one order.
    #[must_use]
    pub fn about(&self, order_id: &str) -> Vec<Delivery> {
        let about = |delivery: &Delivery| delivery.headers.get("cloudEvents:subject").is_some_and(|id| id == order_id);
        self.all().into_iter().filter(about).collect()
    }

    /// How many times each event arrived, by id.
    #[must_use]
    pub fn times(&self) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        self.all().into_iter().for_each(|delivery| *times.entry(delivery.id).or_default() += 1);
        times
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn subscribe(url: &str, queue: &Queue) -> Result<(Connection, Consumer), lapin::Error> {
    let properties = ConnectionProperties::default().with_connection_name("downstream".into());
    let connection = Connection::connect(url, properties).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(300_000));
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue.kind.into()));
    let queue = queue.name.as_str();
    channel.queue_declare(queue.into(), durable, arguments).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), EXCHANGE.into(), "#".into(), options, FieldTable::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok((connection, consumer))
}

/// The queue that receives the events.
struct Queue {
    name: String,
    kind: &'static str,
}

impl Queue {
    /// A new queue on a broker of `nodes` nodes. With several nodes it is a quorum queue, so that no event is lost
    /// with one node. With a single node it is a classic queue. Reason: after a node is killed, RabbitMQ 3.10 no
    /// longer elects a leader for a quorum queue that was declared a moment before. Tests kill the node that soon
    /// after the start.
    fn on(nodes: usize) -> Queue {
        Queue { name: format!("test.{}", unique()), kind: if nodes > 1 { "quorum" } else { "classic" } }
    }
}

/// Notes and acknowledges deliveries until the session breaks.
async fn note(mut consumer: Consumer, seen: &Mutex<Vec<Delivery>>) {
    while let Some(Ok(delivery)) = consumer.next().await {
        let noted = read(&delivery);
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        if delivery.ack(BasicAckOptions::default()).await.is_err() {
            return;
        }
    }
}

fn read(delivery: &message::Delivery) -> Delivery {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    };
    let table = delivery.properties.headers().as_ref();
    let headers: BTreeMap<String, String> = table
        .into_iter()
        .flat_map(|table| table.inner())
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)))
        .collect();
    Delivery {
        id: headers.get("cloudEvents:id").cloned().unwrap_or_default(),
        kind: delivery.routing_key.as_str().to_owned(),
        content_type: delivery
            .properties
            .content_type()
            .as_ref()
            .map(|text| text.as_str().to_owned())
            .unwrap_or_default(),
        headers,
        data: serde_json::from_slice(&delivery.data).unwrap_or_default(),
        redelivered: delivery.redelivered,
        at: Instant::now(),
    }
}
