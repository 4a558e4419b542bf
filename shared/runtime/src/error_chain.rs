//! The only function that prints an error with its sources.

use std::error::Error;

/// An error and its sources on one line. A source whose text already ends the line is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn each_cause_stands_once() {
        let link = |text, source: Option<Link>| Link { text, source: source.map(Box::new) };
        let error = link("reading the file", Some(link("line 3: no number", Some(link("no number", None)))));
        assert_eq!(chain(&error), "reading the file: line 3: no number");
    }
}
