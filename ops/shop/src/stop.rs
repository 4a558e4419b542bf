//! The one signal that stops everything.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Receives the signal to stop; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// Sends the signal to stop.
pub(crate) struct Stopper(watch::Sender<bool>);

impl Stop {
    /// A stop that the returned `Stopper` signals.
    pub(crate) fn new() -> (Stopper, Stop) {
        let (set, stop) = watch::channel(false);
        (Stopper(set), Stop(stop))
    }

    /// A stop on SIGTERM or Ctrl-C.
    pub(crate) fn on_signal() -> std::io::Result<Stop> {
        let (stopper, stop) = Stop::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            stopper.stop();
        });
        Ok(stop)
    }

    /// Whether the signal was sent.
    pub(crate) fn is_said(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the signal.
    pub(crate) async fn said(&self) {
        // If the sender is dropped, no signal will come and there is no more work to do, so this also returns.
        let _ = self.0.clone().wait_for(|said| *said).await.is_ok();
    }
}

impl Stopper {
    pub(crate) fn stop(&self) {
        // If there is no receiver, everything has stopped already.
        let _ = self.0.send(true);
    }
}
