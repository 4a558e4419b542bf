//! What is built in and where it comes from: `cargo deny` over every dependency, known vulnerabilities, and a list
//! of all dependencies.
//!
//! Cargo installs the tools if they are missing. They are built without optimization: this halves the build time,
//! and they run only for seconds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{Workspace, cargo, finish_within, has, must},
    rundir::checkout,
    ui::say,
};

/// The database of known vulnerabilities.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";
/// The name that `cargo deny` gives the folder of that database.
const FOLDER: &str = "advisory-db-3157b0e258782691";
/// Our copy of it, for machines that cannot reach it.
const COPY: &str = "ops/xtask/advisories.tar.gz";
/// The server must answer within this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A subcommand of cargo that is installed when it is missing.
struct Tool {
    /// The subcommand.
    name: &'static str,
    /// The crate that holds it.
    package: &'static str,
    /// The release of the crate.
    version: &'static str,
}

const DENY: Tool = Tool { name: "deny", package: "cargo-deny", version: "0.20.2" };
const CYCLONEDX: Tool = Tool { name: "cyclonedx", package: "cargo-cyclonedx", version: "0.5.9" };

/// Checks licences, sources, bans and known vulnerabilities, as deny.toml says.
pub fn check() -> Result<()> {
    install(&DENY)?;
    let fetched = if is_reachable() { fetch().ok() } else { None };
    let known = match fetched {
        Some(known) => known,
        None => unpack()?,
    };
    say("dependencies", format_args!("cargo deny check; vulnerabilities are known as of {known}"));
    // cargo deny needs the crates of every platform; after this fetch it works offline.
    must("a crate cannot be fetched", &mut cargo(&["fetch", "--locked", "--quiet"]))?;
    must("a dependency may not be built in", &mut cargo(&["deny", "--offline", "--locked", "check"]))
}

fn install(tool: &Tool) -> Result<()> {
    if has(tool.name) {
        return Ok(());
    }
    say("dependencies", format_args!("cargo install {}: some minutes, once", tool.package));
    let mut install = cargo(&["install", "--locked", "--debug", "--quiet", tool.package, "--version", tool.version]);
    must("a tool could not be installed", install.env("CARGO_PROFILE_DEV_DEBUG", "0"))
}

/// Git without prompts.
fn git(arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(checkout()).stdin(Stdio::null()).env("GIT_TERMINAL_PROMPT", "0");
    git
}

fn is_reachable() -> bool {
    let mut list = git(&["ls-remote", "--quiet", DATABASE, "HEAD"]);
    list.stdout(Stdio::null()).stderr(Stdio::null());
    finish_within(&mut list, PATIENCE).is_ok_and(|status| status.is_some_and(|status| status.success()))
}

/// Where deny.toml expects the database, whatever the target folder of cargo is.
fn folder() -> PathBuf {
    checkout().join("target/advisory-db")
}

fn fetch() -> Result<String> {
    // The unpacked copy is not a repository that could be updated.
    let database = folder().join(FOLDER);
    if database.exists() && !database.join(".git/HEAD").exists() {
        fs::remove_dir_all(&database)?;
    }
    must("the vulnerabilities cannot be fetched", &mut cargo(&["deny", "--locked", "fetch", "db"]))?;
    Ok("today".to_owned())
}

fn unpack() -> Result<String> {
    let database = folder().join(FOLDER);
    if database.exists() {
        fs::remove_dir_all(&database)?;
    }
    fs::create_dir_all(&database)?;
    let mut tar = Command::new("tar");
    must("the copy cannot be unpacked", tar.arg("-xzf").arg(checkout().join(COPY)).arg("-C").arg(&database))?;
    let day =
        fs::read_to_string(database.join(".git/FETCH_HEAD")).context("the copy does not say of which day it is")?;
    Ok(format!("{}: without a way to {DATABASE} it is the copy in {COPY}", day.trim()))
}

