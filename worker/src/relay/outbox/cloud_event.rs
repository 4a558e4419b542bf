//! Turns an event into a message: a CloudEvent.

use broker::{Message, topology};
use domain::message::event;
use runtime::crash::{self, Point};
use runtime::panics::caught_now;
use store::tables::events::Waiting;
use time::format_description::well_known::Rfc3339;

use crate::relay::limits::WORKER;

/// The message of an event. A panic here does not affect other events.
pub(super) fn render(event: &Waiting) -> Result<Message, String> {
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
    use domain::OrderId;
    use time::OffsetDateTime;

    use super::*;

    fn event() -> Waiting {
        Waiting {
            seq: 1,
            event_id: "order.paid:1".to_owned(),
            kind: "order.paid".to_owned(),
            order_id: Some(OrderId::from_u128(7)),
            data: r#"{"order_no": "ORD_01"}"#.to_owned(),
            occurred_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_event_is_a_cloud_event_in_binary_mode() {
        let message = message(&event());
        assert_eq!(message.id, "order.paid:1");
        assert_eq!(&message.body[..], br#"{"order_no": "ORD_01"}"#);
        insta::assert_json_snapshot!(message.headers);
    }
}
