//! The project's own programs, as one command runs them: started one after another, watched, and stopped in reverse
//! order.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{
    files::write_private,
    http,
    process::{self, Process, tail},
    rundir,
    ui::{say, wait_until},
};

/// The programs promise to exit within 30 s of SIGTERM.
const GRACE: Duration = Duration::from_secs(30);
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Programs that are stopped when this value is dropped, the last started first.
#[derive(Debug)]
pub struct Apps {
    dir: PathBuf,
    started: Vec<App>,
}

#[derive(Debug)]
struct App {
    name: String,
    process: Process,
    log: PathBuf,
}

/// How to check that a program is ready.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Loopback port.
    pub port: u16,
    /// Path that answers 2xx.
    pub path: &'static str,
}

impl Apps {
    /// No programs yet; logs go to `dir/logs`.
    pub fn new(dir: &Path) -> Result<Apps> {
        fs::create_dir_all(dir.join("logs"))?;
        Ok(Apps { dir: dir.to_path_buf(), started: Vec::new() })
    }

    /// Starts a program without waiting for it.
    pub fn start(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = self.dir.join("logs").join(format!("{name}.log"));
        let (_child, process) = process::launch(command, &log)?;
        self.started.push(App { name: name.to_owned(), process, log });
        self.save()
    }

    /// Waits until a started program is ready.
    pub fn wait_ready(&self, name: &str, ready: Ready) -> Result<()> {
        wait_until(name, READY_LIMIT, || {
            self.check()?;
            Ok(http::is_ok(ready.port, ready.path))
        })
        .with_context(|| format!("GET http://127.0.0.1:{}{} must answer 2xx", ready.port, ready.path))?;
        say(name, format_args!("ready on 127.0.0.1:{}", ready.port));
        Ok(())
    }

    /// An error that names a program which has ended without being stopped.
    pub fn check(&self) -> Result<()> {
        match self.started.iter().find(|app| !app.process.is_alive()) {
            Some(app) => {
                bail!("{} has ended; its log {} says at the end\n{}", app.name, app.log.display(), tail(&app.log, 15))
            }
            None => Ok(()),
        }
    }

    /// Stops the programs, the last started first.
    pub fn stop(&mut self) {
        while let Some(app) = self.started.pop() {
            if app.process.is_alive() {
                say(&app.name, "stopping");
                app.process.stop(Signal::TERM, GRACE);
            }
        }
        // A record of stopped programs does no harm.
        drop(self.save());
    }

    fn save(&self) -> Result<()> {
        let list: BTreeMap<&str, &Process> = self.started.iter().map(|app| (&*app.name, &app.process)).collect();
        write_private(&record(&self.dir), &serde_json::to_string_pretty(&list)?)
    }
}

impl Drop for Apps {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Stops the programs that a killed run left running in `dir`.
pub fn stop_left_behind(dir: &Path) -> Result<()> {
    rundir::claim(dir)?;
    let Ok(text) = fs::read_to_string(record(dir)) else { return Ok(()) };
    let list: BTreeMap<String, Process> = serde_json::from_str(&text).unwrap_or_default();
    for (name, process) in list.iter().filter(|(_, process)| process.is_alive()) {
        say(name, format_args!("left behind by a killed run (process {}): stopping it", process.pid()));
        process.stop(Signal::TERM, GRACE);
    }
    Ok(())
}

fn record(dir: &Path) -> PathBuf {
    dir.join("apps.json")
}
