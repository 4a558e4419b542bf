//! The result of a command: as text for people and as JSON for scripts.

use std::fmt;

use domain::{escaped, steers};
pub use runtime::beijing::{instant, moment};
use runtime::error_chain::chain;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use store::DbError;
use time::OffsetDateTime;
use time::macros::format_description;

/// The result of a command that ran.
#[derive(Debug, Clone)]
pub struct Answer {
    /// For people, without a line break at the end.
    pub text: String,
    /// The same for scripts.
    pub json: Value,
    /// Whether the command did everything that was requested, or in a dry run would do it.
    pub done: bool,
    /// A secret that is shown this once, as the last line of the text, or as a field of the JSON.
    pub secret: Option<Secret>,
}

/// A secret in an answer.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Its field in the JSON.
    pub field: &'static str,
    /// The secret.
    pub text: SecretString,
}

impl Answer {
    /// Everything is done.
    pub fn done(text: impl Into<String>, json: Value) -> Answer {
        Answer::new(text, json, true)
    }

    /// Done, or not.
    pub fn new(text: impl Into<String>, json: Value, done: bool) -> Answer {
        Answer { text: text.into(), json, done, secret: None }
    }

    /// The same with a secret, which is printed on standard output and nowhere else.
    #[must_use]
    pub fn with_secret(self, field: &'static str, text: SecretString) -> Answer {
        Answer { secret: Some(Secret { field, text }), ..self }
    }

    /// What is printed: text for people, or one line of JSON for scripts.
    pub fn printed(&self, as_json: bool) -> String {
        let secret = self.secret.as_ref().map(|secret| (secret.field, secret.text.expose_secret()));
        match (secret, as_json) {
            (None, true) => json_line(&self.json),
            (None, false) => shown(&self.text),
            (Some((field, secret)), true) => {
                let mut json = self.json.clone();
                json[field] = Value::from(secret);
                json_line(&json)
            }
            (Some((_, secret)), false) if self.text.is_empty() => secret.to_owned(),
            (Some((_, secret)), false) => format!("{}\n{secret}", shown(&self.text)),
        }
    }
}

/// The error of a command. The command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub said: String,
    /// What to do.
    pub hint: String,
    /// Whether the command line itself is wrong, so that it can never work.
    pub usage: bool,
}

impl Problem {
    /// The command line is valid, but the command failed.
    pub fn failed(said: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { said: said.into(), hint: hint.into(), usage: false }
    }

    /// The command line is wrong.
    pub fn usage(said: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { said: said.into(), hint: hint.into(), usage: true }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n hint: {}", shown(&self.said), shown(&self.hint))
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Problem {
        let hint = match &error {
            DbError::Unavailable(_) => "check DATABASE_URL, and that the server runs and knows this user",
            DbError::Again(_) => "something else works on the same rows; try again in a moment",
            DbError::Moved => "another process changed this row first; check its state again",
            _ => "nothing was changed; look at the row with `explain` or `cases show`",
        };
        Problem::failed(chain(&error), hint)
    }
}

/// A time in the form in which a case's history stores it: UTC, to the millisecond.
pub fn stored(at: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(time::UtcOffset::UTC).format(form).unwrap_or_else(|_| at.to_string())
}

/// Joins lines for people. They can contain a broker's numbers, notes, or a gateway's text. Characters that would
/// control the terminal, or make one line look like two, are escaped.
pub fn lines<Line: AsRef<str>>(lines: &[Line]) -> String {
    lines.iter().map(|line| escaped(line.as_ref(), &[])).collect::<Vec<_>>().join("\n")
}

/// Text that is safe for a terminal: line breaks are its only control characters.
pub fn shown(text: &str) -> String {
    escaped(text, &['\n'])
}

/// JSON that is safe for a terminal or a script. Control characters occur only in its strings, where an escape
/// means the same.
pub fn json_line(value: &Value) -> String {
    let text = value.to_string();
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            plain.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// A table: a heading and rows. Each column is as wide as its widest cell.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|cells| cells.iter().map(|cell| escaped(cell, &[])).collect()).collect();
    let rows = &rows[..];
    let width = |text: &str| text.chars().count();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell));
        cells.chain([width(heading[column])]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heading.len()).map(widest).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heading: Vec<String> = heading.iter().map(|&name| name.to_owned()).collect();
    let lines: Vec<String> = [&heading].into_iter().chain(rows).map(|cells| line(cells)).collect();
    lines.join("\n")
}

/// A list, followed by a note if there are more entries than it shows.
pub fn with_more(list: String, more: Option<&str>) -> String {
    match more {
        Some(more) => format!("{list}\n({more})"),
        None => list,
    }
}

/// `1 case`, `2 cases`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["1".to_owned(), "a".to_owned()], vec!["2222".to_owned(), "bb".to_owned()]];
        assert_eq!(table(&["NO", "NAME"], &rows), "NO    NAME\n1     a\n2222  bb");
        assert_eq!(table(&["NO", "NAME"], &[]), "NO  NAME");
    }

    /// Text from a broker, a gateway or another operator must not control the terminal.
    #[test]
    fn nothing_steers_the_terminal() {
        let bad = "a\u{1b}]52;c;Zm9v\u{7}\n1  resolved\u{202E}\u{9b}2K";
        let cells = table(&["NO"], &[vec![bad.to_owned()]]);
        let said = Problem::failed(bad, bad).to_string();
        let json = json_line(&serde_json::json!({ "number": bad, "tag": "\u{E0041}" }));
        for text in [&cells, &lines(&[bad]), &shown(bad), &said, &json] {
            assert!(!text.chars().any(|c| c != '\n' && steers(c)), "{text:?}");
        }
        assert_eq!((cells.lines().count(), lines(&[bad, "b"]).lines().count()), (2, 2), "no line is forged");
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((read["number"].as_str(), read["tag"].as_str()), (Some(bad), Some("\u{E0041}")));
    }

    #[test]
    fn a_secret_is_printed_once_and_never_shown_otherwise() {
        let answer = Answer::done("made", serde_json::json!({ "id": 1 })).with_secret("secret", "hidden".into());
        assert_eq!(answer.printed(false), "made\nhidden");
        assert_eq!(answer.printed(true), r#"{"id":1,"secret":"hidden"}"#);
        assert!(!format!("{answer:?}").contains("hidden"));
        let alone = Answer::done("", serde_json::json!({})).with_secret("token", "hidden".into());
        assert_eq!(alone.printed(false), "hidden");
    }

    #[test]
    fn people_read_the_time_of_beijing_and_a_history_stores_utc() {
        let at = datetime!(2026-01-05 10:21:08.5 +8);
        assert_eq!(moment(at), "2026-01-05T10:21:08+08:00");
        assert_eq!(instant(at), "2026-01-05T10:21:08.500+08:00");
        assert_eq!(stored(at), "2026-01-05T02:21:08.500Z");
    }
}
