//! Processes that this tool started: how it launches them, recognises them later, and ends them.
//!
//! A process is identified by its number *and* its start time, both read from `/proc`, within one boot of the
//! machine. The number alone may belong to another process by the time it is read back from a file, and a name
//! identifies no process.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process in one boot of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    started: u64,
    boot: String,
}

impl Process {
    /// The process that has this number now; `None` if there is none, or if it is a zombie.
    pub fn find(pid: i32) -> Option<Process> {
        let stat = Stat::read(pid)?;
        (!stat.is_over()).then(|| Process { pid, started: stat.started, boot: boot_id() })
    }

    /// The number, for people to read.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether exactly this process runs: a zombie, or a successor with the same number, does not count.
    pub fn is_alive(&self) -> bool {
        self.boot == boot_id() && Stat::read(self.pid).is_some_and(|stat| self.is(&stat))
    }

    fn is(&self, stat: &Stat) -> bool {
        stat.started == self.started && !stat.is_over()
    }

    /// Sends a signal if the process is still the one recorded.
    pub fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        // The descriptor pins the process, so that no other process can get its number between the check and the
        // signal.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pinned) if self.is_alive() => pidfd_send_signal(pinned, signal).unwrap_or_default(),
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) if self.is_alive() => {
                kill_process(pid, signal).unwrap_or_default();
            }
            _ => {} // It ended in the meantime.
        }
    }

    /// Signals the process to end, waits for `grace`, then kills it.
    pub fn stop(&self, polite: Signal, grace: Duration) {
        self.signal(polite);
        self.signal(Signal::CONT); // A suspended process does not handle the first signal.
        if !self.wait_gone(grace) {
            self.kill();
        }
    }

    /// Kills the process and its direct children at once, as a crash would.
    pub fn kill(&self) {
        let children = self.children();
        self.signal(Signal::KILL);
        children.iter().for_each(|child| child.signal(Signal::KILL));
        for process in children.iter().chain([self]) {
            process.wait_gone(Duration::from_secs(10));
        }
    }

    /// Waits until the process is gone; false if it still runs after `limit`.
    pub fn wait_gone(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            sleep(Duration::from_millis(20));
        }
        true
    }

    fn children(&self) -> Vec<Process> {
        if !self.is_alive() {
            return Vec::new();
        }
        all()
            .filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.parent == self.pid))
            .filter_map(Process::find)
            .collect()
    }
}

/// The fields of `/proc/<pid>/stat` that are needed here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in brackets, which may itself contain spaces and brackets.
    fn parse(line: &str) -> Option<Stat> {
        let fields: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Whether this process has ended but its parent has not collected it.
pub fn is_zombie(pid: i32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.is_over())
}

/// Whether any living process has this folder as its working directory.
pub fn anyone_in(dir: &Path) -> bool {
    all().any(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir) && !is_zombie(pid))
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Starts a program that may outlive this tool. It has its own process group (so that this tool decides what a
/// Ctrl-C in the terminal does), no input, and its output is appended to `log`.
pub fn launch(command: &mut Command, log: &Path) -> Result<(Child, Process)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("could not open the log {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()
        .with_context(|| format!("could not start {program}"))?;
    let pid = i32::try_from(child.id()).context("a process number out of range")?;
    match Process::find(pid) {
        Some(process) => Ok((child, process)),
        None => bail!("{program} ended at once ({}); see {}", child.wait()?, log.display()),
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 0 0";
        assert_eq!(Stat::parse(line), Some(Stat { state: 'S', parent: 7, started: 98765 }));
        assert_eq!(Stat::parse("42 (short) S 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_process_is_recognised_only_with_its_start_time_and_boot() {
        let me = Process::find(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot: "another".into(), ..me }.is_alive());
    }

    #[test]
    fn a_child_that_ended_but_was_not_collected_is_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(i32::try_from(child.id()).unwrap()).unwrap();
        process.stop(Signal::TERM, Duration::from_secs(5));
        assert!(!process.is_alive());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_suspended_process_is_stopped_too() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(i32::try_from(child.id()).unwrap()).unwrap();
        process.signal(Signal::STOP);
        process.stop(Signal::TERM, Duration::from_secs(5));
        assert!(!process.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn the_tail_is_the_end_of_the_file() {
        let file = std::env::temp_dir().join(format!("xtask-tail-{}", std::process::id()));
        fs::write(&file, "1\n2\n3\n").unwrap();
        assert_eq!(tail(&file, 2), "2\n3");
        assert_eq!(tail(&file, 9), "1\n2\n3");
        fs::remove_file(&file).unwrap();
        assert_eq!(tail(&file, 9), "");
    }
}
