//! Searches for the servers' programs: on `PATH`, then where Debian and the projects themselves install them.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use crate::user::RunAs;

use super::{
    Kind,
    release::{self, Releases, Usr, is_of},
};

/// The oldest PostgreSQL that the migrations support.
const POSTGRES_MIN: u32 = 15;

/// The locations of the programs. `None`: not on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programs {
    /// PostgreSQL's own.
    pub postgres: Option<Postgres>,
    /// RabbitMQ's own scripts and the Erlang port mapper.
    pub rabbitmq: Option<Rabbitmq>,
    /// `redis-server`.
    pub redis: Option<PathBuf>,
}

/// PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// Folder with `postgres`, `initdb` and `psql`.
    pub bin: PathBuf,
    /// The `/usr` in which that folder is.
    pub usr: Usr,
}

/// RabbitMQ's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rabbitmq {
    /// Folder with the project's own `rabbitmq-server`, not a distribution's wrapper: wrappers run only as root or
    /// `rabbitmq`, and only the machine's one instance.
    pub sbin: PathBuf,
    /// `epmd`, through which a node and its tools find each other.
    pub epmd: PathBuf,
    /// The `/usr` in which that folder is.
    pub usr: Usr,
}

impl Programs {
    /// Searches on this machine. For a requested release that the machine does not have, it searches the unpacked
    /// releases.
    pub fn look(releases: &Releases) -> Programs {
        let path: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
        let (mut postgres, mut rabbitmq) = (postgres(&path), rabbitmq(&path));
        if let Some(release) = releases.of(Kind::Postgres)
            && !postgres.as_ref().and_then(Postgres::version).is_some_and(|version| is_of(&version, release))
        {
            postgres = release::unpacked(Kind::Postgres, release).and_then(Postgres::within);
        }
        if let Some(release) = releases.of(Kind::Rabbitmq)
            && !rabbitmq.as_ref().and_then(Rabbitmq::version).is_some_and(|version| is_of(&version, release))
        {
            rabbitmq = release::unpacked(Kind::Rabbitmq, release).and_then(Rabbitmq::within);
        }
        Programs { postgres, rabbitmq, redis: redis(&path) }
    }

    /// The servers that were not found.
    pub fn missing(&self) -> Vec<Kind> {
        let found = [self.postgres.is_some(), self.rabbitmq.is_some(), self.redis.is_some()];
        Kind::ALL.into_iter().zip(found).filter(|(_, found)| !found).map(|(kind, _)| kind).collect()
    }
}

impl Postgres {
    /// `postgres (PostgreSQL) 15.14 (Debian …)` → 15.14.
    fn version(&self) -> Option<String> {
        let mut command = self.usr.command(&self.bin.join("postgres"), &RunAs::ourselves());
        let answer = command.arg("--version").output().ok()?;
        Some(String::from_utf8(answer.stdout).ok()?.split_whitespace().nth(2)?.to_owned())
    }

    /// Debian's package in another `/usr`.
    fn within(usr: Usr) -> Option<Postgres> {
        let place = Path::new("/usr/lib/postgresql");
        let version = children(&usr.outside(place)).into_iter().next()?;
        Some(Postgres { bin: place.join(version.file_name()?).join("bin"), usr })
    }
}

impl Rabbitmq {
    /// `…/rabbitmq_server-3.10.8/sbin` → 3.10.8.
    fn version(&self) -> Option<String> {
        let folder = self.sbin.parent()?.file_name()?.to_str()?;
        folder.rsplit_once('-').map(|(_, version)| version.to_owned())
    }

    /// Debian's package in another `/usr`.
    fn within(usr: Usr) -> Option<Rabbitmq> {
        let place = Path::new("/usr/lib/rabbitmq/lib");
        let version = children(&usr.outside(place)).into_iter().next()?;
        Some(Rabbitmq { sbin: place.join(version.file_name()?).join("sbin"), epmd: "/usr/bin/epmd".into(), usr })
    }
}

