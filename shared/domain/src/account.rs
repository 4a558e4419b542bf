//! The name of a merchant account at a gateway, and the id of a user at the merchant.

use crate::text::text_type;

text_type! {
    /// The name of one account in `gateways.toml`: 1 to 32 of `[a-z0-9-]`. Callback paths and orders contain it.
    AccountName, AccountNameError, "an account name of 1 to 32 characters a-z, 0-9 and -",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

text_type! {
    /// A user of the merchant, as in the token's `sub`: 1 to 64 printable ASCII characters without spaces, such as a UUID
    /// with hyphens.
    UserId, UserIdError, "a user id of 1 to 64 printable ASCII characters",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

impl UserId {
    /// The longest id, in characters, that the release before 64 can read.
    pub const SHORT: usize = 32;

    /// Whether the id is longer than [`UserId::SHORT`], so that the release before cannot read it.
    pub fn is_long(&self) -> bool {
        self.as_str().len() > UserId::SHORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_what_identity_providers_send() {
        for (text, is_long) in [
            ("7f1c2f0e-5a2b-4c1d-9e3f-0a1b2c3d4e5f", true),
            ("login-oauth2|104215367890123456789", true),
            ("7f1c2f0e5a2b4c1d9e3f0a1b2c3d4e5f", false),
            ("u", false),
            (&"x".repeat(33), true),
            (&"x".repeat(64), true),
        ] {
            assert_eq!(UserId::parse(text).map(|user| user.is_long()), Ok(is_long), "{text}");
        }
        for text in ["", "two words", "用户", "u1\n", &"x".repeat(65)] {
            assert_eq!(UserId::parse(text), Err(UserIdError), "{text}");
        }
    }
}
