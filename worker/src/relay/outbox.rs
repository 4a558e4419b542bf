//! Publishes new events, those of one order in their order. The relay marks an event only after the broker confirms it.
//!
//! An event that cannot be read or rendered waits, and so do the later events of its order; the others are published.

use std::collections::{HashMap, HashSet};

use broker::{Message, PublishError, topology};
use domain::OrderId;
use domain::message::event;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{caught, caught_now};
use sqlx::PgConnection;
use store::DbError;
use store::cache::Changed;
use store::tables::events::{self, Place, Waiting};
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{BATCH, CONFIRM, Relay, WORKER};

/// The wait before an event that could not be read or rendered is tried again. A newer release may run by then.
const UNREADABLE_RETRY: time::Duration = time::Duration::minutes(5);

/// The publishing of events, with its state between two rounds.
#[derive(Default)]
pub(super) struct Outbox {
    /// Events that the broker has confirmed and that are not marked yet, because another transaction was in the way.
    /// Until they are marked, nothing is published; otherwise each round would publish them again.
    confirmed: Vec<i64>,
}

impl Outbox {
    /// Publishes the waiting events. Returns how many were published.
    pub async fn carry(&mut self, relay: &Relay, connection: &mut PgConnection) -> Result<usize, DbError> {
        self.mark(relay, connection).await?;
        let (waiting, mut unreadable) = read(connection).await?;
        if waiting.is_empty() && unreadable.is_empty() {
            return Ok(0);
        }
        let about: Vec<(i64, OrderId)> =
            waiting.iter().filter_map(|event| Some((event.seq, event.order_id?))).collect();
        crash::at(Point::OutboxTaken);
        let Outcome { confirmed, unroutable, unrendered } = publish(relay, waiting).await;
        unreadable.extend(unrendered);
        // The process that changed these orders has already renewed their copies, unless it died in between.
        relay.copies.renew(&relay.db, Changed::Ids(orders_of(&about, &confirmed)));
        self.confirmed = confirmed;
        if !unroutable.is_empty() {
            events::postpone(connection, &unroutable, relay.settings.unroutable_retry).await?;
        }
        if !unreadable.is_empty() {
            metrics::counter!("events_unreadable_total").increment(unreadable.len() as u64);
            events::postpone(connection, &unreadable, UNREADABLE_RETRY).await?;
        }
        self.mark(relay, connection).await
    }

    /// Marks the confirmed events as published, and returns how many there were.
    async fn mark(&mut self, relay: &Relay, connection: &mut PgConnection) -> Result<usize, DbError> {
        if self.confirmed.is_empty() {
            return Ok(0);
        }
        crash::at(Point::OutboxConfirmed);
        events::mark_published(connection, &self.confirmed, relay.clock.now()).await?;
        crash::at(Point::OutboxMarked);
        let count = std::mem::take(&mut self.confirmed).len();
        metrics::counter!("events_published_total").increment(count as u64);
        Ok(count)
    }
}

/// The waiting events, and the numbers of those that cannot be read. The later events of such an order wait too.
async fn read(connection: &mut PgConnection) -> Result<(Vec<Waiting>, Vec<i64>), DbError> {
    match caught(events::waiting(&mut *connection, BATCH)).await {
        Ok(Err(error)) if error.blames_the_rows() => warn!(%error, "An event cannot be read; they are read one by one"),
        Ok(outcome) => return outcome.map(|waiting| (waiting, Vec::new())),
        Err(panic) => drop(panic.noted(WORKER, "outbox.read", &"the events that wait")),
    }
    let (mut waiting, mut unreadable, mut held) = (Vec::new(), Vec::new(), HashSet::new());
    for Place { seq, order } in events::waiting_places(&mut *connection, BATCH).await? {
        if order.as_ref().is_some_and(|order| held.contains(order)) {
            continue;
        }
        let reason = match caught(events::waiting_one(&mut *connection, seq)).await {
            Ok(Ok(event)) => {
                waiting.extend(event);
                continue;
            }
            Ok(Err(error)) if error.blames_the_rows() => chain(&error),
            Ok(Err(error)) => return Err(error),
            Err(panic) => panic.noted(WORKER, "outbox.read", &seq).to_string(),
        };
        error!(seq, error = reason, "Event {seq} cannot be read; it waits, and so do the later events of its order");
        unreadable.push(seq);
        held.extend(order);
    }
    Ok((waiting, unreadable))
}

/// The orders of the events with these numbers, each once.
fn orders_of(about: &[(i64, OrderId)], seqs: &[i64]) -> Vec<OrderId> {
    let seqs: HashSet<&i64> = seqs.iter().collect();
    let orders: HashSet<OrderId> =
        about.iter().filter(|(seq, _)| seqs.contains(seq)).map(|(_, order)| *order).collect();
    orders.into_iter().collect()
}

/// The result for the events of a round. Events in none of these lists are tried again.
#[derive(Default)]
struct Outcome {
    confirmed: Vec<i64>,
    unroutable: Vec<i64>,
    /// Events that cannot be turned into a message.
    unrendered: Vec<i64>,
}

