//! Servers of another release than the machine's. They come from a newer suite of the Debian mirror that apt uses
//! here, and are unpacked into a folder of this checkout with every library that they need. Nothing is installed.
//!
//! Such a program runs in its own mount namespace, in which that folder is `/usr`; everything else is the
//! machine's. So the paths that are built into the program are valid, and it finds its own loader, libraries and
//! Erlang. This requires root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    files::remove_dir,
    rundir::{self, Lock},
    ui::{check_stop, say},
    user::{RunAs, is_root},
};

use super::Kind;

/// Where the servers come from.
#[derive(Debug, Clone, Default, Args)]
pub struct Source {
    /// Do not install or download anything.
    #[arg(long)]
    pub no_install: bool,
    /// Which releases.
    #[command(flatten)]
    pub releases: Releases,
}

/// Releases that are requested instead of what the machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Releases {
    /// Run this release of PostgreSQL, such as 17. If the machine has another one, it comes from the first newer
    /// suite of Debian that has it, unpacked beside the servers (as root only). See ops/servers.md.
    #[arg(long, value_name = "RELEASE", value_parser = release)]
    pub postgres: Option<String>,
    /// Run this release of RabbitMQ, such as 4 or 4.0, in the same way.
    #[arg(long, value_name = "RELEASE", value_parser = release)]
    pub rabbitmq: Option<String>,
}

impl Releases {
    /// The requested release of one server.
    pub fn of(&self, kind: Kind) -> Option<&str> {
        match kind.program() {
            Kind::Postgres => self.postgres.as_deref(),
            Kind::Redis => None,
            _ => self.rabbitmq.as_deref(),
        }
    }
}

fn release(text: &str) -> Result<String, String> {
    let is_number = |part: &str| !part.is_empty() && part.len() < 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    if text.split('.').all(is_number) { Ok(text.to_owned()) } else { Err("a release is like 4 or 4.0".to_owned()) }
}

/// Whether a version belongs to a release: 4.0.5 belongs to 4 and to 4.0, and 40.1 to neither.
pub fn is_of(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| !rest.starts_with(|symbol: char| symbol.is_ascii_digit()))
}

/// The folder that a program sees as `/usr`; the default is the machine's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usr(Option<PathBuf>);

/// Mounts the first argument as `/usr` and executes the rest. The process stays the same one.
const ENTER: &str = r#"mount --bind "$1" /usr && shift && exec "$@""#;

impl Usr {
    /// The real path of a file that a program in this `/usr` knows by the name `path`.
    pub fn outside(&self, path: &Path) -> PathBuf {
        match (&self.0, path.strip_prefix("/usr")) {
            (Some(usr), Ok(below)) => usr.join(below),
            _ => path.to_owned(),
        }
    }

