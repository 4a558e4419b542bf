//! The servers of one folder, as the commands see them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    files::{remove_dir, write_private},
    rundir::{self, Lock},
    ui::{check_stop, say},
    user::RunAs,
};

use super::{
    Kind, compose,
    find::Programs,
    install,
    logins::{DEPLOY, DOWNSTREAM, LOGINS, SERVICE},
    native::{self, Ports},
    postgres::{self, Postgres},
    rabbitmq::{self, Rabbitmq},
    record::Record,
    redis,
    release::{self, Releases, Source},
    server::{Place, Stop},
};

/// Whether a set starts empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// What an earlier run left is stopped and removed.
    Fresh,
    /// Running servers are used; stopped servers are started from their data.
    Reuse,
}

/// How the servers of a folder are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Native,
    Compose,
}

/// What a folder's file says about the whole set.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    backend: Backend,
    checkout: PathBuf,
    #[serde(default)]
    releases: Releases,
}

impl Header {
    fn of(backend: Backend, releases: &Releases) -> Header {
        Header { backend, checkout: rundir::checkout(), releases: releases.clone() }
    }
}

/// The servers of one folder.
#[derive(Debug)]
pub struct Set {
    /// The folder.
    pub dir: PathBuf,
    /// The requested releases.
    pub releases: Releases,
    backend: Backend,
    programs: Programs,
    run_as: RunAs,
}

impl Set {
    /// Starts the servers `kinds` in `dir`. On failure none of them stays running.
    pub fn up(dir: &Path, start: Start, kinds: &[Kind], source: &Source) -> Result<Set> {
        rundir::claim(dir)?;
        let _lock = Lock::wait(dir)?;
        let mut kinds = kinds.to_vec();
        let set = match Set::open(dir) {
            Ok(set) if start == Start::Reuse => {
                let fits = source.releases == Releases::default() || source.releases == set.releases;
                ensure!(fits, "the servers in {} are of other releases: `--fresh` replaces them", dir.display());
                let (has, usual) = (set.recorded(), |kind: &Kind| Kind::ALL.contains(kind));
                let fits = kinds.iter().all(|kind| usual(kind) || has.contains(kind));
                ensure!(fits, "the servers in {} are fewer: `--fresh` replaces them", dir.display());
                kinds.extend(has.into_iter().filter(|kind| !usual(kind)));
                set
            }
            earlier => {
                if let Ok(earlier) = earlier {
                    earlier.stop_all(Stop::Discard)?;
                    earlier.remove()?;
                }
                Set::create(dir, &kinds, source)?
            }
        };
        if let Err(error) = set.start_all(&kinds) {
            set.stop_all(Stop::Keep)?;
            return Err(error);
        }
        Ok(set)
    }

    /// The set that is recorded in a folder, running or not.
    pub fn open(dir: &Path) -> Result<Set> {
        let text = fs::read_to_string(header_file(dir))
            .map_err(|_| anyhow!("no servers in {}: start some with `cargo xtask up`", dir.display()))?;
        // A machine that lost power may have left an empty file. The servers that ran then no longer run.
        let header = serde_json::from_str(&text).unwrap_or_else(|_| Header::of(Backend::Native, &Releases::default()));
        Ok(Set {
            dir: dir.to_path_buf(),
            backend: header.backend,
            programs: Programs::look(&header.releases),
            releases: header.releases,
            run_as: RunAs::choose()?,
        })
    }

    fn create(dir: &Path, kinds: &[Kind], source: &Source) -> Result<Set> {
        ensure!(
            contents(dir)?.is_empty(),
            "{} holds files that are not of this tool: give it an empty --dir",
            dir.display()
        );
        let (backend, programs) = provide(kinds, source)?;
        let is_usual = kinds.iter().all(|kind| Kind::ALL.contains(kind));
        ensure!(is_usual || backend == Backend::Native, "docker-compose.yml has neither a cluster nor a standby");
        let header = Header::of(backend, &source.releases);
        let releases = source.releases.clone();
        let set = Set { dir: dir.to_path_buf(), releases, backend, programs, run_as: RunAs::choose()? };
        write_private(&header_file(dir), &serde_json::to_string_pretty(&header)?)?;
        Ok(set)
    }

