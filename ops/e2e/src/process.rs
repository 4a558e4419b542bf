//! One program of the service as a child process: a test can start, watch and kill it, and read its log.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::crash::Point;
use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;
use crate::metrics::Metrics;

/// A program must be ready within this time.
const START: Duration = Duration::from_secs(60);
/// A program must end within this time after SIGTERM.
const STOP: Duration = Duration::from_secs(40);
/// The variables of the test's environment that every program inherits.
const KEPT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// A program with its arguments and its whole environment.
#[derive(Debug, Clone)]
pub struct Program {
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    most_files: Option<u64>,
}

impl Program {
    /// The built program of this name, with no arguments and an empty environment.
    #[must_use]
    pub fn new(name: &str) -> Program {
        Program { binary: binary(name), args: Vec::new(), env: Vec::new(), most_files: None }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Program {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable; the last value counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Program {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Limits its open files, including connections, to `number`. It starts with half of that until it raises its
    /// own soft limit.
    #[must_use]
    pub fn most_files(mut self, number: u64) -> Program {
        self.most_files = Some(number);
        self
    }

    fn command(&self, log: &Path) -> Command {
        let open = || File::options().create(true).append(true).open(log).expect("the log can be written");
        let kept = std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept));
        let mut command = match self.most_files {
            None => Command::new(&self.binary),
            Some(number) => {
                let mut limited = Command::new("prlimit");
                limited.arg(format!("--nofile={}:{number}", number / 2)).arg(&self.binary);
                limited
            }
        };
        command.args(&self.args).env_clear().envs(kept).env("RUST_BACKTRACE", "1").envs(self.env.clone());
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        command
    }

    fn spawn(&self, log: &Path) -> Child {
        self.command(log).spawn().unwrap_or_else(|error| {
            panic!("{} cannot be run ({error}): `cargo xtask test` builds it", self.binary.display())
        })
    }

    /// Runs it until it ends, and returns its exit status and output.
    ///
    /// # Panics
    /// When it does not end within `within`.
    pub async fn run(&self, folder: &Path, within: Duration) -> Ended {
        let log = folder.join(format!("run-{}.log", crate::unique()));
        let mut child = Guard(self.spawn(&log));
        let what = format!("the end of {}", self.binary.display());
        let status = eventually(&what, within, async || child.0.try_wait().expect("a child can be waited for")).await;
        Ended { status, said: read(&log) }
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Everything that it printed.
    pub said: String,
}

/// A child process that is killed when this value is dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // The child may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A serving program that can be killed and restarted with the same name, ports and log.
#[derive(Debug)]
pub struct Process {
    /// Its name in the log folder.
    pub name: String,
    program: Program,
    ops: SocketAddr,
    log: PathBuf,
    step: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// A process that is not started yet. Its operations port is free, and its log is in `folder`.
    #[must_use]
    pub fn new(name: impl Into<String>, program: Program, folder: &Path) -> Process {
        let (name, ops) = (name.into(), free_address());
        let (log, step) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.clock")));
        let program = program.env("OPS_ADDR", ops.to_string()).env("CLOCK_STEP_FILE", step.display().to_string());
        Process { program, name, ops, log, step, child: Mutex::default() }
    }

    /// Sets its clock `seconds` off the machine's clock, at once.
    pub fn step_clock(&self, seconds: i32) {
        // Replaced atomically, because the process reads the file all the time.
        let fresh = self.step.with_extension("fresh");
        fs::write(&fresh, seconds.to_string()).expect("a file can be written");
        fs::rename(&fresh, &self.step).expect("a file can be renamed");
    }

    /// Starts it without waiting until it is ready.
    pub fn spawn(&self) {
        let mut child = self.child();
        assert!(child.is_none(), "{} runs already", self.name);
        *child = Some(self.program.spawn(&self.log));
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        let what = format!("{} is ready", self.name);
        eventually(&what, START, async || {
            let ended = self.child().as_mut().and_then(|child| child.try_wait().expect("a child can be waited for"));
            assert!(ended.is_none(), "{} ended ({ended:?}) instead of serving:\n{}", self.name, self.log());
            self.get("/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) {
        self.spawn();
        self.ready().await;
    }

    /// Starts it so that it dies when it reaches `point` for the `nth` time.
    pub fn arm(&self, point: Point, nth: usize) {
        let mut child = self.child();
        assert!(child.is_none(), "{} runs already", self.name);
        *child = Some(self.program.clone().env("CRASH_AT", format!("{point}:{nth}")).spawn(&self.log));
    }

    /// Waits until it has died at that point.
    ///
    /// # Panics
    /// When it does not reach the point in time, or ends in another way.
    pub async fn dies_at(&self, point: Point, within: Duration) {
        let what = format!("{} dies at {point}", self.name);
        let status = eventually(&what, within, async || {
            self.child().as_mut().and_then(|child| child.try_wait().expect("a child can be waited for"))
        })
        .await;
        *self.child() = None;
        let log = self.log();
        let last = log.lines().rfind(|line| line.starts_with("crash point "));
        let died = status.signal() == Some(Signal::ABORT.as_raw()) && last == Some(&format!("crash point {point}"));
        assert!(died, "{} ended with {status} and not at {point}:\n{log}", self.name);
    }

    /// Kills it as a crash would.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            child.kill().expect("our child can be killed");
            child.wait().expect("our child can be waited for");
        }
    }

    /// Sends SIGTERM and waits for the end. Returns the exit status and the time it took.
    pub async fn terminate(&self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let mut child = Guard(self.child().take().expect("it runs"));
        kill_process(Pid::from_child(&child.0), Signal::TERM).expect("our child can be signalled");
        let what = format!("{} ends after SIGTERM", self.name);
        let status = eventually(&what, STOP, async || child.0.try_wait().expect("a child can be waited for")).await;
        (status, began.elapsed())
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// How many files it has open, including connections; 0 while it does not run.
    pub fn files(&self) -> usize {
        self.pid().and_then(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).map_or(0, Iterator::count)
    }

    /// Whether one of its sockets has this local port.
    pub fn owns_port(&self, port: i32) -> bool {
        self.pid().and_then(|pid| has_socket(pid, port)).unwrap_or_default()
    }

    /// Whether it was started and still runs.
    pub fn runs(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its metrics; empty while it does not answer.
    pub async fn metrics(&self) -> Metrics {
        self.get("/metrics").await.map(|(_, text)| Metrics { text }).unwrap_or_default()
    }

    /// Everything it has logged, across all restarts.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let client = crate::http::http_client();
        let answer =
            client.get(format!("http://{}{path}", self.ops)).timeout(Duration::from_secs(5)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder of the built programs.
#[must_use]
pub fn binaries() -> PathBuf {
    // Without the variable the folder is `target/<profile>`: the test itself is in `target/<profile>/deps`.
    std::env::var_os("PAYMENT_BIN_DIR").map_or_else(
        || {
            let this = std::env::current_exe().expect("a test knows its own path");
            this.ancestors().nth(2).expect("a test is in target/<profile>/deps").to_path_buf()
        },
        PathBuf::from,
    )
}

/// The built program of this name.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = binaries().join(name);
    assert!(path.is_file(), "{} is not built: run the tests with `cargo xtask test`", path.display());
    path
}

/// The range lies below the kernel's range for local ports of outgoing connections (32768 and up on Linux). So a
/// program that is killed and restarted finds its port still free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// An address on which no process listens, and which this test process has not returned before.
///
/// # Panics
/// When every port is taken.
#[must_use]
pub fn free_address() -> SocketAddr {
    // Tests run in several processes: each starts at another port.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let seed = RandomState::new().hash_one(std::process::id()) % u64::from(PORTS.end - PORTS.start);
        AtomicU16::new(u16::try_from(seed).unwrap_or_default())
    });
    let size = PORTS.end - PORTS.start;
    for _ in PORTS {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % size;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        }
    }
    panic!("no free loopback port between {} and {}", PORTS.start, PORTS.end)
}

/// Reads a log whose last line may be incomplete.
fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Whether `/proc` shows a TCP socket of process `pid` with this local port.
fn has_socket(pid: u32, port: i32) -> Option<bool> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!(":{port:04X}");
    let inodes: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(1)?.ends_with(&local).then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let names = open.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()));
    Some(names.into_iter().any(|name| inodes.contains(&name)))
}
