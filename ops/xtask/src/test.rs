//! `cargo xtask test`: everything that must hold, the fastest checks first.
//!
//! The last lines on the screen are the test runner's own summary.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Result, ensure};
use clap::Args;

use crate::{
    cargo::{self, Profile, cargo, must},
    prepare,
    running::{Running, Servers},
    servers::{Kind, Set, Source},
    supply,
    ui::say,
};

/// How to test.
#[derive(Debug, Args)]
pub struct Test {
    /// Use the servers of `cargo xtask up`, start them if necessary, and leave them running.
    #[arg(long)]
    reuse: bool,
    /// Skip formatting, clippy, documentation and the check of .sqlx.
    #[arg(long)]
    skip_lints: bool,
    #[command(flatten)]
    source: Source,
    /// Arguments of the test runner (cargo nextest if installed, else cargo test); documentation tests are skipped.
    #[arg(last = true)]
    runner_args: Vec<String>,
}

/// Runs the checks and the tests; the exit code is the test runner's.
pub fn run(test: &Test, xtask: &Path) -> Result<ExitCode> {
    if !test.skip_lints {
        lint()?;
    }
    say("servers", "PostgreSQL, RabbitMQ and Redis for the tests");
    let whose = if test.reuse { Servers::OfUp } else { Servers::Own };
    let mut running = Running::up("test", whose, &Kind::ALL, &test.source)?;
    // From here on a failure leaves the servers' logs in place.
    running.keep_logs();
    if !test.skip_lints {
        prepare::check(&running.set)?;
    }
    say("build", "cargo build --bins (dev profile), the programs that the end-to-end tests run");
    let binaries = cargo::build_binaries(Profile::Dev)?;
    let env = environment(&running.set, &binaries, xtask)?;
    if test.runner_args.is_empty() {
        say("doc tests", "cargo test --doc");
        must(
            "a documentation test failed",
            cargo(&["test", "--doc", "--workspace", "--locked", "--quiet"]).envs(env.clone()),
        )?;
    }
    let status = cargo::finish(runner().args(&test.runner_args).envs(env))?;
    if status.success() {
        running.forget_logs();
    }
    Ok(cargo::exit_code(status))
}

/// The checks that need no server.
fn lint() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        ensure!(cargo::has(tool), "cargo {tool} is not on this machine: `rustup component add {component}`");
    }
    say("format", "cargo fmt --check");
    must("not formatted: run `cargo fmt --all`", &mut cargo(&["fmt", "--all", "--check"]))?;
    supply::check()?;
    say("lints", "cargo clippy");
    must(
        "clippy found something",
        &mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    )?;
    say("documentation", "cargo doc");
    must(
        "the documentation has faults",
        cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn runner() -> Command {
    if cargo::has("nextest") {
        say("tests", "cargo nextest run");
        return cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    }
    say("tests", "cargo test (cargo-nextest, if installed, would run them faster)");
    cargo(&["test", "--workspace", "--lib", "--bins", "--tests", "--locked", "--no-fail-fast"])
}

/// The variables for tests and the load tool: servers, programs, and this tool itself.
pub fn environment(set: &Set, binaries: &Path, xtask: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut env = set.env()?;
    env.push(("PAYMENT_BIN_DIR", binaries.display().to_string()));
    env.push(("PAYMENT_XTASK", xtask.display().to_string()));
    Ok(env)
}
