//! What a server that runs natively has: its own folder and account, and the steps in which it differs from the others.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::{
    process::{self, tail},
    ui::wait_until,
    user::RunAs,
};

use super::{Kind, record::Record, release::Usr};

/// Enough for slow disks and one busy core; RabbitMQ needs 8 to 18 s on an idle machine.
pub const READY_LIMIT: Duration = Duration::from_secs(120);

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
