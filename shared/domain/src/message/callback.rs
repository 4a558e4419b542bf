//! A callback on its way from the ingress to the worker.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;

use crate::account::AccountName;
use crate::payment_method::PaymentMethod;

/// A gateway's callback as it arrived: the exact bytes, and the headers that its signature needs.
///
/// It is sent as a message (one line of JSON, then the unchanged body) or, when the broker is not available, stored as
/// the payload of a `jobs` row (JSON, body in base64). It is evidence, not truth: every reader verifies the signature
/// again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// The gateway whose address was called.
    pub method: PaymentMethod,
    /// The account whose address was called.
    pub account: AccountName,
    /// The headers that the signature covers or names, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub body: Bytes,
    /// When the ingress had read the last byte.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// The `jobs` row that also holds this callback. The process that reaches a verdict deletes the row.
    #[serde(default, skip_serializing)]
    pub job_id: Option<i64>,
}

impl Callback {
    /// The payload of a job with this callback. `None`: it has text that PostgreSQL cannot store.
    pub fn payload(&self) -> Option<serde_json::Value> {
        let storable = self.headers.iter().all(|(name, value)| !name.contains('\0') && !value.contains('\0'));
        serde_json::to_value(self).ok().filter(|_| storable)
    }

    /// The value of a stored header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Shows the gateway, the account and the length; never the bytes, which name the payer.
impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callback({}/{}, {} bytes)", self.method, self.account, self.body.len())
    }
}

/// The longest body that the ingress accepts. A longer one in the queue of callbacks did not come from the ingress.
pub const LONGEST_BODY: usize = 64 * 1024;

/// A name for bytes that have no name of their own: `sha256:` and 64 hex digits.
pub fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}