    /// A command that runs a program with this `/usr`, under an account.
    pub fn command(&self, program: &Path, run_as: &RunAs) -> Command {
        let Some(usr) = &self.0 else {
            let mut command = Command::new(program);
            run_as.apply(&mut command);
            return command;
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", ENTER, "sh"]).arg(usr);
        if let Some((user, group)) = run_as.ids {
            let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
            command.args(["setpriv", &user, &group, "--clear-groups", "--"]);
        }
        command.arg(program);
        command
    }
}

/// The `/usr` with one server of a release, if it is unpacked.
pub fn unpacked(kind: Kind, release: &str) -> Option<Usr> {
    let usr = folder(kind, release).ok()?.join("root/usr");
    usr.is_dir().then_some(Usr(Some(usr)))
}

fn folder(kind: Kind, release: &str) -> Result<PathBuf> {
    Ok(rundir::for_purpose("releases")?.join(format!("{kind}-{release}")))
}

/// Suites that are newer than a machine's own, the nearest first.
const SUITES: [&str; 3] = ["stable", "testing", "unstable"];
/// What scripts and [`Usr::command`] need. Packages may assume these packages without a dependency.
const TAKEN_FOR_GRANTED: [&str; 6] = ["dash", "coreutils", "sed", "grep", "findutils", "util-linux"];

/// Downloads and unpacks one server of a release.
///
/// # Errors
/// When this machine cannot run such a program, or no suite has it.
pub fn fetch(kind: Kind, release: &str) -> Result<()> {
    let dir = folder(kind, release)?;
    rundir::claim(&dir)?;
    let _lock = Lock::wait(&dir)?;
    if unpacked(kind, release).is_some() {
        return Ok(());
    }
    let refused = format!("{kind} {release} is not on this machine, and cannot be fetched");
    let mirror = check().and_then(|()| mirror()).context(refused)?;
    let apt = Apt { dir: &dir };
    let package = match kind.program() {
        Kind::Postgres => format!("postgresql-{}", release.split('.').next().unwrap_or(release)),
        Kind::Redis => bail!("another Redis than the machine's was never needed"),
        _ => "rabbitmq-server".to_owned(),
    };
    let mut others = Vec::new();
    for suite in SUITES {
        check_stop()?;
        apt.choose(&mirror, suite)?;
        match apt.version(&package)? {
            Some(version) if is_of(&version, release) => {
                say(&kind.to_string(), format_args!("{version} of Debian {suite}: downloading and unpacking"));
                return apt.unpack(&package);
            }
            Some(version) => others.push(format!("{version} ({suite})")),
            None => {}
        }
    }
    apt.clear()?;
    let others = if others.is_empty() { "nothing like it".to_owned() } else { others.join(", ") };
    bail!("{kind} {release} is not on this machine, and Debian's newer suites have {others}");
}

/// Whether a program can run with another `/usr` here.
fn check() -> Result<()> {
    ensure!(is_root(), "only root can give a program another /usr");
    for tool in ["/usr/bin/apt-get", "/usr/bin/dpkg-deb"] {
        ensure!(Path::new(tool).exists(), "there is no {tool}: this works on Debian alone");
    }
    let merged = fs::read_link("/lib").is_ok_and(|target| target.ends_with("usr/lib"));
    ensure!(merged, "/lib is not in /usr here, so another /usr would not bring its libraries");
    let usr = Usr(Some("/usr".into()));
    let tried = answer(&mut usr.command(Path::new("true"), &RunAs::choose()?));
    tried.context("this machine does not allow mounts, as is usual in containers").map(drop)
}

/// The address from which apt gets this machine's own suite.
fn mirror() -> Result<String> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |name: &str| os.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    ensure!(value("ID") == Some("debian"), "this works on Debian alone");
    let codename = value("VERSION_CODENAME").context("/etc/os-release names no suite")?;
    let targets =
        answer(Command::new("apt-get").args(["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"]))?;
    let sites = targets.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let site = sites.into_iter().find_map(|words| (words[1..] == [codename, "main"]).then(|| words[0].to_owned()));
    site.with_context(|| format!("apt knows no mirror of Debian {codename}: run apt-get update"))
}

/// apt with its own lists, packages and sources, and an empty list of installed packages.
struct Apt<'a> {
    dir: &'a Path,
}

