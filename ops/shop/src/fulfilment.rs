//! The downstream consumer: the shop's own queue, bound to the payment service's events.
//!
//! One session is one connection. Any error ends it, and the next one starts after a short wait. A delivery is
//! acknowledged once the desk has recorded it. After a crash in between it is delivered again, and the desk
//! recognises it by its id.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::desk::{Desk, Link};
use crate::event::Event;
use crate::stop::Stop;

const EXCHANGE: &str = "payment.events";
const BINDINGS: [&str; 2] = ["order.*", "refund.*"];
const PREFETCH: u16 = 64;
const STEP: Duration = Duration::from_secs(5);
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The queue to consume.
#[derive(Debug, Clone)]
pub(crate) enum Queue {
    /// `shop.fulfilment`: it is kept while the shop is down, so that no event is missed.
    Lasting,
    /// A queue for a single run, which the broker deletes after five minutes without use.
    Passing(String),
}

impl Queue {
    fn name(&self) -> &str {
        match self {
            Queue::Lasting => "shop.fulfilment",
            Queue::Passing(name) => name,
        }
    }

    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        // On a cluster the queue has replicas on several nodes, and the loss of one node loses no event.
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        if let Queue::Passing(_) = self {
            arguments.insert("x-expires".into(), AMQPValue::LongInt(300_000));
        }
        arguments
    }
}

/// Consumes until `stop`, through any number of lost connections.
pub(crate) async fn consume(nodes: Vec<AMQPUri>, queue: Queue, desk: Arc<Desk>, stop: Stop) {
    let mut wait = SHORTEST_WAIT;
    while !stop.is_said() {
        match session(&nodes, &queue, &desk, &stop).await {
            Ok(()) => return,
            Err(error) => {
                let was_up = desk.link().borrow().connected;
                let reason = format!("{error:#}");
                if was_up || desk.link().borrow().reason.as_ref() != Some(&reason) {
                    warn!(reason, "Fulfilment events cannot arrive, trying again");
                }
                desk.set_link(Link { connected: false, reason: Some(reason) });
                wait = if was_up { SHORTEST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
            }
        }
        tokio::select! { () = sleep(wait) => {} () = stop.said() => {} }
    }
}

/// One connection, from its opening to its first error.
async fn session(nodes: &[AMQPUri], queue: &Queue, desk: &Desk, stop: &Stop) -> anyhow::Result<()> {
    let connection = connect(nodes).await?;
    let ended = subscribed(&connection, queue, desk, stop).await;
    // The close can hang when the broker hangs, and fail when the broker is gone. Neither matters here.
    let _ = timeout(STEP, connection.close(200, "bye".into())).await;
    ended
}

async fn subscribed(connection: &Connection, queue: &Queue, desk: &Desk, stop: &Stop) -> anyhow::Result<()> {
    let (channel, mut consumer) = timeout(STEP, subscribe(connection, queue)).await.context("the broker is slow")??;
    info!(queue = queue.name(), "Waiting for fulfilment events");
    desk.set_link(Link { connected: true, reason: None });
    loop {
        tokio::select! {
            delivery = consumer.next() => match delivery {
                Some(delivery) => take(&delivery.context("receiving a delivery")?, desk).await?,
                None => bail!("the broker ended the subscription"),
            },
            () = sleep(LOOK_EVERY) => {
                if !connection.status().connected() || !channel.status().connected() {
                    bail!("the connection was lost");
                }
            }
            () = stop.said() => break,
        }
    }
    if let Queue::Passing(name) = queue {
        // If this fails, the queue is removed by its expiry.
        let _ = timeout(STEP, channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default())).await;
    }
    Ok(())
}

async fn subscribe(connection: &Connection, queue: &Queue) -> anyhow::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await.context("opening a channel")?;
    let name = queue.name();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel
        .queue_declare(name.into(), durable, queue.arguments())
        .await
        .with_context(|| format!("declaring {name}"))?;
    for binding in BINDINGS {
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(name.into(), EXCHANGE.into(), binding.into(), bind, FieldTable::default())
            .await
            .with_context(|| format!("binding {name} to {EXCHANGE}; has `paymentctl broker-setup` run?"))?;
    }
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.context("setting the prefetch")?;
    let consumer = channel
        .basic_consume(name.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .with_context(|| format!("consuming {name}"))?;
    Ok((channel, consumer))
}

/// Delivers, then acknowledges. A message that is not an event is rejected permanently: otherwise it would return
/// forever.
async fn take(delivery: &Delivery, desk: &Desk) -> anyhow::Result<()> {
    match Event::read(delivery.properties.headers().as_ref(), &delivery.data) {
        Ok(event) => {
            let (event_id, order_no) = (event.event_id.clone(), event.field("order_no").to_owned());
            let first = desk.deliver(event, rfc3339(SystemTime::now()));
            let what = if first { "Delivered for" } else { "Known already, nothing delivered again for" };
            info!(event_id, order_no, "{what} {event_id}");
            delivery.ack(BasicAckOptions::default()).await.context("acking a delivery")?;
        }
        Err(unreadable) => {
            warn!(routing_key = %delivery.routing_key, "Refused a message that is no event: {unreadable}");
            delivery.reject(BasicRejectOptions { requeue: false }).await.context("rejecting a delivery")?;
        }
    }
    Ok(())
}

/// Connects to the first node of the broker that answers.
async fn connect(nodes: &[AMQPUri]) -> anyhow::Result<Connection> {
    let mut reasons = Vec::new();
    for uri in nodes {
        match connect_one(uri).await {
            Ok(connection) => return Ok(connection),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!("{}", reasons.join("; "))
}

async fn connect_one(uri: &AMQPUri) -> anyhow::Result<Connection> {
    let place = format!("{}:{}", uri.authority.host, uri.authority.port);
    timeout(Duration::from_secs(2), greet(uri)).await.with_context(|| format!("{place} does not answer"))??;
    let properties = ConnectionProperties::default().with_connection_name("shop".into());
    let connected = timeout(STEP, Connection::connect_uri(uri.clone(), properties)).await;
    // The library's error contains its sources in its own text.
    connected
        .with_context(|| format!("the broker at {place} is slow"))?
        .map_err(|error| anyhow!("logging in at {place}: {error}"))
}

/// Checks whether a broker answers. The library has no timeout of its own for connecting, and an aborted connect
/// leaves a thread behind.
async fn greet(uri: &AMQPUri) -> anyhow::Result<()> {
    let place = (uri.authority.host.as_str(), uri.authority.port);
    let mut socket = TcpStream::connect(place)
        .await
        .with_context(|| format!("connecting to the broker at {}:{}", place.0, place.1))?;
    if uri.scheme == lapin::uri::AMQPScheme::AMQP {
        socket.write_all(b"AMQP\x00\x00\x09\x01").await.context("greeting the broker")?;
        let mut first = [0u8; 1];
        socket.read_exact(&mut first).await.context("waiting for the broker's greeting")?;
        if first[0] != 1 {
            bail!("{}:{} does not speak AMQP 0-9-1", place.0, place.1);
        }
    }
    Ok(())
}

fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
