//! The name of a merchant account at a gateway, and of a user at the merchant.

use crate::text::text_type;

text_type! {
    /// Names one account of `gateways.toml`: 1 to 32 of `[a-z0-9-]`. It stands in callback paths and on orders.
    AccountName, AccountNameError, "an account name of 1 to 32 characters a-z, 0-9 and -",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

text_type! {
    /// A user of the merchant, as the token's `sub` names him: 1 to 32 printable ASCII characters.
    UserId, UserIdError, "a user id of 1 to 32 printable ASCII characters",
    |text| (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}