/// Publishes one wave after another, within the time limit of a round.
async fn publish(relay: &Relay, waiting: Vec<Waiting>) -> Outcome {
    let deadline = Instant::now() + CONFIRM;
    let mut outcome = Outcome::default();
    let mut refusals = Vec::new();
    let mut held: HashSet<OrderId> = HashSet::new();
    for wave in waves(waiting) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let mut messages = Vec::with_capacity(wave.len());
        let mut wave: Vec<Waiting> =
            wave.into_iter().filter(|event| event.order_id.is_none_or(|order| !held.contains(&order))).collect();
        wave.retain(|event| match render(event) {
            Ok(message) => {
                messages.push(message);
                true
            }
            Err(reason) => {
                error!(event_id = event.event_id, error = reason, "Event {} cannot be published", event.event_id);
                outcome.unrendered.push(event.seq);
                held.extend(event.order_id);
                false
            }
        });
        for (event, published) in wave.iter().zip(relay.publisher.publish_all(messages, left).await) {
            match published {
                Ok(_) => outcome.confirmed.push(event.seq),
                Err(PublishError::Unroutable) if relay.settings.optional_events.contains(&event.kind) => {
                    outcome.confirmed.push(event.seq);
                }
                Err(error) => {
                    match error {
                        PublishError::Unroutable => {
                            outcome.unroutable.push(event.seq);
                            metrics::counter!("events_unroutable_total", "type" => event.kind.clone()).increment(1);
                        }
                        PublishError::Invalid(_) => outcome.unrendered.push(event.seq),
                        _ => {}
                    }
                    refusals.push((event.event_id.clone(), error));
                    held.extend(event.order_id);
                }
            }
        }
    }
    if let Some((event_id, error)) = refusals.first() {
        warn!(events = refusals.len(), event_id, %error, "Events are not published yet, the first of them {event_id}");
    }
    outcome
}

/// The first event of each order, then the second event of each, and so on.
fn waves(waiting: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let mut depth: HashMap<OrderId, usize> = HashMap::new();
    let mut waves: Vec<Vec<Waiting>> = Vec::new();
    for event in waiting {
        let wave = event.order_id.map_or(0, |order| {
            let depth = depth.entry(order).or_default();
            *depth += 1;
            *depth - 1
        });
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        waves[wave].push(event);
    }
    waves
}

/// The message of an event. A panic here does not affect other events.
fn render(event: &Waiting) -> Result<Message, String> {
    let rendered = caught_now(|| crash::met(Point::OutboxTaken, &event.event_id).map(|()| message(event)));
    match rendered {
        Ok(rendered) => rendered.map_err(|planted| planted.to_string()),
        Err(panic) => Err(panic.noted(WORKER, "outbox.render", &event.event_id).to_string()),
    }
}

/// A CloudEvent 1.0 in AMQP binary mode: attributes in headers, `data` as the body.
///
/// Source: CloudEvents, "AMQP Protocol Binding", version 1.0.2, §3.1; the prefix is the one for libraries that cannot
/// distinguish header names without a colon.
fn message(event: &Waiting) -> Message {
    let mut headers = vec![
        ("cloudEvents:specversion".to_owned(), "1.0".to_owned()),
        ("cloudEvents:id".to_owned(), event.event_id.clone()),
        ("cloudEvents:type".to_owned(), event.kind.clone()),
        ("cloudEvents:source".to_owned(), event::SOURCE.to_owned()),
        ("cloudEvents:time".to_owned(), event.occurred_at.format(&Rfc3339).unwrap_or_default()),
    ];
    headers.extend(event.order_id.map(|order| ("cloudEvents:subject".to_owned(), order.to_string())));
    Message {
        exchange: topology::PAYMENT_EVENTS.to_owned(),
        routing_key: event.kind.clone(),
        id: event.event_id.clone(),
        kind: Some(event.kind.clone()),
        content_type: "application/json".to_owned(),
        headers,
        body: event.data.clone().into(),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn event(seq: i64, order: Option<u128>) -> Waiting {
        Waiting {
            seq,
            event_id: format!("order.paid:{seq}"),
            kind: "order.paid".to_owned(),
            order_id: order.map(OrderId::from_u128),
            data: r#"{"order_no": "ORD_01"}"#.to_owned(),
            occurred_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn no_wave_has_two_events_of_an_order_and_order_is_kept() {
        let waves =
            waves(vec![event(1, Some(7)), event(2, Some(8)), event(3, Some(7)), event(4, None), event(5, Some(7))]);
        let seqs: Vec<Vec<i64>> = waves.iter().map(|wave| wave.iter().map(|event| event.seq).collect()).collect();
        assert_eq!(seqs, [vec![1, 2, 4], vec![3], vec![5]]);
    }

    #[test]
    fn an_event_is_a_cloud_event_in_binary_mode() {
        let message = message(&event(1, Some(7)));
        assert_eq!(message.id, "order.paid:1");
        assert_eq!(&message.body[..], br#"{"order_no": "ORD_01"}"#);
        insta::assert_json_snapshot!(message.headers);
    }
}
