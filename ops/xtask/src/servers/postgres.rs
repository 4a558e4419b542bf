//! A private PostgreSQL: its cluster, its settings, how to run SQL on it; and a standby that follows it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{process, ui::wait_until, user::RunAs};

use super::{
    Kind, find,
    logins::{self, LOGINS, OWNER},
    record::Record,
    server::{Place, Server, Stop},
};

/// The database of `DATABASE_URL`, empty until it is migrated.
pub const DATABASE: &str = "payment";

/// PostgreSQL as a native server.
#[derive(Debug)]
pub struct Postgres {
    /// Its programs.
    pub programs: find::Postgres,
}

impl Postgres {
    fn data(place: &Place) -> PathBuf {
        place.home.join("data")
    }

    /// Runs SQL in a database and returns the output.
    pub fn sql(&self, record: &Record, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.psql(record, database)?;
        answer(psql.args(["-c", sql]), "psql")
    }

    /// `psql`, ready to connect; it stops at the first error.
    pub fn psql(&self, record: &Record, database: &str) -> Result<Command> {
        let mut psql = self.programs.usr.command(&self.programs.bin.join("psql"), &RunAs::ourselves());
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(url(record, database)?)
            .env("PGCONNECT_TIMEOUT", "5")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        Ok(psql)
    }
}

impl Server for Postgres {
    fn create(&self, place: &Place, record: &mut Record) -> Result<()> {
        let password = place.home.join("password");
        place.run_as.write(&password, record.secret(OWNER)?)?;
        let mut initdb = place.command(&self.programs.bin.join("initdb"), &self.programs.usr);
        initdb
            .args(["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--username", OWNER, "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(Postgres::data(place));
        let done = place.run_to_end("0-initdb", &mut initdb, record);
        fs::remove_file(&password)?;
        done
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        forget_dead_lock(&Postgres::data(place))?;
        let conf = place.home.join("postgresql.conf");
        place.run_as.write(&conf, &settings(record, &Postgres::data(place))?)?;
        let mut server = place.command(&self.programs.bin.join("postgres"), &self.programs.usr);
        server.arg("-D").arg(Postgres::data(place)).arg("-c").arg(format!("config_file={}", conf.display()));
        place.launch("1-postgres", &mut server, record).map(drop)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        // We check the port first, because psql needs a long time to fail.
        let port = record.port("main")?;
        Ok(crate::http::connect(port).is_ok() && self.sql(record, "postgres", "select 1").is_ok())
    }

    fn finish(&self, _: &Place, record: &Record) -> Result<()> {
        self.sql(record, "postgres", &format!("create database {DATABASE}"))?;
        self.sql(record, "postgres", &create_roles(record)?).map(drop)
    }

    fn stop_signal(&self, stop: Stop) -> (Signal, Duration) {
        // Both signals end the sessions. The first leaves the data clean; the second does not wait for that.
        match stop {
            Stop::Keep => (Signal::INT, Duration::from_secs(20)),
            Stop::Discard => (Signal::QUIT, Duration::from_secs(5)),
        }
    }
}

/// A standby: a synchronous copy of the database. Without it, the database confirms no commit.
#[derive(Debug)]
pub struct Standby(pub Postgres);

impl Server for Standby {
    fn create(&self, place: &Place, record: &mut Record) -> Result<()> {
        let primary = primary(place)?;
        // The standby has the same roles.
        record.secrets = primary.secrets.clone();
        let programs = &self.0.programs;
        let mut backup = place.command(&programs.bin.join("pg_basebackup"), &programs.usr);
        backup
            .env("PGPASSWORD", primary.secret(OWNER)?)
            .args(["--host=127.0.0.1", "--username", OWNER, "--port", &primary.port("main")?.to_string()])
            // With the settings that it needs to follow, and a slot, so that the primary keeps the WAL that the
            // standby has not received.
            .args(["--write-recovery-conf", "--create-slot", "--slot=standby", "--checkpoint=fast", "--pgdata"])
            .arg(Postgres::data(place));
        place.run_to_end("0-basebackup", &mut backup, record)
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        self.0.launch(place, record)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        self.0.is_ready(record)
    }

    /// From here on, a commit is confirmed only once the standby has it on its disk too.
    fn finish(&self, place: &Place, _: &Record) -> Result<()> {
        let primary = primary(place)?;
        let query = |sql: &str| self.0.sql(&primary, "postgres", sql);
        query("alter system set synchronous_standby_names = 'standby'")?;
        query("select pg_reload_conf()")?;
        wait_until("standby", Duration::from_secs(30), || {
            Ok(query("select sync_state from pg_stat_replication")? == "sync")
        })
    }

    fn stop_signal(&self, stop: Stop) -> (Signal, Duration) {
        self.0.stop_signal(stop)
    }
}

/// The database that the standby follows.
fn primary(place: &Place) -> Result<Record> {
    Record::load(&place.dir, Kind::Postgres).context("there is no database to follow")
}

/// Removes the lock of a server that was killed but not collected, as in a container whose first process does not
/// reap zombies. PostgreSQL mistakes such a zombie for a running server.
///
/// PostgreSQL itself handles any other stale lock.
fn forget_dead_lock(data: &Path) -> Result<()> {
    let lock = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(()) };
    if process::is_zombie(pid) {
        // The sessions end by themselves when they notice, and must not meet a new server.
        wait_until("postgres", Duration::from_secs(10), || Ok(!process::anyone_in(data)))?;
        fs::remove_file(&lock).with_context(|| format!("could not remove {}", lock.display()))?;
    }
    Ok(())
}

/// SQL that creates the role of each process; the deploy step grants its rights.
pub fn create_roles(record: &Record) -> Result<String> {
    LOGINS.iter().map(|login| Ok(logins::create_role(login.role, record.secret(login.role)?))).collect()
}

/// The URL of one database, for its owner.
pub fn url(record: &Record, database: &str) -> Result<String> {
    url_as(record, OWNER, database)
}

/// The URL of one database, for a role.
pub fn url_as(record: &Record, role: &str, database: &str) -> Result<String> {
    Ok(format!("postgres://{role}:{}@127.0.0.1:{}/{database}", record.secret(role)?, record.port("main")?))
}

fn settings(record: &Record, data: &Path) -> Result<String> {
    // Durability settings stay at PostgreSQL's defaults: tests kill this server and count what was committed.
    Ok(format!(
        "# Written by xtask at each start.\n\
         listen_addresses = '127.0.0.1'\n\
         port = {}\n\
         cluster_name = '{}'\n\
         unix_socket_directories = ''\n\
         data_directory = '{data}'\n\
         hba_file = '{data}/pg_hba.conf'\n\
         ident_file = '{data}/pg_ident.conf'\n\
         max_connections = 200\n\
         shared_buffers = 128MB\n\
         timezone = 'UTC'\n\
         log_timezone = 'UTC'\n\
         log_line_prefix = '%m [%p] %a '\n\
         password_encryption = scram-sha-256\n",
        record.port("main")?,
        record.kind,
        data = data.display()
    ))
}

/// The output of a command that must succeed.
pub fn answer(command: &mut Command, name: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("could not run {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
