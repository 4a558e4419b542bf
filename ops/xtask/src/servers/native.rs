//! Starts and stops the programs themselves. The steps are the same for each: create its data if there is none,
//! launch it, wait until it answers, set it up once.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::{
    ports,
    process::{self, Process, tail},
    ui::{say, wait_until},
    user::RunAs,
};

use super::{
    Kind,
    find::Programs,
    postgres::{Postgres, Standby},
    rabbitmq::{Epmd, Rabbitmq},
    record::Record,
    redis::Redis,
    release::Usr,
};

/// Enough for slow disks and one busy core; RabbitMQ needs 8 to 18 s on an idle machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How many times a start is tried with other ports when another process has taken one in the meantime.
const PORT_ATTEMPTS: u32 = 3;

/// What differs between the kinds of server. Everything else is the same for all.
pub trait Server {
    /// Creates its data in the empty folder `place.home`.
    fn create(&self, place: &Place, record: &mut Record) -> Result<()>;
    /// Starts its processes and notes each in the record.
    fn launch(&self, place: &Place, record: &mut Record) -> Result<()>;
    /// Whether it answers a client that knows the password; an error counts as "not yet".
    fn is_ready(&self, record: &Record) -> Result<bool>;
    /// What is done once, when it runs for the first time.
    fn finish(&self, place: &Place, record: &Record) -> Result<()>;
    /// The signal that ends it cleanly, and how long to wait for that.
    fn stop_signal(&self, stop: Stop) -> (Signal, Duration);
}

/// Whether a stopped server's data is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The server will be started from it again.
    Keep,
    /// It is not needed: stop as fast as possible.
    Discard,
}

/// The folder and the account of one server.
#[derive(Debug)]
pub struct Place {
    /// The folder of the set, which belongs to us.
    pub dir: PathBuf,
    /// The folder of this server in it, which belongs to the server's account.
    pub home: PathBuf,
    /// The account of the server.
    pub run_as: RunAs,
}

impl Place {
    /// The place of one server in the folder of a set.
    pub fn new(dir: &Path, kind: Kind, run_as: RunAs) -> Place {
        Place { dir: dir.to_path_buf(), home: dir.join(kind.to_string()), run_as }
    }

    /// A command that runs under the server's account with a clean environment, so that the caller's variables
    /// cannot change how a server runs.
    pub fn command(&self, program: &Path, usr: &Usr) -> Command {
        let usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let path = env::var("PATH").map_or_else(|_| usual.to_owned(), |path| format!("{path}:{usual}"));
        let mut command = usr.command(program, &self.run_as);
        command.env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("HOME", &self.home);
        command.current_dir(&self.home);
        command
    }

    /// Launches a program and records it at once, so that a later run can stop it.
    pub fn launch(&self, name: &str, command: &mut Command, record: &mut Record) -> Result<Child> {
        let (child, process) = process::launch(command, &log(&self.dir, record.kind))?;
        record.processes.insert(name.to_owned(), process);
        record.save(&self.dir)?;
        Ok(child)
    }

    /// Launches a program that ends by itself, and waits for its end.
    pub fn run_to_end(&self, name: &str, command: &mut Command, record: &mut Record) -> Result<()> {
        let mut child = self.launch(name, command, record)?;
        wait_until(name, READY_LIMIT, || Ok(child.try_wait()?.is_some()))?;
        let status = child.wait()?;
        record.processes.remove(name);
        record.save(&self.dir)?;
        let log = log(&self.dir, record.kind);
        ensure!(status.success(), "{name} failed ({status}); {} ends with\n{}", log.display(), tail(&log, 15));
        Ok(())
    }
}

/// The log of one server.
pub fn log(dir: &Path, kind: Kind) -> PathBuf {
    dir.join("logs").join(format!("{kind}.log"))
}

/// The server of a kind, with its programs.
pub fn server(kind: Kind, programs: &Programs) -> Result<Box<dyn Server>> {
    let missing = || format!("{kind} is no longer on this machine");
    let postgres = || Ok::<_, anyhow::Error>(Postgres { programs: programs.postgres.clone().with_context(missing)? });
    let rabbitmq = || Ok::<_, anyhow::Error>(Rabbitmq { programs: programs.rabbitmq.clone().with_context(missing)? });
    Ok(match kind {
        Kind::Postgres => Box::new(postgres()?),
        Kind::Standby => Box::new(Standby(postgres()?)),
        Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 => Box::new(rabbitmq()?),
        Kind::Epmd => Box::new(Epmd(rabbitmq()?)),
        Kind::Redis => Box::new(Redis { program: programs.redis.clone().with_context(missing)? }),
    })
}

/// What to do when another program has taken a recorded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Choose other ports: no client knows these yet.
    MayChange,
    /// Fail: a client waits for this port.
    Fixed,
}

/// Starts one server, from its data if that is complete, else with new data.
pub fn start(server: &dyn Server, place: &Place, record: &mut Record, ports: Ports) -> Result<()> {
    for attempt in 1.. {
        if ports == Ports::MayChange && !ports_are_free(record) {
            record.ports = Record::new(record.kind)?.ports;
        }
        let Err(error) = start_once(server, place, record) else { break };
        stop(server, place, record, Stop::Discard)?;
        let somebody_took_one = ports == Ports::MayChange && !ports_are_free(record);
        if !somebody_took_one || attempt == PORT_ATTEMPTS {
            return Err(error);
        }
    }
    Ok(())
}

fn ports_are_free(record: &Record) -> bool {
    record.ports.values().all(|port| ports::is_free(*port))
}

fn start_once(server: &dyn Server, place: &Place, record: &mut Record) -> Result<()> {
    let (kind, begun) = (record.kind, Instant::now());
    let log = log(&place.dir, kind);
    fs::create_dir_all(place.dir.join("logs"))?;
    if !record.is_set_up {
        say(&kind.to_string(), "making its data");
        remove_dir(&place.home)?;
        record.save(&place.dir)?;
        place.run_as.create_dir(&place.home)?;
        server.create(place, record)?;
    }
    server.launch(place, record)?;
    wait_until(&kind.to_string(), READY_LIMIT, || {
        if !record.is_running() {
            bail!("{kind} ended while starting; {} ends with\n{}", log.display(), tail(&log, 15));
        }
        Ok(server.is_ready(record).unwrap_or(false))
    })?;
    if !record.is_set_up {
        server.finish(place, record).with_context(|| format!("could not set up {kind}"))?;
        record.is_set_up = true;
        record.save(&place.dir)?;
    }
    let port = record.port("main")?;
    say(&kind.to_string(), format_args!("ready on 127.0.0.1:{port} ({:.1} s)", begun.elapsed().as_secs_f32()));
    Ok(())
}

/// Stops a server's processes in the reverse order of starting, and only those.
pub fn stop(server: &dyn Server, place: &Place, record: &mut Record, stop: Stop) -> Result<()> {
    let (signal, grace) = server.stop_signal(stop);
    end(place, record, |process| process.stop(signal, grace))
}

/// Kills a server's processes as a crash would.
pub fn kill(place: &Place, record: &mut Record) -> Result<()> {
    end(place, record, Process::kill)
}

fn end(place: &Place, record: &mut Record, how: impl Fn(&Process)) -> Result<()> {
    record.processes.values().rev().for_each(how);
    record.processes.clear();
    record.save(&place.dir)
}

/// Removes a folder and everything in it, if it exists.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
