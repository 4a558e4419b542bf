//! From a signal to the end of the process, within a bound.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the work may take to end after SIGTERM; a little less than the 30 s after which a process is usually killed.
pub const GRACE: Duration = Duration::from_secs(28);

/// Listens for SIGTERM and SIGINT.
pub struct Shutdown {
    stop: CancellationToken,
    terminate: Signal,
    interrupt: Signal,
}

/// The work was not done in time after a signal, or a second signal asked not to wait for it.
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
    /// Takes over both signals: from now on they cancel [`Shutdown::stop`] instead of ending the process.
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

    /// Cancelled by the first signal: stop taking work, finish or return what is in hand.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `work` to its end; after a signal for at most [`GRACE`] more, and after a second one no longer.
    ///
    /// # Errors
    /// [`Overrun`] when `work` was given up; what it had in hand goes back to where it came from.
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
