//! `cargo xtask drill`: every fault of `ops/degraded-modes.md`, one after another, on its own servers.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{self, Profile, cargo},
    rundir::checkout,
    running::{Running, Servers},
    servers::{Kind, Source},
    test,
    ui::say,
};

/// The page that names the drills.
const PAGE: &str = "ops/degraded-modes.md";

/// Which drills, and how many times.
#[derive(Debug, Args)]
pub struct Drill {
    /// Only drills whose names contain one of these
    names: Vec<String>,
    /// How many times each drill runs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Print the names and run none
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    source: Source,
}

/// Runs the drills; the exit code is that of the first run that failed.
pub fn run(drill: &Drill, xtask: &Path) -> Result<ExitCode> {
    let page = fs::read_to_string(checkout().join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    let wanted = |name: &&str| drill.names.is_empty() || drill.names.iter().any(|part| name.contains(part));
    let drills: Vec<&str> = named(&page).into_iter().filter(wanted).collect();
    ensure!(!drills.is_empty(), "no drill of {PAGE} has such a name; `cargo xtask drill --list` shows them");
    if drill.list {
        drills.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut running = Running::up("drill", Servers::Own, &Kind::ALL, &drill.source)?;
    running.keep_logs();
    say("build", "cargo build --bins (dev profile), the programs that the drills run");
    let binaries = cargo::build_binaries(Profile::Dev)?;
    let env = test::environment(&running.set, &binaries, xtask)?;
    for time in 1..=drill.times {
        say("drill", format_args!("{} drills, run {time} of {}", drills.len(), drill.times));
        let status = cargo::finish(runner().args(&drills).envs(env.clone()).env("PAYMENT_DRILL", "1"))?;
        if !status.success() {
            return Ok(cargo::exit_code(status));
        }
    }
    running.forget_logs();
    Ok(ExitCode::SUCCESS)
}

/// One drill at a time, so that each has the whole machine. The counts that they print are shown.
fn runner() -> Command {
    if cargo::has("nextest") {
        let mut nextest = cargo(&["nextest", "run", "--package", "e2e", "--locked", "--no-fail-fast", "--no-capture"]);
        nextest.arg("--test-threads=1");
        return nextest;
    }
    let mut cargo = cargo(&["test", "--package", "e2e", "--locked", "--no-fail-fast", "--test", "it", "--"]);
    cargo.args(["--test-threads=1", "--nocapture"]);
    cargo
}

/// The tests that the page names: text in backticks that has a module in front.
fn named(page: &str) -> BTreeSet<&str> {
    page.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drills_are_the_tests_that_the_page_names() {
        let page = "| Redis | all | `redis_up` 0 | `caches::away` |\n| both | none | `a` | `outages::both` |";
        assert_eq!(named(page).into_iter().collect::<Vec<_>>(), ["caches::away", "outages::both"]);
    }

    #[test]
    fn each_drill_of_the_page_is_a_test() {
        let page = fs::read_to_string(checkout().join(PAGE)).unwrap();
        let drills = named(&page);
        assert!(drills.len() >= 15, "{drills:?}");
        for name in drills {
            let (module, test) = name.split_once("::").unwrap();
            let file = checkout().join(format!("ops/e2e/tests/it/{module}.rs"));
            let source = fs::read_to_string(&file).unwrap_or_default();
            assert!(source.contains(&format!("async fn {test}()")), "{name} is no test");
        }
    }
}
