//! Publishes new events, those of one order in their order. The relay marks an event only after the broker confirms it.
//!
//! An event that cannot be read or rendered waits, and so do the later events of its order; the others are published.

use std::collections::{HashMap, HashSet};

use broker::PublishError;
use domain::OrderId;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use sqlx::PgConnection;
use store::DbError;
use store::cache::Changed;
use store::tables::events::{self as outbox, Waiting};
use tokio::time::Instant;
use tracing::{error, warn};

mod cloud_event;
mod unreadable;

use cloud_event::render;

use super::limits::CONFIRM;
use super::setup::Relay;

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
    pub async fn publish_events(&mut self, relay: &Relay, connection: &mut PgConnection) -> Result<usize, DbError> {
        self.mark(relay, connection).await?;
        let (waiting, mut unreadable) = unreadable::read(connection).await?;
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
            outbox::postpone(connection, &unroutable, relay.settings.unroutable_retry).await?;
        }
        if !unreadable.is_empty() {
            metrics::counter!("events_unreadable_total").increment(unreadable.len() as u64);
            outbox::postpone(connection, &unreadable, UNREADABLE_RETRY).await?;
        }
        self.mark(relay, connection).await
    }

    /// Marks the confirmed events as published, and returns how many there were.
    async fn mark(&mut self, relay: &Relay, connection: &mut PgConnection) -> Result<usize, DbError> {
        if self.confirmed.is_empty() {
            return Ok(0);
        }
        crash::at(Point::OutboxConfirmed);
        outbox::mark_published(connection, &self.confirmed, relay.clock.now()).await?;
        crash::at(Point::OutboxMarked);
        let count = std::mem::take(&mut self.confirmed).len();
        metrics::counter!("events_published_total").increment(count as u64);
        Ok(count)
    }
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
        warn!(
            events = refusals.len(),
            event_id,
            error = chain(&error),
            "Events are not published yet, the first of them {event_id}"
        );
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
}
