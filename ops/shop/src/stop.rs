//! The one signal that ends everything.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells when to stop; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// Says it.
pub(crate) struct Stopper(watch::Sender<bool>);

impl Stop {
    /// A stop that someone else says.
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

    /// Whether it has been said.
    pub(crate) fn is_said(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is said.
    pub(crate) async fn said(&self) {
        // A sender that is gone will not say it any more, and has nobody left to work for.
        let _ = self.0.clone().wait_for(|said| *said).await.is_ok();
    }
}

impl Stopper {
    pub(crate) fn stop(&self) {
        // Nobody listening means that everything has stopped already.
        let _ = self.0.send(true);
    }
}
