//! The ids of our rows.

use time::OffsetDateTime;

/// Declares the id type of one kind of row: a UUIDv7 in 32 lower-case hex digits, so ids sort by creation time.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// An id from the bits of a UUID.
            pub const fn from_u128(bits: u128) -> $name {
                $name(bits)
            }

            /// The bits, which sort like the ids.
            pub const fn bits(self) -> u128 {
                self.0
            }

            /// # Errors
            /// [`ParseIdError`] for anything but 32 lower-case hex digits.
            pub fn parse(text: &str) -> Result<$name, ParseIdError> {
                let fits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !fits {
                    return Err(ParseIdError);
                }
                u128::from_str_radix(text, 16).map($name).map_err(|_| ParseIdError)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<$name, ParseIdError> {
                $name::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

/// The text is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 lower-case hex digits")]
pub struct ParseIdError;

/// The smallest bits of any id made at `at` or later. The first 48 bits of a UUIDv7 are milliseconds.
pub fn first_id_at(at: OffsetDateTime) -> u128 {
    let milliseconds = u128::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    milliseconds.min((1 << 48) - 1) << 80
}

id_type! {
    /// The id of an order.
    OrderId
}

id_type! {
    /// The id of one movement of money.
    TransactionId
}

id_type! {
    /// The id of a refund.
    RefundId
}

id_type! {
    /// The id of a case.
    CaseId
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
