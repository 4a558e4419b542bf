//! The name of a merchant account at a gateway, and the id of a user at the merchant.

use crate::text::text_type;

text_type! {
    /// The name of one account in `gateways.toml`: 1 to 32 of `[a-z0-9-]`. Callback paths and orders contain it.
    AccountName, AccountNameError, "an account name of 1 to 32 characters a-z, 0-9 and -",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

text_type! {
    /// A user of the merchant, as in the token's `sub`: 1 to 32 printable ASCII characters.
    UserId, UserIdError, "a user id of 1 to 32 printable ASCII characters",
    |text| (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}
