//! The programs under measurement: started with only their own environment, observed, stopped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::http::Connection;

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(35);

/// A running program.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    child: Child,
    ops: SocketAddr,
    log: PathBuf,
}

/// Memory of a process in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident memory; shared pages count fully.
    pub(crate) resident: f64,
    /// Resident memory; shared pages are divided among the processes that share them.
    pub(crate) proportional: f64,
    /// The maximum of resident memory.
    pub(crate) peak: f64,
}

impl Service {
    /// Starts a program and waits until it is ready.
    pub(crate) async fn start(name: &'static str, mut command: Command, log: PathBuf) -> Result<Service> {
        let ops = free_address()?;
        let file = File::options().create(true).append(true).open(&log).context("opening a log")?;
        command.env("OPS_ADDR", ops.to_string()).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let mut service = Service { name, child, ops, log };
        service.until_ready().await?;
        Ok(service)
    }

    async fn until_ready(&mut self) -> Result<()> {
        let since = Instant::now();
        while !self.is_ready().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once: {status}\n{}", self.name, self.last_words());
            }
            if since.elapsed() > START {
                bail!("{} is not ready after {} s\n{}", self.name, START.as_secs(), self.last_words());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut connection) = Connection::open(self.ops).await else { return false };
        let answer = connection.call(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    pub(crate) fn pid(&self) -> (&'static str, u32) {
        (self.name, self.child.id())
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let read = |file: &str, field: &str| -> Result<f64> {
            let path = format!("/proc/{}/{file}", self.child.id());
            let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
            let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
            Ok(kib / 1024.0)
        };
        let proportional = read("smaps_rollup", "Pss:").unwrap_or(f64::NAN);
        Ok(Memory { resident: read("status", "VmRSS:")?, proportional, peak: read("status", "VmHWM:")? })
    }

    /// Sends SIGTERM and waits until it has ended.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        let since = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended with {status}\n{}", self.name, self.last_words()),
                None if since.elapsed() > STOP => bail!("{} does not stop\n{}", self.name, self.last_words()),
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After a stop there is nothing left to kill; after a failure there may be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address on which no process listens.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?)
}
