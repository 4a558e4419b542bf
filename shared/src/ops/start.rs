//! The steps of a start that can fail, each as a fault beside the others.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::config::{ConfigFaults, Fault};

/// How long a start waits for one thing outside the process.
const LONGEST: Duration = Duration::from_secs(15);

/// Runs one check of the start and turns its failure into a fault of `subject`, with what to do about it.
///
/// Run the checks side by side, then let [`ConfigFaults::take`] collect them, so that one start names all that is wrong:
/// ```
/// # use shared::{config::{ConfigFaults, Fault}, ops};
/// # async fn connect() -> Result<u8, String> { Ok(7) }
/// # async fn start(mut faults: ConfigFaults) -> Result<(), ConfigFaults> {
/// let (database, broker) = tokio::join!(
///     ops::check("database", "check DATABASE_URL and that the server runs", connect()),
///     ops::check("broker", "check AMQP_URL and that the broker runs", connect()),
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

/// Binds `addr`, which came from `variable`.
///
/// # Errors
/// The fault of an address that is taken or not ours.
pub async fn listen(variable: &str, addr: SocketAddr) -> Result<TcpListener, ConfigFaults> {
    TcpListener::bind(addr).await.map_err(|error| {
        let wrong = format!("{addr} cannot be listened on ({error})");
        Fault::new(variable, wrong, "choose an address of this machine and a free port").into()
    })
}
