//! Ids of our own rows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The id of an order: a UUIDv7 in 32 lower-case hex digits, so that ids sort by time of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrderId(u128);

/// The text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 lower-case hex digits")]
pub struct ParseIdError;

impl OrderId {
    /// An id from the bits of a UUID.
    pub const fn from_u128(bits: u128) -> OrderId {
        OrderId(bits)
    }

    /// # Errors
    /// [`ParseIdError`] for anything but 32 lower-case hex digits.
    pub fn parse(text: &str) -> Result<OrderId, ParseIdError> {
        let fits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !fits {
            return Err(ParseIdError);
        }
        u128::from_str_radix(text, 16).map(OrderId).map_err(|_| ParseIdError)
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl TryFrom<String> for OrderId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<OrderId, ParseIdError> {
        OrderId::parse(&text)
    }
}

impl From<OrderId> for String {
    fn from(id: OrderId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = OrderId::from_u128(0x0193_a1b2_c3d4_7e5f_8899_aabb_ccdd_eeff);
        assert_eq!(OrderId::parse(&id.to_string()), Ok(id));
        assert_eq!(OrderId::from_u128(1).to_string().len(), 32);
        for text in ["", "0193A1B2C3D47E5F8899AABBCCDDEEFF", "+193a1b2c3d47e5f8899aabbccddeeff", "0193a1b2"] {
            assert_eq!(OrderId::parse(text), Err(ParseIdError), "{text}");
        }
    }
}