    fn start_all(&self, kinds: &[Kind]) -> Result<()> {
        if self.backend == Backend::Compose {
            return compose::start(&self.dir, kinds);
        }
        // The nodes of an existing cluster wait for each other at start, because the last one that stopped has the
        // newest data. So they start together.
        let was_there = |kind: &Kind| Record::load(&self.dir, *kind).is_some_and(|record| record.is_set_up);
        let [first, second, third] = Kind::GROUPS.map(<[Kind]>::to_vec);
        let (early, late): (Vec<Kind>, Vec<Kind>) = third.into_iter().partition(was_there);
        for group in [first, [second, early].concat(), late] {
            let group = group.iter().filter(|kind| kinds.contains(kind));
            let results: Vec<Result<()>> = thread::scope(|scope| {
                let starts: Vec<_> = group.map(|kind| scope.spawn(|| self.start(*kind, Ports::MayChange))).collect();
                let ended = starts.into_iter().map(|start| start.join());
                ended.map(|start| start.unwrap_or_else(|_| Err(anyhow!("a start panicked")))).collect()
            });
            check_stop()?;
            results.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    /// The servers that the folder has, running or not.
    pub fn recorded(&self) -> Vec<Kind> {
        Kind::every().filter(|kind| Record::load(&self.dir, *kind).is_some()).collect()
    }

    /// Starts one server unless it runs.
    fn start(&self, kind: Kind, ports: Ports) -> Result<()> {
        let mut record = Record::load(&self.dir, kind).map_or_else(|| Record::new(kind), Ok)?;
        let (server, place) = (native::server(kind, &self.programs)?, self.place(kind));
        let has_data = record.is_set_up && place.home.is_dir();
        if has_data && record.is_running() && server.is_ready(&record).unwrap_or(false) {
            say(&kind.to_string(), format_args!("running already on 127.0.0.1:{}", record.port("main")?));
            return Ok(());
        }
        native::stop(&*server, &place, &mut record, Stop::Keep)?;
        record.is_set_up = has_data;
        let started = native::start(&*server, &place, &mut record, ports);
        if !has_data {
            return started;
        }
        started.context("could not start it from the data of an earlier run (`cargo xtask up --fresh` replaces it)")
    }

    /// Runs an action on one server while the others run, for tests of an outage.
    pub fn control(&self, kind: Kind, action: Action) -> Result<()> {
        let _lock = Lock::wait(&self.dir)?;
        self.record(kind)?;
        if self.backend == Backend::Compose {
            return match action {
                Action::Start => compose::start(&self.dir, &[kind]),
                Action::Wipe => compose::wipe(&self.dir, kind),
                other => compose::control(&self.dir, other.compose_verb(), kind),
            };
        }
        if action == Action::Start {
            return self.start(kind, Ports::Fixed);
        }
        let mut record = self.record(kind)?;
        let (server, place) = (native::server(kind, &self.programs)?, self.place(kind));
        match action {
            Action::Start => {}
            Action::Stop => native::stop(&*server, &place, &mut record, Stop::Keep)?,
            Action::Kill => native::kill(&place, &mut record)?,
            Action::Pause => record.processes.values().for_each(|process| process.signal(Signal::STOP)),
            Action::Resume => record.processes.values().for_each(|process| process.signal(Signal::CONT)),
            Action::Wipe => {
                native::kill(&place, &mut record)?;
                record.is_set_up = false;
                record.save(&self.dir)?;
                remove_dir(&place.home)?;
            }
        }
        Ok(())
    }

    /// Stops every server of the folder.
    pub fn stop_all(&self, stop: Stop) -> Result<()> {
        if self.backend == Backend::Compose {
            return compose::down(&self.dir, true);
        }
        let records = Kind::every().filter_map(|kind| Record::load(&self.dir, kind));
        let records: Vec<Record> = records.filter(|record| !record.processes.is_empty()).collect();
        thread::scope(|scope| {
            let stops: Vec<_> =
                records.into_iter().map(|record| scope.spawn(move || self.stop(record, stop))).collect();
            stops.into_iter().try_for_each(|done| done.join().unwrap_or_else(|_| Err(anyhow!("a stop panicked"))))
        })
    }

    fn stop(&self, mut record: Record, stop: Stop) -> Result<()> {
        let (kind, place) = (record.kind, self.place(record.kind));
        match native::server(kind, &self.programs) {
            Ok(server) => native::stop(&*server, &place, &mut record, stop),
            // Its programs were uninstalled while it ran.
            Err(_) => native::kill(&place, &mut record),
        }
    }

    /// Removes everything in the folder except its locks.
    pub fn remove(&self) -> Result<()> {
        if self.backend == Backend::Compose {
            compose::down(&self.dir, false)?;
        }
        // The header is removed last: as long as any file is here, the folder is known to be ours.
        let header = header_file(&self.dir);
        for path in contents(&self.dir)?.iter().filter(|path| **path != header).chain([&header]) {
            if path.is_dir() && !path.is_symlink() {
                remove_dir(path)?;
            } else if path.symlink_metadata().is_ok() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// One server's record.
    pub fn record(&self, kind: Kind) -> Result<Record> {
        Record::load(&self.dir, kind).with_context(|| format!("no {kind} in {}", self.dir.display()))
    }

    /// Whether one server's processes run. This does not check that it answers clients.
    pub fn is_running(&self, kind: Kind) -> bool {
        match self.backend {
            Backend::Native => Record::load(&self.dir, kind).is_some_and(|record| record.is_running()),
            Backend::Compose => compose::is_running(&self.dir, kind),
        }
    }

    /// The variables with which programs reach the servers of this set.
    pub fn env(&self) -> Result<Vec<(&'static str, String)>> {
        self.record(Kind::Rabbitmq)?;
        let broker: Vec<Record> = Kind::NODES.iter().filter_map(|kind| Record::load(&self.dir, *kind)).collect();
        let database = self.record(Kind::Postgres)?;
        let mut env = vec![
            ("DATABASE_URL", self.database_url(postgres::DATABASE)?),
            ("AMQP_URL", rabbitmq::url(&broker, SERVICE)?),
            ("AMQP_ADMIN_URL", rabbitmq::url(&broker, DEPLOY)?),
            ("DOWNSTREAM_AMQP_URL", rabbitmq::url(&broker, DOWNSTREAM)?),
            ("RABBITMQ_MANAGEMENT_URL", rabbitmq::management_url(&broker)?),
            ("REDIS_URL", redis::url(&self.record(Kind::Redis)?)?),
            ("PAYMENT_SERVERS_DIR", self.dir.display().to_string()),
        ];
        for login in &LOGINS {
            env.push((login.database_url, postgres::url_as(&database, login.role, postgres::DATABASE)?));
            env.push((login.amqp_url, rabbitmq::url(&broker, login.user)?));
        }
        if let Some(standby) = Record::load(&self.dir, Kind::Standby) {
            env.push(("STANDBY_DATABASE_URL", postgres::url(&standby, postgres::DATABASE)?));
        }
        Ok(env)
    }

    /// The URL of one database of this set.
    pub fn database_url(&self, database: &str) -> Result<String> {
        postgres::url(&self.record(Kind::Postgres)?, database)
    }

    /// Creates an empty database and replaces an existing one of that name.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.sql(&format!("drop database if exists {name} with (force)"))?;
        self.sql(&format!("create database {name}")).map(drop)
    }

    fn sql(&self, sql: &str) -> Result<String> {
        match self.backend {
            Backend::Native => self.postgres()?.sql(&self.record(Kind::Postgres)?, "postgres", sql),
            Backend::Compose => compose::sql(&self.dir, "postgres", sql.as_bytes(), false),
        }
    }

    /// Runs a file of SQL in a database.
    pub fn sql_file(&self, database: &str, file: &Path, in_transaction: bool) -> Result<()> {
        let done = if self.backend == Backend::Compose {
            compose::sql(&self.dir, database, &fs::read(file)?, in_transaction)
        } else {
            let mut psql = self.postgres()?.psql(&self.record(Kind::Postgres)?, database)?;
            postgres::answer(psql.args(in_transaction.then_some("-1")).arg("-f").arg(file), "psql")
        };
        done.map(drop).with_context(|| format!("could not apply {}", file.display()))
    }

    /// `rabbitmqctl` for a node of the broker of this set.
    pub fn rabbitmqctl(&self, node: Kind) -> Result<Command> {
        ensure!(Kind::NODES.contains(&node), "{node} is no node of the broker");
        ensure!(self.backend == Backend::Native, "rabbitmqctl is inside the container: use `docker compose exec`");
        let programs = self.programs.rabbitmq.clone().context("rabbitmq is no longer on this machine")?;
        Rabbitmq { programs }.ctl(&self.place(node), &self.record(node)?)
    }

    fn postgres(&self) -> Result<Postgres> {
        let programs = self.programs.postgres.clone().context("postgres is no longer on this machine")?;
        Ok(Postgres { programs })
    }

    fn place(&self, kind: Kind) -> Place {
        Place::new(&self.dir, kind, self.run_as.clone())
    }
}

/// The actions on one server of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Start it again on the same ports, from its data (or, after a wipe, with none).
    Start,
    /// Stop it cleanly.
    Stop,
    /// Kill it as a crash would.
    Kill,
    /// Suspend it: its connections stay open, but it answers nothing.
    Pause,
    /// Let it continue.
    Resume,
    /// Kill it and delete its data; it stays stopped.
    Wipe,
}

impl Action {
    fn compose_verb(self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Kill | Action::Wipe => "kill",
            Action::Pause => "pause",
            Action::Resume => "unpause",
        }
    }
}

/// The contents of a folder without the locks and the partial files of a killed write.
fn contents(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    Ok(entries
        .into_iter()
        .filter(|path| path.extension().is_none_or(|end| end != "lock" && end != "partial"))
        .collect())
}

fn header_file(dir: &Path) -> PathBuf {
    dir.join("set.json")
}

/// Finds a way to run these servers: as installed, from packages, or with Docker.
fn provide(kinds: &[Kind], source: &Source) -> Result<(Backend, Programs)> {
    install::clear_left_behind();
    let look = || Programs::look(&source.releases);
    let lacks = |programs: &Programs| programs.missing().into_iter().filter(|kind| kinds.contains(kind)).collect();
    let (mut programs, may_install) = (look(), !source.no_install);
    let mut missing: Vec<Kind> = lacks(&programs);
    for kind in &missing {
        if let Some(release) = source.releases.of(*kind) {
            ensure!(may_install, "{kind} {release} is not on this machine, and --no-install forbids to fetch it");
            release::fetch(*kind, release)?;
        }
    }
    if missing.iter().any(|kind| source.releases.of(*kind).is_some()) {
        programs = look();
        missing = lacks(&programs);
    }
    if missing.is_empty() {
        return Ok((Backend::Native, programs));
    }
    if may_install && install::is_possible() {
        install::install(&missing)?;
        let programs = look();
        let still: Vec<Kind> = lacks(&programs);
        if still.is_empty() {
            return Ok((Backend::Native, programs));
        }
        bail!("{} installed but not found: PostgreSQL must be 15 or newer", names(&still));
    }
    if compose::is_possible() {
        say("servers", format_args!("{} not on this machine: using Docker Compose for all", names(&missing)));
        return Ok((Backend::Compose, programs));
    }
    let packages: Vec<&str> = missing.iter().map(|kind| install::package(*kind)).collect();
    bail!(
        "missing on this machine: {}.\n\
         Any one of these helps:\n  \
         - install it: sudo apt-get install {}\n  \
         - run this command as root or with passwordless sudo, and it does that itself\n  \
         - start a Docker engine with Compose, and it uses docker-compose.yml",
        names(&missing),
        packages.join(" ")
    )
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