impl Apt<'_> {
    fn command(&self, tool: &str) -> Command {
        let in_dir = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(tool);
        for (option, value) in [
            ("Dir::State", in_dir("state")),
            ("Dir::State::status", in_dir("status")),
            ("Dir::Cache", in_dir("cache")),
            ("Dir::Etc::sourcelist", in_dir("sources.list")),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::Etc::preferences", "-".to_owned()),
            ("Dir::Etc::preferencesparts", "-".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
            ("APT::Install-Recommends", "false".to_owned()),
            // apt's usual account cannot write here.
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Fetches the package list of one suite.
    fn choose(&self, mirror: &str, suite: &str) -> Result<()> {
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(folder))?;
        }
        fs::write(self.dir.join("status"), "")?;
        let architecture = answer(Command::new("dpkg").arg("--print-architecture"))?;
        let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed_by = if keys.exists() { format!(" signed-by={}", keys.display()) } else { String::new() };
        let source = format!("deb [arch={}{signed_by}] {mirror} {suite} main\n", architecture.trim());
        fs::write(self.dir.join("sources.list"), source)?;
        answer(self.command("apt-get").args(["-q", "update"]))?;
        Ok(())
    }

    /// The project's own version number, if the suite has the package.
    fn version(&self, package: &str) -> Result<Option<String>> {
        let shown = answer(self.command("apt-cache").args(["madison", package]))?;
        let full = shown.lines().next().and_then(|line| line.split('|').nth(1)).map(str::trim);
        Ok(full.map(|full| upstream(full).to_owned()))
    }

    fn unpack(&self, package: &str) -> Result<()> {
        let mut download = self.command("apt-get");
        answer(download.args(["-q", "-y", "--download-only", "install", package]).args(TAKEN_FOR_GRANTED))?;
        let partial = self.dir.join("root.partial");
        remove_dir(&partial)?;
        fs::create_dir(&partial)?;
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), partial.join(name))?;
        }
        let archives = self.dir.join("cache/archives");
        for entry in fs::read_dir(&archives)? {
            check_stop()?;
            let file = entry?.path();
            if file.extension().is_some_and(|end| end == "deb") {
                answer(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&partial))?;
            }
        }
        fs::rename(&partial, self.dir.join("root"))?;
        self.clear()
    }

    /// Removes the downloads.
    fn clear(&self) -> Result<()> {
        remove_dir(&self.dir.join("cache"))?;
        remove_dir(&self.dir.join("state"))
    }
}

/// `1:27.3.4+dfsg-1+deb13u4` → `27.3.4+dfsg`.
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.rsplit_once('-').map_or(version, |(upstream, _)| upstream)
}

/// The output of a command; if it fails, an error with its own message.
fn answer(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = done.with_context(|| format!("could not run {name}"))?;
    ensure!(status.success(), "{name}: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_of_its_releases_and_of_no_other() {
        assert!(is_of("4.0.5", "4") && is_of("4.0.5", "4.0") && is_of("4.0.5", "4.0.5"));
        assert!(!is_of("4.0.5", "4.1") && !is_of("40.1", "4") && !is_of("4.0.5", "4.0.50") && !is_of("3.10.8", "4"));
        assert!(!is_of("3.10.8", "3.1"));
    }

    #[test]
    fn a_release_is_numbers_with_points() {
        for good in ["4", "4.0", "17", "4.0.5"] {
            assert_eq!(release(good).as_deref(), Ok(good));
        }
        for bad in ["", "4.", ".4", "latest", "../4", "4 5", "12345"] {
            assert!(release(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_projects_own_version_is_between_epoch_and_revision() {
        assert_eq!(upstream("4.0.5-6+deb13u2"), "4.0.5");
        assert_eq!(upstream("1:27.3.4+dfsg-1+deb13u4"), "27.3.4+dfsg");
        assert_eq!(upstream("17"), "17");
    }

    #[test]
    fn only_what_is_below_usr_moves() {
        let usr = Usr(Some("/a/usr".into()));
        assert_eq!(usr.outside(Path::new("/usr/bin/epmd")), Path::new("/a/usr/bin/epmd"));
        assert_eq!(usr.outside(Path::new("/etc/passwd")), Path::new("/etc/passwd"));
        assert_eq!(Usr::default().outside(Path::new("/usr/bin/epmd")), Path::new("/usr/bin/epmd"));
    }

    #[test]
    fn a_program_of_the_machine_is_run_as_it_is() {
        let command = Usr::default().command(Path::new("/usr/bin/true"), &RunAs::ourselves());
        assert_eq!((command.get_program(), command.get_args().count()), ("/usr/bin/true".as_ref(), 0));
    }
}
