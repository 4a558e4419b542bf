//! The table and the JSON.

use std::fmt;

use serde::Serialize;

use crate::figures::{Spread, short};
use crate::plot::Plot;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The machine and the conditions.
    pub(crate) conditions: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) plots: Vec<Plot>,
}

/// The results of a kind of load without a known limit.
#[derive(Debug, Serialize)]
pub(crate) struct Scenario {
    pub(crate) what: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) notes: Vec<String>,
}

/// One quantity, measured once in each repeat.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
}

impl Scenario {
    pub(crate) fn new(what: &str) -> Scenario {
        Scenario { what: what.to_owned(), figures: Vec::new(), notes: Vec::new() }
    }

    /// Adds the result of one repeat.
    pub(crate) fn figure(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure { name: name.to_owned(), unit, values: vec![value] }),
        }
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// The last value of every figure.
    pub(crate) fn summary(&self) -> String {
        let last = |figure: &Figure| {
            let value = figure.values.last().copied().unwrap_or(f64::NAN);
            format!("{} {} {}", figure.name, short(value), figure.unit)
        };
        self.figures.iter().map(last).collect::<Vec<_>>().join(", ")
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) measured: Spread,
    pub(crate) against: String,
    pub(crate) limit: Spread,
    /// The measured median divided by the limit's median.
    pub(crate) ratio: f64,
    pub(crate) target: Target,
    pub(crate) met: bool,
    pub(crate) notes: Vec<String>,
}

/// The required ratio.
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

/// What a row measures, and what it is compared with.
pub(crate) struct Question {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) against: String,
    pub(crate) target: Target,
}

impl Question {
    /// The row with the results of the repeats.
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
        if !self.rows.is_empty() {
            let head = ["", "what", "measured (min–max)", "against", "limit (min–max)", "ratio", "target"];
            table(f, head, self.rows.iter().map(Row::cells))?;
        }
        if !self.scenarios.is_empty() {
            table(f, ["scenario", "figure", "measured (min–max)"], self.scenarios.iter().flat_map(Scenario::cells))?;
        }
        let rows = self.rows.iter().map(|row| (&row.what, &row.notes));
        let scenarios = self.scenarios.iter().map(|scenario| (&scenario.what, &scenario.notes));
        for (what, notes) in rows.chain(scenarios).filter(|(_, notes)| !notes.is_empty()) {
            writeln!(f, "\n{what}:")?;
            for note in notes {
                writeln!(f, "  {note}")?;
            }
        }
        Ok(())
    }
}

/// Writes an empty line, the head, a rule and the lines.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; N],
    lines: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let lines: Vec<[String; N]> = [head.map(str::to_owned)].into_iter().chain(lines).collect();
    let width = |n: usize| lines.iter().map(|line| line[n].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    writeln!(f)?;
    for (n, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            let pad = " ".repeat(width - cell.chars().count());
            write!(f, "| {cell}{pad} ")?;
        }
        writeln!(f, "|")?;
        if n == 0 {
            writeln!(f, "{}|", widths.map(|width| format!("|{}", "-".repeat(width + 2))).concat())?;
        }
    }
    Ok(())
}

/// A median with its minimum and maximum.
fn cell(spread: &Spread, unit: &str) -> String {
    let span = format!("({}–{})", short(spread.min), short(spread.max));
    let span = if spread.repeats > 1 { span } else { String::new() };
    format!("{} {unit} {span}", short(spread.median)).trim_end().to_owned()
}

impl Row {
    fn cells(&self) -> [String; 7] {
        [
            if self.met { "✔" } else { "✘" }.to_owned(),
            self.what.clone(),
            cell(&self.measured, self.unit),
            self.against.clone(),
            cell(&self.limit, self.unit),
            short(self.ratio),
            self.target.to_string(),
        ]
    }
}

impl Scenario {
    fn cells(&self) -> impl Iterator<Item = [String; 3]> {
        let figure = |(n, figure): (usize, &Figure)| {
            let what = if n == 0 { self.what.clone() } else { String::new() };
            [what, figure.name.clone(), cell(&Spread::of(&figure.values), figure.unit)]
        };
        self.figures.iter().enumerate().map(figure)
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
    fn the_tables_have_a_line_for_each_row_and_figure_and_the_notes_are_below() {
        let mut storm = Scenario::new("a storm");
        for (answered, worst) in [(10.0, 3.0), (12.0, 4.0), (11.0, 9.0)] {
            storm.figure("answered", "/s", answered);
            storm.figure("answer p99", "ms", worst);
        }
        storm.note("it rained".to_owned());
        assert_eq!(storm.summary(), "answered 11.0 /s, answer p99 9.00 ms");
        let report = Report {
            conditions: vec!["2 cores".to_owned()],
            rows: vec![row(Target::AtLeast(1.5), &[3.0, 5.0])],
            scenarios: vec![storm],
            plots: Vec::new(),
        };
        let text = report.to_string();
        for line in [
            "| ✔ | callbacks | 4.00 /s (3.00–5.00) | bare    | 2.00 /s         | 2.00  | ≥ 1.5  |",
            "| a storm  | answered   | 11.0 /s (10.0–12.0) |",
            "|          | answer p99 | 4.00 ms (3.00–9.00) |",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        assert!(text.starts_with("2 cores\n"), "{text}");
        assert!(text.ends_with("callbacks:\n  a note\n\na storm:\n  it rained\n"), "{text}");
    }
}
