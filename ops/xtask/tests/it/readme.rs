//! Compares the paths and functions that the pages name with the source, above all the walks of the README.

use std::fs;

use crate::tidy::{code, root};

/// The most steps of a walk, and the fewest lines that are too many for a file of a walk.
const STEPS: usize = 11;
const TOO_LONG: usize = 200;

/// The paths of the repository that a page names in backticks.
fn paths_named(page: &str) -> Vec<&str> {
    let starts = ["shared/", "api/", "worker/", "ops/", "migrations/"];
    let quoted = page.split('`').skip(1).step_by(2);
    // A name with a placeholder is a form of names.
    quoted
        .filter(|text| starts.iter().any(|start| text.starts_with(start)))
        .filter(|text| !text.contains(['{', '*', '<', '…', ' ']))
        .collect()
}

/// The functions that a page names right after their file: "`path.rs`, `function`".
fn functions_named(page: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = page.split('`').collect();
    let pairs = parts.windows(3).filter(|three| three[0].ends_with(".rs") && three[1] == ", ");
    pairs.map(|three| (three[0], three[2])).collect()
}

#[test]
fn the_paths_that_the_pages_name_exist() {
    for (page, least) in [("README.md", 30), ("ops/recipes.md", 50), ("ops/operate.md", 3)] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let places = paths_named(&text);
        assert!(places.len() >= least, "{page} names its places in backticks: {}", places.len());
        let missing: Vec<&str> = places.into_iter().filter(|place| !root().join(place).exists()).collect();
        assert_eq!(missing, [""; 0], "{page}");
    }
}

/// The walks of a page: the heading of each, and its numbered steps. An indented line continues its step.
fn walks(page: &str) -> Vec<(&str, Vec<String>)> {
    let sections = page.split("\n## ").filter_map(|section| section.strip_prefix("Walk: "));
    let walk = |section| {
        let mut lines = str::lines(section);
        let heading = lines.next().unwrap_or_default();
        let mut steps: Vec<String> = Vec::new();
        for line in lines {
            if line.starts_with(|first: char| first.is_ascii_digit()) {
                steps.push(line.to_owned());
            } else if let Some(step) = steps.last_mut().filter(|_| line.starts_with("   ")) {
                step.push(' ');
                step.push_str(line.trim());
            }
        }
        (heading, steps)
    };
    sections.map(walk).collect()
}

/// What is wrong with a step. `text_of` reads a file of the repository. A function of the unit tests does not count.
fn faults_of_step(step: &str, text_of: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let named = functions_named(step);
    let mut faults = Vec::new();
    if named.is_empty() {
        faults.push(format!("no file with a function: {step}"));
    }
    for path in paths_named(step) {
        match text_of(path).map(|text| text.lines().count()) {
            None => faults.push(format!("{path} is not there")),
            Some(lines) if lines >= TOO_LONG => faults.push(format!("{path} has {lines} lines")),
            Some(_) => {}
        }
    }
    for (path, function) in named {
        let text = text_of(path).unwrap_or_default();
        let opens = [format!("fn {function}("), format!("fn {function}<")];
        if !code(&text).iter().any(|line| opens.iter().any(|open| line.contains(open))) {
            faults.push(format!("{path} has no function {function}"));
        }
    }
    faults
}

/// A reader of a walk finds each function where the page says that it is, in a file that is short.
#[test]
fn the_steps_of_the_walks_are_there_and_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let walks = walks(&readme);
    assert_eq!(walks.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(), ["one callback", "one refund"]);
    for (heading, steps) in walks {
        assert!((8..=STEPS).contains(&steps.len()), "{heading}: {} steps", steps.len());
        let text_of = |path: &str| fs::read_to_string(root().join(path)).ok();
        let faults: Vec<String> = steps.iter().flat_map(|step| faults_of_step(step, text_of)).collect();
        assert_eq!(faults, [""; 0], "{heading}");
    }
}

#[test]
fn a_wrong_step_of_a_walk_is_found() {
    let page = "# A\n\n## Walk: one\n\n1. `api/b.rs`, `f`: does.\n   `api/c.rs`,\n   `g`, too.\n2. Waits.\n\n## Other\n\n1. No.\n";
    let steps = ["1. `api/b.rs`, `f`: does. `api/c.rs`, `g`, too.".to_owned(), "2. Waits.".to_owned()];
    assert_eq!(walks(page), [("one", steps.to_vec())]);
    assert_eq!(functions_named(&steps[0]), [("api/b.rs", "f"), ("api/c.rs", "g")]);
    let faults = |step: &str, text: &str| faults_of_step(step, |_| Some(text.to_owned())).len();
    assert_eq!(faults("`api/b.rs`, `f`: does", "async fn f<T>() {}\n"), 0);
    assert_eq!(faults("`api/b.rs`, `f`: does", "// fn f()\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n"), 1);
    assert_eq!(faults("`api/b.rs`, `f`: does", &"fn f() {}\n".repeat(TOO_LONG)), 1);
    assert_eq!(faults("`api/b.rs` does", "fn f() {}\n"), 1);
    assert_eq!(faults_of_step("`api/b.rs`, `f`: does", |_| None).len(), 2);
}
