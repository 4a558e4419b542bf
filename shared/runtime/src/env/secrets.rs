//! Rejects texts that are not usable secrets: values that this repository has published, and placeholders.

/// A text with fewer different bytes than this was typed as a placeholder. `openssl rand -hex 32` gives 64 digits out
/// of 16: the probability of fewer than 8 different ones is less than 1 in 10^18, and for half that length less than 1
/// in 10^7.
const FEWEST_DIFFERENT: usize = 8;

/// The start of every placeholder of `.env.example`, today and in each earlier release.
const PLACEHOLDER: &str = "change-me";

/// Describes why a text is not a secret of at least `shortest` bytes, without repeating the text.
pub fn weakness(secret: &str, shortest: usize) -> Option<String> {
    if secret.len() < shortest {
        return Some(format!("it has {} bytes and needs at least {shortest}", secret.len()));
    }
    if let Some(wrong) = placeholder(secret) {
        return Some(wrong);
    }
    let mut seen = [false; 256];
    secret.bytes().for_each(|byte| seen[usize::from(byte)] = true);
    let different = seen.iter().filter(|seen| **seen).count();
    (different < FEWEST_DIFFERENT)
        .then(|| format!("it has {different} different bytes and needs at least {FEWEST_DIFFERENT}: it can be guessed"))
}

/// Describes why a text, such as an address with its password, is unusable: it was copied from `.env.example`. Percent
/// escapes may hide characters, so the text is decoded first.
pub(super) fn placeholder(text: &str) -> Option<String> {
    let plain: String = decoded(text).to_lowercase().chars().map(|c| if c == '_' { '-' } else { c }).collect();
    let copied = plain.contains(PLACEHOLDER) || plain.contains("changeme");
    copied.then(|| "it holds a placeholder of .env.example, which everybody knows".to_owned())
}

/// A part of a URL with its percent escapes decoded.
pub fn decoded(text: &str) -> String {
    let pairs = format!("v={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(pairs.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand;

    use super::*;

    #[test]
    fn what_was_published_or_fills_the_place_is_no_secret() {
        let zeros = "0".repeat(64);
        for (secret, wrong) in [
            ("change-me-0123456789-0123456789-0123456789", "placeholder"),
            ("change-me-9876543210-9876543210-9876543210", "placeholder"),
            ("my-own-CHANGE-ME-9876543210-9876543210", "placeholder"),
            ("ChangeMe-0123456789-0123456789-0123456789", "placeholder"),
            ("change_me_0123456789_0123456789_0123456789", "placeholder"),
            (&zeros, "1 different bytes"),
            ("abcdefgabcdefgabcdefgabcdefgabcdefg", "7 different bytes"),
            ("short", "it has 5 bytes and needs at least 32"),
            ("", "it has 0 bytes"),
        ] {
            let found = weakness(secret, 32).unwrap_or_default();
            assert!(found.contains(wrong) && (secret.is_empty() || !found.contains(secret)), "{secret}: {found}");
        }
        for password in ["redis://:change-me-redis@h/0", "amqp://payment:change%2Dme-service@h/%2f"] {
            assert!(placeholder(password).is_some(), "{password}");
        }
        assert_eq!(placeholder("postgres://changed:me@h/d"), None);
    }

    #[test]
    fn a_part_of_a_url_is_read_without_its_percent_signs() {
        assert_eq!(["a%40b", "a+b", "a&b"].map(decoded), ["a@b", "a+b", "a&b"]);
    }

    #[test]
    fn a_random_secret_always_passes() {
        for _ in 0..5_000 {
            let mut bytes = [0_u8; 32];
            rand::fill(&mut bytes).unwrap();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(weakness(&hex, 32), None, "{hex}");
        }
    }
}
