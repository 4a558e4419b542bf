//! A gateway's callback as a message: one line of JSON describes it, then its bytes follow unchanged.
//!
//! Nothing is in the headers of the message. The broker parses the headers of every message, which takes a quarter of
//! the cost of a bare publish (ops/decisions/0015), and it cannot split long ones.

use std::borrow::Cow;

use bytes::Bytes;
use domain::message::callback::Callback;
use domain::{AccountName, PaymentMethod};
use lapin::message::Delivery;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};

use crate::error::BrokerError;
use crate::publish::Message;
use crate::topology;

/// The first line; the fields are those of [`Callback`].
#[derive(Serialize, Deserialize)]
struct Head<'a> {
    method: PaymentMethod,
    account: Cow<'a, AccountName>,
    #[serde(with = "time::serde::rfc3339")]
    received_at: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<i64>,
    headers: Cow<'a, [(String, String)]>,
}

/// The message that carries `callback` to the callback worker; `id` identifies it in confirms and returns.
pub fn callback_message(callback: &Callback, id: String) -> Message {
    let head = Head {
        method: callback.method,
        account: Cow::Borrowed(&callback.account),
        received_at: callback.received_at,
        job_id: callback.job_id,
        headers: Cow::Borrowed(&callback.headers),
    };
    // A time outside the years 0 to 9999 cannot be written; such a callback is refused on arrival.
    let mut body = serde_json::to_vec(&head).unwrap_or_default();
    body.reserve_exact(1 + callback.body.len());
    body.push(b'\n');
    body.extend_from_slice(&callback.body);
    Message {
        exchange: topology::PAYMENT_IN.to_owned(),
        routing_key: topology::CALLBACKS.to_owned(),
        id,
        kind: None,
        content_type: "application/octet-stream".to_owned(),
        headers: Vec::new(),
        body: body.into(),
    }
}

/// Reads a delivery of the callback queue. The signature is not checked yet.
///
/// # Errors
/// See [`callback_of`].
pub fn callback_from(delivery: &Delivery) -> Result<Callback, BrokerError> {
    callback_of(&delivery.data)
}

/// The callback in a message with this body, such as a stored dead letter.
///
/// # Errors
/// [`BrokerError::Malformed`] states what is missing or unreadable.
pub fn callback_of(message: &[u8]) -> Result<Callback, BrokerError> {
    let malformed = |why: &dyn ToString| BrokerError::Malformed(why.to_string());
    let end = message.iter().position(|byte| *byte == b'\n').ok_or_else(|| malformed(&"it has no first line"))?;
    let head: Head<'_> = serde_json::from_slice(&message[..end]).map_err(|error| malformed(&error))?;
    // In UTC it may fall in a year that the type cannot hold.
    let received_at = head.received_at.checked_to_offset(UtcOffset::UTC);
    Ok(Callback {
        method: head.method,
        account: head.account.into_owned(),
        headers: head.headers.into_owned(),
        body: Bytes::copy_from_slice(&message[end + 1..]),
        received_at: received_at.ok_or_else(|| malformed(&"received_at is out of range"))?,
        job_id: head.job_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// We do not trust the queue: a time past the year 9999 in UTC would panic when it is written.
    #[test]
    fn a_moment_that_no_year_holds_is_malformed() {
        let message = |at: &str| {
            format!(r#"{{"method":"alipay","account":"main","received_at":"{at}","headers":[]}}"#) + "\nbody"
        };
        let received = |at: &str| callback_of(message(at).as_bytes()).map(|callback| callback.received_at.offset());
        assert_eq!(received("2026-01-05T10:21:08+08:00").unwrap(), UtcOffset::UTC);
        for at in ["9999-12-31T23:59:59-08:00", "9999-12-31T23:59:59-23:59"] {
            assert!(matches!(received(at), Err(BrokerError::Malformed(_))), "{at}");
        }
    }
}
