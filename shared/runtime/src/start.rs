//! The steps of a start that can fail; each failure becomes one fault in the list.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::env::{ConfigFaults, Env, Fault};
use crate::error_chain::chain;
use crate::health::{self, Checks};
use crate::service::Service;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// How long a start waits for one dependency outside the process.
const LONGEST: Duration = Duration::from_secs(15);

/// The backlog: connections that the system holds until they are accepted, limited by the system (Linux:
/// `net.core.somaxconn`, 4096). The default of 128 is too small for a rush: a connection beyond it gets no answer, and
/// the client retries only after a second.
const BACKLOG: u32 = 4096;

/// How many bytes of an unread answer the system buffers for a connection. By default that is megabytes, so a few
/// hundred slow readers of a long answer would use up the memory that all connections share.
const SEND_BUFFER: u32 = 128 * 1024;

/// A process that has passed all checks of its start.
pub struct Ready<W> {
    /// Where operations look in, see [`health`].
    pub ops: TcpListener,
    /// What has to work for the process to be ready.
    pub checks: Checks,
    /// What it does until it stops.
    pub work: W,
}

/// Runs a process from its first line to its end: the ingress and every worker begin and stop here.
///
/// `start` reads the environment and checks everything that the process depends on. A start that cannot succeed prints
/// every fault and fails. The token is cancelled by the first SIGTERM or SIGINT; then the work has [`crate::shutdown::GRACE`] to end.
/// Operations can look in until the work has ended.
pub async fn run<W: Future<Output = ()>>(
    service: Service,
    start: impl AsyncFnOnce(Env, CancellationToken) -> Result<Ready<W>, ConfigFaults>,
) -> ExitCode {
    match run_to_its_end(service, start).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{service}: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run_to_its_end<W: Future<Output = ()>>(
    service: Service,
    start: impl AsyncFnOnce(Env, CancellationToken) -> Result<Ready<W>, ConfigFaults>,
) -> Result<(), Box<dyn std::error::Error>> {
    telemetry::install_crypto();
    let mut env = Env::process();
    if let Err(fault) = telemetry::init(service.as_str()) {
        env.fault(fault.subject, fault.wrong, fault.remedy);
    }
    arm(&mut env);
    let metrics = telemetry::install_metrics()?;
    let shutdown = Shutdown::install()?;
    let Ready { ops, checks, work } = start(env, shutdown.stop()).await?;
    info!(version = env!("CARGO_PKG_VERSION"), "{service} is running");
    warn_if_built_for_tests();
    shutdown.run(health::serve_while(ops, checks, metrics, work)).await?;
    info!("{service} has stopped");
    Ok(())
}

/// Reads what only builds for tests can do.
fn arm(env: &mut Env) {
    #[cfg(debug_assertions)]
    {
        crate::crash::arm(env);
        crate::clock::arm(env);
    }
    #[cfg(not(debug_assertions))]
    let _ = env;
}

/// Awaits a check of the start, if its configuration could be read.
pub async fn given<T>(check: Option<impl Future<Output = T>>) -> Option<T> {
    match check {
        Some(check) => Some(check.await),
        None => None,
    }
}

/// Runs one check of the start and turns its failure into a fault of `subject`, with a remedy.
///
/// Run the checks in parallel, then let [`ConfigFaults::take`] collect the faults, so that one start reports all of
/// them:
/// ```
/// # use runtime::{env::{ConfigFaults, Fault}, start};
/// # async fn connect() -> Result<u8, String> { Ok(7) }
/// # async fn start(mut faults: ConfigFaults) -> Result<(), ConfigFaults> {
/// let (database, broker) = tokio::join!(
///     start::check("database", "check DATABASE_URL and that the server runs", connect()),
///     start::check("broker", "check AMQP_URL and that the broker runs", connect()),
/// );
/// let (database, broker) = (faults.take(database), faults.take(broker));
/// faults.finish()?;
/// # drop((database, broker)); Ok(())
/// # }
/// ```
///
/// # Errors
/// The fault, also when the check takes longer than 15 s.
pub async fn check<T>(
    subject: &str,
    remedy: &str,
    check: impl Future<Output = Result<T, String>>,
) -> Result<T, ConfigFaults> {
    let outcome = timeout(LONGEST, check).await;
    let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", LONGEST.as_secs())));
    outcome.map_err(|wrong| Fault::new(subject, wrong, remedy).into())
}

/// Logs a warning if this program was built for tests.
fn warn_if_built_for_tests() {
    if cfg!(debug_assertions) {
        warn!("This program is built for tests: CRASH_AT and CLOCK_STEP_FILE work. In production run a release build");
    }
}

/// Binds `addr`, which came from `variable`.
///
/// # Errors
/// The fault of an address that is in use or not ours.
pub async fn listen(variable: &str, addr: SocketAddr) -> Result<TcpListener, ConfigFaults> {
    bind(addr).map_err(|error| {
        let wrong = format!("{addr} cannot be listened on ({error})");
        Fault::new(variable, wrong, "choose an address of this machine and a free port").into()
    })
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a restart, the address can be bound at once, without waiting for connections of the previous process.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit this size.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Raises the number of files that this process may open (connections count among them) to the maximum that it may
/// request; most systems start with 1024. Returns the number, or `None` if there is no limit.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_rush_of_connections_waits_to_be_accepted() {
        let listener = listen("LISTEN_ADDR", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        // The test accepts nothing. A connection beyond the backlog gets no answer at all.
        let rush = join_all((0..400).map(|_| TcpStream::connect(addr)));
        let connected = timeout(LONGEST, rush).await.expect("every connection is answered");
        assert!(connected.iter().all(Result::is_ok), "{connected:?}");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_a_fault_of_its_variable() {
        let taken = listen("OPS_ADDR", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let fault = listen("OPS_ADDR", taken.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(fault.contains("OPS_ADDR") && fault.contains("choose"), "{fault}");
    }
}