fn postgres(path: &[PathBuf]) -> Option<Postgres> {
    let mut dirs = path.to_vec();
    let mut packaged = children(Path::new("/usr/lib/postgresql"));
    packaged.sort_by_key(|dir| std::cmp::Reverse(number_in(dir.file_name())));
    dirs.extend(packaged.into_iter().map(|dir| dir.join("bin")));
    dirs.push("/usr/local/pgsql/bin".into());
    dirs.retain(|dir| ["postgres", "initdb", "psql"].iter().all(|name| dir.join(name).is_file()));
    let mut found = dirs.into_iter().map(|bin| Postgres { bin, usr: Usr::default() });
    found.find(|found| number_in(found.version().as_deref().map(OsStr::new)).is_some_and(|major| major >= POSTGRES_MIN))
}

fn rabbitmq(path: &[PathBuf]) -> Option<Rabbitmq> {
    let mut dirs: Vec<PathBuf> = path
        .iter()
        .filter_map(|dir| fs::canonicalize(dir.join("rabbitmq-server")).ok())
        .filter_map(|script| script.parent().map(Path::to_path_buf))
        .collect();
    dirs.push("/usr/lib/rabbitmq/bin".into());
    for place in ["/usr/lib/rabbitmq/lib", "/opt", "/usr/local"] {
        let mut versions = children(Path::new(place));
        versions.retain(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rabbitmq")));
        versions.sort();
        dirs.extend(versions.into_iter().rev().map(|dir| dir.join("sbin")));
    }
    let sbin =
        dirs.into_iter().find(|dir| dir.join("rabbitmq-env").is_file() && dir.join("rabbitmq-server").is_file())?;
    // The scripts find their plug-ins relative to their real path.
    let sbin = fs::canonicalize(sbin.join("rabbitmq-server")).ok()?.parent()?.to_path_buf();
    Some(Rabbitmq { sbin, epmd: epmd(path)?, usr: Usr::default() })
}

fn epmd(path: &[PathBuf]) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = path.iter().map(|dir| dir.join("epmd")).collect();
    for erlang in ["/usr/lib/erlang", "/usr/lib64/erlang", "/usr/local/lib/erlang"] {
        places.push(Path::new(erlang).join("bin/epmd"));
        places.extend(children(Path::new(erlang)).into_iter().map(|dir| dir.join("bin/epmd")));
    }
    places.into_iter().find(|file| file.is_file())
}

fn redis(path: &[PathBuf]) -> Option<PathBuf> {
    let dirs = path.iter().map(PathBuf::as_path).chain([Path::new("/usr/bin"), Path::new("/usr/local/bin")]);
    // Valkey is a fork of Redis that works the same; newer distributions package it instead.
    let mut names = dirs.flat_map(|dir| [dir.join("redis-server"), dir.join("valkey-server")]);
    names.find(|file| file.is_file())
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The number that a name begins with: `15` for `15` and for `15.14`.
fn number_in(name: Option<&OsStr>) -> Option<u32> {
    let name = name?.to_str()?;
    name.split(|symbol: char| !symbol.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_version_is_the_leading_number() {
        assert_eq!(number_in(Some(OsStr::new("15.14"))), Some(15));
        assert_eq!(number_in(Some(OsStr::new("18beta1"))), Some(18));
        assert_eq!(number_in(Some(OsStr::new("bin"))), None);
        assert_eq!(number_in(None), None);
    }

    #[test]
    fn everything_is_missing_on_an_empty_machine() {
        assert_eq!(Programs::default().missing(), Kind::ALL);
        let sbin = "/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin".into();
        let rabbitmq = Rabbitmq { sbin, epmd: "/usr/bin/epmd".into(), usr: Usr::default() };
        assert_eq!(rabbitmq.version().as_deref(), Some("3.10.8"));
        let some = Programs { redis: Some("/usr/bin/redis-server".into()), ..Programs::default() };
        assert_eq!(some.missing(), [Kind::Postgres, Kind::Rabbitmq]);
    }
}
