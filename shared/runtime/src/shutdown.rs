//! From a signal to the end of the process, within a time limit.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the work may take to finish after SIGTERM. A process is usually killed after 30 s, so this is a little
/// less.
pub const GRACE: Duration = Duration::from_secs(28);

/// Listens for SIGTERM and SIGINT.
pub struct Shutdown {
    stop: CancellationToken,
    terminate: Signal,
    interrupt: Signal,
}

/// After a signal, the work did not finish in time, or a second signal demanded an immediate stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overrun {
    /// [`GRACE`] has passed.
    #[error("the work in hand was not finished within {} s of the signal", GRACE.as_secs())]
    TimedOut,
    /// A second signal came.
    #[error("a second signal ended the process at once")]
    Repeated,
}

impl Shutdown {
    /// Handles both signals: from now on they cancel [`Shutdown::stop`] instead of ending the process.
    ///
    /// # Errors
    /// When the operating system refuses; outside a tokio runtime it panics.
    pub fn install() -> std::io::Result<Shutdown> {
        Ok(Shutdown {
            stop: CancellationToken::new(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Cancelled by the first signal: accept no more work, and finish or return the work in progress.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `work` to completion. After a signal it may run for at most [`GRACE`] more; a second signal stops it at
    /// once.
    ///
    /// # Errors
    /// [`Overrun`] if `work` was aborted; its work in progress returns to where it came from.
    pub async fn run<W: Future>(mut self, work: W) -> Result<W::Output, Overrun> {
        tokio::pin!(work);
        let signal = tokio::select! {
            output = &mut work => return Ok(output),
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal, "Stopping after {signal}");
        self.stop.cancel();
        let overrun = tokio::select! {
            output = &mut work => return Ok(output),
            () = tokio::time::sleep(GRACE) => Overrun::TimedOut,
            _ = self.terminate.recv() => Overrun::Repeated,
            _ = self.interrupt.recv() => Overrun::Repeated,
        };
        warn!("Stopped hard: {overrun}");
        Err(overrun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_stops_the_work_and_waits_for_what_is_in_hand() {
        let shutdown = Shutdown::install().unwrap();
        let stop = shutdown.stop();
        let work = async {
            let sent = std::process::Command::new("kill").arg(std::process::id().to_string()).status();
            assert!(sent.unwrap().success());
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            "finished"
        };
        assert_eq!(shutdown.run(work).await, Ok("finished"));
    }
}
