//! Text types with rules, and shortening on a character boundary.

/// Declares a text type that only `parse` can make: its length and alphabet are checked there and nowhere else.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $error:ident, $rule:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        #[doc = concat!("The text is not ", $rule, ".")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error($rule)]
        pub struct $error;

        impl $name {
            #[doc = concat!("# Errors\n[`", stringify!($error), "`] for another length or alphabet.")]
            pub fn parse(text: impl Into<String>) -> Result<$name, $error> {
                let text = text.into();
                let fits: fn(&str) -> bool = $fits;
                if fits(&text) { Ok($name(text)) } else { Err($error) }
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<$name, $error> {
                $name::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }
    };
}
pub(super) use text_type;

/// Whether a reader can see this character. Blanks are not visible, nor are characters that Unicode gives no shape
/// (zero-width, direction marks, fillers, variation selectors, tags).
pub fn shows(c: char) -> bool {
    let shapeless = matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{180B}'..='\u{180F}'
        | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{2800}' | '\u{3164}'
        | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}' | '\u{1BCA0}'..='\u{1BCA3}'
        | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}');
    !(shapeless || c.is_whitespace() || c.is_control())
}

/// Whether a character controls the device that shows it, such as a terminal: controls, line separators, direction
/// marks, tags.
pub fn steers(c: char) -> bool {
    let of_direction = matches!(c,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{E0000}'..='\u{E007F}');
    of_direction || c.is_control()
}

/// `text` with each character of [`steers`] written as an escape such as `\u{1b}`; those in `kept` stay.
pub fn escaped(text: &str, kept: &[char]) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !kept.contains(&c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// The longest start of `text` that has at most `bytes` bytes and does not split a character.
pub fn shorten_bytes(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The longest start of `text` that has at most `chars` characters.
pub fn shorten_chars(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_nothing_else() {
        let plain = "a 大乐透 + 50% \\ \u{3000}é👍";
        assert_eq!(escaped(plain, &[]), plain);
        assert_eq!(escaped("\u{1b}]52;c\u{7}\n\u{9b}2K\u{7f}", &[]), r"\u{1b}]52;c\u{7}\n\u{9b}2K\u{7f}");
        assert_eq!(escaped("a\nb\r", &['\n']), "a\nb\\r");
        for c in ['\u{202E}', '\u{2066}', '\u{200F}', '\u{2028}', '\u{85}', '\u{E0041}', '\0'] {
            assert!(!escaped(&format!("a{c}b"), &[]).contains(c), "{c:?}");
        }
    }

    #[test]
    fn what_has_no_shape_is_not_seen() {
        for c in
            " \t\u{3000}\u{a0}\u{200b}\u{200d}\u{feff}\u{2060}\u{3164}\u{2800}\u{ad}\u{fe0f}\u{e0020}\u{202e}".chars()
        {
            assert!(!shows(c), "{c:?}");
        }
        for c in "a大-·。/&=\u{1F600}\u{30fb}ｱ".chars() {
            assert!(shows(c), "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn a_shortened_text_is_a_start_of_the_text(text in ".{0,40}", limit in 0usize..60) {
            let by_bytes = shorten_bytes(&text, limit);
            prop_assert!(text.starts_with(by_bytes) && by_bytes.len() <= limit);
            let next = text[by_bytes.len()..].chars().next();
            prop_assert!(next.is_none_or(|c| by_bytes.len() + c.len_utf8() > limit));

            let by_chars = shorten_chars(&text, limit);
            prop_assert!(text.starts_with(by_chars));
            prop_assert_eq!(by_chars.chars().count(), limit.min(text.chars().count()));
        }
    }
}
