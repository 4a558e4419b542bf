//! Runs cargo on this checkout, in steps that a person can follow.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::{
    process::Process,
    rundir::checkout,
    ui::{check_stop, is_stopping},
};

/// A tool must end within this time after SIGTERM: a test runner stops its tests first.
const GRACE: Duration = Duration::from_secs(30);

/// The profile for building binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Fast to build.
    Dev,
    /// Fast to run.
    Release,
}

/// `cargo` with these arguments, at the root of the checkout, without a database.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(checkout()).stdin(Stdio::null());
    // The variables that `cargo run` sets for this tool must not reach the cargo process below it.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    // The checked queries are compiled from `.sqlx`, whatever `DATABASE_URL` the caller's shell has.
    cargo.env("SQLX_OFFLINE", "true").env_remove("DATABASE_URL");
    cargo
}

/// Runs a command until it ends, with its output on the screen.
///
/// # Errors
/// When it cannot be run, or this tool is asked to stop, which also stops the command.
pub fn finish(command: &mut Command) -> Result<ExitStatus> {
    finish_within(command, Duration::MAX)?.context("a command was stopped")
}

/// The same with a time limit: after it, the command is stopped and the result is `None`.
///
/// # Errors
/// When it cannot be run, or this tool is asked to stop, which also stops the command.
pub fn finish_within(command: &mut Command, patience: Duration) -> Result<Option<ExitStatus>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("could not run {name}"))?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            check_stop()?;
            return Ok(Some(status));
        }
        if is_stopping() || begun.elapsed() > patience {
            end(&mut child);
            check_stop()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(30));
    }
}

fn end(child: &mut Child) {
    let process = i32::try_from(child.id()).ok().and_then(Process::find);
    if let Some(process) = process {
        process.stop(Signal::TERM, GRACE);
    }
    drop(child.wait());
}

/// Returns another program's exit code; a signal counts as 1.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Runs a command that must succeed.
pub fn must(what: &str, command: &mut Command) -> Result<()> {
    let status = finish(command)?;
    ensure!(status.success(), "{what}: see the messages above ({})", shown(command));
    Ok(())
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = [program].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Whether cargo has this subcommand on this machine.
pub fn has(subcommand: &str) -> bool {
    let mut version = cargo(&[subcommand, "--version"]);
    version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Builds the workspace's binaries and returns their folder.
pub fn build_binaries(profile: Profile) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--workspace", "--bins", "--locked"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    must("the build failed", &mut build)?;
    let folder = if profile == Profile::Release { "release" } else { "debug" };
    Ok(Workspace::read()?.target_directory.join(folder))
}

/// What `cargo metadata` reports about this workspace.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    /// Its crates.
    pub packages: Vec<Package>,
    /// The target folder.
    pub target_directory: PathBuf,
}

/// One crate.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name for `-p`.
    pub name: String,
    manifest_path: PathBuf,
}

impl Workspace {
    /// Runs `cargo metadata`.
    pub fn read() -> Result<Workspace> {
        let output = cargo(&["metadata", "--no-deps", "--format-version", "1"]).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "cargo metadata failed");
        serde_json::from_slice(&output.stdout).context("cargo metadata printed something else")
    }
}

impl Package {
    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

/// A program built by [`build_binaries`].
pub fn binary(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        bail!("the workspace has no program {name} (looked in {})", folder.display());
    }
    Ok(path)
}
