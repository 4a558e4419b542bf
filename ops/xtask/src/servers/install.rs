//! Installs missing servers from the distribution's packages, without starting the machine's own instances.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    process::Process,
    ui::{check_stop, say},
    user::is_root,
};

use super::Kind;

/// The packages' scripts run this program before they start a service; exit code 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_MARK: &str = "# Temporary, by the payment project's xtask, process ";

/// The Debian package of each server.
pub fn package(kind: Kind) -> &'static str {
    match kind.program() {
        Kind::Postgres => "postgresql",
        Kind::Redis => "redis-server",
        _ => "rabbitmq-server",
    }
}

/// Whether packages can be installed here without a prompt.
pub fn is_possible() -> bool {
    Path::new("/usr/bin/apt-get").exists() && (is_root() || sudo_works())
}

fn sudo_works() -> bool {
    quiet(Command::new("sudo").args(["-n", "true"]))
}

/// Installs the packages of these servers.
///
/// # Errors
/// When apt-get fails; its own messages are on the screen.
pub fn install(kinds: &[Kind]) -> Result<()> {
    let packages: Vec<&str> = kinds.iter().map(|kind| package(*kind)).collect();
    let how = if is_root() { "apt-get" } else { "sudo apt-get" };
    say("install", format_args!("{how} install {}: not on this machine yet", packages.join(" ")));
    let _no_services = Policy::set()?;
    if !run(as_root("apt-get").args(["-q", "update"]))? {
        say("install", "apt-get update failed; trying with the package lists that are here");
    }
    check_stop()?;
    let mut install = as_root("apt-get");
    install.args(["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "install"]).args(&packages);
    ensure!(run(&mut install)?, "apt-get could not install {}: see its messages above", packages.join(" "));
    check_stop()
}

/// Runs a command with its output on our standard error, which is where progress belongs.
fn run(command: &mut Command) -> Result<bool> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("could not run {name}"))?;
    Ok(status.success())
}

fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", program]);
    command
}

fn quiet(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// A rule that packages must not start services, as long as this value exists. If the machine has its own rule, it
/// is respected and left alone.
#[derive(Debug)]
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn set() -> Result<Policy> {
        let found = fs::read_to_string(POLICY);
        if let Ok(text) = &found
            && !text.contains(POLICY_MARK)
        {
            if Command::new(POLICY).args(["postgresql", "start"]).stdin(Stdio::null()).status()?.code() != Some(101) {
                say("install", format_args!("{POLICY} of this machine lets packages start their services"));
            }
            return Ok(Policy { is_ours: false });
        }
        // There is no rule, or one that a killed run of this tool left behind.
        let mut tee = as_root("tee").arg(POLICY).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut input) = tee.stdin.take() {
            write!(input, "#!/bin/sh\n{POLICY_MARK}{}\nexit 101\n", std::process::id())?;
        }
        let policy = Policy { is_ours: true };
        if !tee.wait()?.success() || !quiet(as_root("chmod").args(["755", POLICY])) {
            bail!("could not write {POLICY}, which keeps the packages from starting services");
        }
        Ok(policy)
    }
}

/// Removes the rule of a run that was killed before it could do so itself.
pub fn clear_left_behind() {
    let Ok(text) = fs::read_to_string(POLICY) else { return };
    let owner = text.lines().find_map(|line| line.strip_prefix(POLICY_MARK)?.trim().parse().ok());
    if owner.is_some_and(|pid| Process::find(pid).is_none()) {
        drop(Policy { is_ours: true });
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours && !quiet(as_root("rm").args(["-f", POLICY])) {
            say("install", format_args!("could not remove {POLICY}: please do"));
        }
    }
}
