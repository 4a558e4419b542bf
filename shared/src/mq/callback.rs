//! A gateway's callback as a message: the body is the bytes as they came, everything else is in the headers.

use bytes::Bytes;
use lapin::message::Delivery;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::consume::headers;
use super::publish::Message;
use super::{MqError, topology};
use crate::domain::{AccountName, PaymentMethod};
use crate::job::Callback;

const METHOD: &str = "method";
const ACCOUNT: &str = "account";
const RECEIVED_AT: &str = "received-at";
pub(super) const JOB_ID: &str = "job-id";
/// Before the name of each header that came over HTTP, so that none can pass for one of ours.
const HTTP: &str = "h-";

/// The message that carries `callback` to the callback worker; `id` names it in confirms and returns.
pub fn callback_message(callback: &Callback, id: String) -> Message {
    // Formatting fails only outside the years 0 to 9999; such a callback is refused on arrival.
    let received_at = callback.received_at.format(&Rfc3339).unwrap_or_default();
    let mut headers = vec![
        (METHOD.to_owned(), callback.method.to_string()),
        (ACCOUNT.to_owned(), callback.account.to_string()),
        (RECEIVED_AT.to_owned(), received_at),
    ];
    headers.extend(callback.job_id.map(|job| (JOB_ID.to_owned(), job.to_string())));
    headers.extend(callback.headers.iter().map(|(name, value)| (format!("{HTTP}{name}"), value.clone())));
    Message {
        exchange: topology::PAYMENT_IN.to_owned(),
        routing_key: topology::CALLBACKS.to_owned(),
        id,
        kind: None,
        content_type: "application/octet-stream".to_owned(),
        headers,
        body: callback.body.clone(),
    }
}

/// Reads a delivery of the callback queue. Its signature is still to be checked.
///
/// # Errors
/// [`MqError::Malformed`] names the header that is missing or unreadable.
pub fn callback_from(delivery: &Delivery) -> Result<Callback, MqError> {
    callback_of(&headers(delivery).collect::<Vec<_>>(), Bytes::copy_from_slice(&delivery.data))
}

/// The callback that a message with these headers and this body carries, such as a dead letter that is kept.
///
/// # Errors
/// [`MqError::Malformed`] names the header that is missing or unreadable.
pub fn callback_of(headers: &[(&str, &str)], body: Bytes) -> Result<Callback, MqError> {
    let malformed = |name: &str| MqError::Malformed(format!("header {name}"));
    let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let method = header(METHOD).and_then(|text| text.parse::<PaymentMethod>().ok());
    let account = header(ACCOUNT).and_then(|text| AccountName::parse(text).ok());
    let received_at = header(RECEIVED_AT).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let job_id = match header(JOB_ID) {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| malformed(JOB_ID))?),
    };
    let over_http = |(name, value): &(&str, &str)| Some((name.strip_prefix(HTTP)?.to_owned(), (*value).to_owned()));
    let headers = headers.iter().filter_map(over_http).collect();
    Ok(Callback {
        method: method.ok_or_else(|| malformed(METHOD))?,
        account: account.ok_or_else(|| malformed(ACCOUNT))?,
        headers,
        body,
        received_at: received_at.ok_or_else(|| malformed(RECEIVED_AT))?,
        job_id,
    })
}
