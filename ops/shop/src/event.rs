//! A fulfilment event as it arrives from the queue: a CloudEvent 1.0 in AMQP binary mode.

use lapin::types::{AMQPValue, FieldTable};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

/// An event that the shop received.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Event {
    /// The same for every repeat of the same fact.
    pub(crate) event_id: String,
    /// For example `order.paid`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The order's id.
    pub(crate) subject: Option<String>,
    /// The data from the payment service.
    pub(crate) data: Value,
}

/// The reason why a message is not an event.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Unreadable {
    #[error("the attribute {0} is missing")]
    Missing(&'static str),
    #[error("the body is not a JSON object")]
    Body,
}

impl Event {
    /// Reads the attributes from the headers and the data from the body.
    pub(crate) fn read(headers: Option<&FieldTable>, body: &[u8]) -> Result<Event, Unreadable> {
        let required = |name| attribute(headers, name).ok_or(Unreadable::Missing(name));
        let data: Value = serde_json::from_slice(body).map_err(|_| Unreadable::Body)?;
        if !data.is_object() {
            return Err(Unreadable::Body);
        }
        Ok(Event { event_id: required("id")?, kind: required("type")?, subject: attribute(headers, "subject"), data })
    }

    /// A text field of the data, empty when it is absent.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.data.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The AMQP binding of CloudEvents allows two prefixes, because some brokers do not support the colon.
fn attribute(headers: Option<&FieldTable>, name: &str) -> Option<String> {
    let headers = headers?.inner();
    ["cloudEvents:", "cloudEvents_"].iter().find_map(|prefix| {
        match headers.get(format!("{prefix}{name}").as_str())? {
            AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in pairs {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        table
    }

    #[test]
    fn an_event_is_read_with_either_prefix() {
        for prefix in ["cloudEvents:", "cloudEvents_"] {
            let table = headers(&[(&format!("{prefix}id"), "order.paid:1"), (&format!("{prefix}type"), "order.paid")]);
            let event = Event::read(Some(&table), br#"{"order_no":"A1"}"#).unwrap();
            assert_eq!((event.event_id.as_str(), event.kind.as_str()), ("order.paid:1", "order.paid"));
            assert_eq!((event.field("order_no"), event.field("trade_no")), ("A1", ""));
            assert_eq!(event.subject, None);
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let table = headers(&[("cloudEvents:id", "1")]);
        assert_eq!(Event::read(Some(&table), b"{}"), Err(Unreadable::Missing("type")));
        assert_eq!(Event::read(None, b"{}"), Err(Unreadable::Missing("id")));
        for body in [&b"[]"[..], b"", b"\xff", b"null"] {
            assert_eq!(Event::read(Some(&table), body), Err(Unreadable::Body));
        }
    }
}
