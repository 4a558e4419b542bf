//! The table and the JSON.

use std::fmt;

use serde::Serialize;

use crate::figures::{Spread, short};

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The machine and the conditions.
    pub(crate) conditions: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) measured: Spread,
    pub(crate) against: String,
    pub(crate) limit: Spread,
    /// Measured over limit, both medians.
    pub(crate) ratio: f64,
    pub(crate) target: Target,
    pub(crate) met: bool,
    pub(crate) notes: Vec<String>,
}

/// What the ratio must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Target::AtLeast(least) => ratio >= least,
            Target::AtMost(most) => ratio <= most,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtLeast(least) => write!(f, "≥ {least}"),
            Target::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// What a row is about, and what it is compared with.
pub(crate) struct Question {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) against: String,
    pub(crate) target: Target,
}

impl Question {
    /// The row, given what the repeats showed.
    pub(crate) fn answer(self, measured: &[f64], limit: &[f64], notes: Vec<String>) -> Row {
        let (measured, limit) = (Spread::of(measured), Spread::of(limit));
        let ratio = measured.median / limit.median;
        Row {
            what: self.what,
            unit: self.unit,
            measured,
            against: self.against,
            limit,
            ratio,
            target: self.target,
            met: self.target.is_met(ratio),
            notes,
        }
    }
}

impl Report {
    pub(crate) fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            writeln!(f, "{condition}")?;
        }
        let head =
            ["", "what", "measured (min–max)", "against", "limit (min–max)", "ratio", "target"].map(str::to_owned);
        let rule = head.clone().map(|_| "-".to_owned());
        let lines: Vec<[String; 7]> = [head, rule].into_iter().chain(self.rows.iter().map(Row::cells)).collect();
        let width = |n: usize| lines.iter().map(|line| line[n].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..7).map(width).collect();
        writeln!(f)?;
        for line in &lines {
            let fill = if line[1] == "-" { '-' } else { ' ' };
            for (cell, width) in line.iter().zip(&widths) {
                let pad: String = std::iter::repeat_n(fill, width - cell.chars().count()).collect();
                write!(f, "| {cell}{pad} ")?;
            }
            writeln!(f, "|")?;
        }
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            writeln!(f, "\n{}:", row.what)?;
            for note in &row.notes {
                writeln!(f, "  {note}")?;
            }
        }
        Ok(())
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let figure = |spread: &Spread| {
            let span = format!("({}–{})", short(spread.min), short(spread.max));
            let span = if spread.repeats > 1 { span } else { String::new() };
            format!("{} {} {span}", short(spread.median), self.unit).trim_end().to_owned()
        };
        [
            if self.met { "✔" } else { "✘" }.to_owned(),
            self.what.clone(),
            figure(&self.measured),
            self.against.clone(),
            figure(&self.limit),
            short(self.ratio),
            self.target.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: Target, measured: &[f64]) -> Row {
        let question = Question { what: "callbacks".to_owned(), unit: "/s", against: "bare".to_owned(), target };
        question.answer(measured, &[2.0], vec!["a note".to_owned()])
    }

    #[test]
    fn a_target_is_met_on_its_own_side_only() {
        assert!(row(Target::AtLeast(1.5), &[3.0]).met && !row(Target::AtLeast(1.6), &[3.0]).met);
        assert!(row(Target::AtMost(1.5), &[3.0]).met && !row(Target::AtMost(1.4), &[3.0]).met);
        assert!(!row(Target::AtMost(1.0), &[]).met);
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_its_notes_below() {
        let report =
            Report { conditions: vec!["2 cores".to_owned()], rows: vec![row(Target::AtLeast(1.5), &[3.0, 5.0])] };
        let text = report.to_string();
        assert!(
            text.contains("| ✔ | callbacks | 4.00 /s (3.00–5.00) | bare    | 2.00 /s         | 2.00  | ≥ 1.5  |"),
            "{text}"
        );
        assert!(text.starts_with("2 cores\n") && text.ends_with("callbacks:\n  a note\n"), "{text}");
    }
}
