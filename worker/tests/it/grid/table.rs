//! Grids as plain text, and the page that shows them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The lines of one field.
pub type Field = Vec<String>;

/// One own state: its name, and its fields under each condition.
pub struct State<'a> {
    pub name: &'a str,
    pub under: Vec<(&'a str, Vec<Field>)>,
}

impl State<'_> {
    /// The rows of the columns `from..to`, name first. Conditions that make no difference share a row.
    fn rows(&self, (from, to): (usize, usize)) -> Vec<Vec<Field>> {
        let mut groups: Vec<(Vec<&str>, &[Field])> = Vec::new();
        for (condition, fields) in &self.under {
            match groups.iter_mut().find(|(_, known)| *known == &fields[from..to]) {
                Some((conditions, _)) => conditions.push(condition),
                None => groups.push((vec![condition], &fields[from..to])),
            }
        }
        let parted = groups.len() > 1;
        let row = |(conditions, fields): (Vec<&str>, &[Field])| {
            let mut name = vec![self.name.to_owned()];
            name.extend(parted.then_some(conditions).into_iter().flatten().map(str::to_owned));
            std::iter::once(name).chain(fields.iter().cloned()).collect()
        };
        groups.into_iter().map(row).collect()
    }
}

/// Draws the columns `part` of a grid. A heading may have several lines.
pub fn draw(headings: &[&str], states: &[State<'_>], part: (usize, usize)) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Field>();
    let head = std::iter::once("own state").chain(headings[part.0..part.1].iter().copied()).map(lines).collect();
    let rows: Vec<Vec<Field>> = std::iter::once(head).chain(states.iter().flat_map(|state| state.rows(part))).collect();
    let width = |column: usize| rows.iter().flat_map(|row| &row[column]).map(|line| line.chars().count()).max();
    let widths: Vec<usize> = (0..=part.1 - part.0).map(|column| width(column).unwrap_or(0)).collect();
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-+-");
    let mut text = String::new();
    for row in &rows {
        for line in 0..row.iter().map(Vec::len).max().unwrap_or(0) {
            let field = |(field, width): (&Field, &usize)| {
                let shown = field.get(line).map_or("", String::as_str);
                format!("{shown}{}", " ".repeat(width - shown.chars().count()))
            };
            let fields: Vec<String> = row.iter().zip(&widths).map(field).collect();
            writeln!(text, "{}", fields.join(" | ").trim_end()).unwrap();
        }
        writeln!(text, "{rule}").unwrap();
    }
    text
}

fn of_the_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The grid that a snapshot holds.
pub fn snapshot(name: &str) -> String {
    let path = of_the_crate("tests/it/snapshots").join(format!("it__grid__{name}.snap"));
    let file = std::fs::read_to_string(path).unwrap();
    let (_, content) = file.trim_start_matches("---\n").split_once("\n---\n").unwrap();
    content.to_owned()
}

/// Asserts that the page shows these parts, each between its markers. With `UPDATE_DOCS=1` it is made to.
pub fn page_shows(path: &str, parts: &[(&str, String)]) -> String {
    let path = of_the_crate(path);
    let page = std::fs::read_to_string(&path).unwrap();
    let right = parts.iter().fold(page.clone(), |page, (name, part)| {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let (head, rest) = page.split_once(&start).unwrap_or_else(|| panic!("the page has no {start}"));
        let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("the page has no {end}"));
        format!("{head}{start}```text\n{}\n```\n{end}{tail}", part.trim_end())
    });
    if std::env::var("UPDATE_DOCS").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &right).unwrap();
    } else {
        assert!(page == right, "the page does not show what the tests say: run with UPDATE_DOCS=1");
    }
    right
}