/// The source of the copy.
#[derive(Debug, Args)]
pub struct Advisories {
    /// A checkout of the database, instead of fetching it.
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
}

/// Writes the copy again, with only what `cargo deny` reads: each advisory's facts and its title.
pub fn copy(advisories: &Advisories) -> Result<()> {
    let from = match &advisories.from {
        Some(from) => from.clone(),
        None => {
            install(&DENY)?;
            fetch()?;
            folder().join(FOLDER)
        }
    };
    let from = fs::canonicalize(&from).with_context(|| format!("no folder {}", from.display()))?;
    // It must not be a folder within another checkout, whose date would be another.
    let top = answer(&from, &["rev-parse", "--show-toplevel"])?;
    ensure!(Path::new(&top) == from, "{} is no checkout of the database", from.display());
    let day = answer(&from, &["log", "-1", "--format=%cs"])?;
    let made = folder().join("copy");
    if made.exists() {
        fs::remove_dir_all(&made)?;
    }
    fs::create_dir_all(made.join(".git"))?;
    fs::write(made.join(".git/FETCH_HEAD"), format!("{day}\n"))?;
    let mut count = 0;
    for krate in fs::read_dir(from.join("crates")).context("the database has no crates")? {
        for advisory in fs::read_dir(krate?.path())? {
            let path = advisory?.path();
            let text = fs::read_to_string(&path)?;
            let Some(facts) = facts(&text).with_context(|| path.display().to_string())? else { continue };
            let to = made.join(path.strip_prefix(&from)?);
            fs::create_dir_all(to.parent().unwrap_or(&made))?;
            fs::write(to, facts)?;
            count += 1;
        }
    }
    ensure!(count > 0, "the database has no advisory");
    let mtime = format!("--mtime={day}T00:00:00Z");
    let mut tar = Command::new("tar");
    tar.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--use-compress-program=gzip -9n",
        &mtime,
        "-cf",
    ]);
    tar.arg(checkout().join(COPY)).arg("-C").arg(&made).args([".git", "crates"]);
    must("the copy cannot be packed", &mut tar)?;
    say("dependencies", format_args!("{count} advisories as of {day} in {COPY}: commit it"));
    Ok(())
}

/// The output of git about a checkout, in one line.
fn answer(checkout: &Path, arguments: &[&str]) -> Result<String> {
    let output = git(arguments).current_dir(checkout).output()?;
    ensure!(output.status.success(), "{} is no checkout", checkout.display());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The facts of an advisory with its title; `None` if it was withdrawn.
fn facts(advisory: &str) -> Result<Option<String>> {
    let (facts, text) = advisory.split_once("\n```\n").context("no end of its facts")?;
    ensure!(facts.starts_with("```toml\n"), "it does not begin with its facts");
    if facts.lines().any(|line| line.starts_with("withdrawn")) {
        return Ok(None);
    }
    let title = text.lines().find(|line| line.starts_with('#')).context("no title")?;
    Ok(Some(format!("{facts}\n```\n\n{title}\n")))
}

/// Writes a list of everything that is built into each program, with versions, licences and checksums, in CycloneDX.
pub fn list() -> Result<()> {
    install(&CYCLONEDX)?;
    let workspace = Workspace::read()?;
    let folder = workspace.target_directory.join("sbom");
    fs::create_dir_all(&folder)?;
    must("the list cannot be made", &mut cargo(&["cyclonedx", "--format", "json", "--quiet"]))?;
    let mut count = 0;
    for package in &workspace.packages {
        let name = format!("{}.cdx.json", package.name);
        let made = package.dir().join(&name);
        if made.exists() {
            fs::copy(&made, folder.join(&name))?;
            fs::remove_file(&made)?;
            say("dependencies", folder.join(&name).display());
            count += 1;
        }
    }
    ensure!(count == workspace.packages.len(), "only {count} of {} crates have a list", workspace.packages.len());
    Ok(())
}
