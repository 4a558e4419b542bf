//! Says something now and then that could be said of every request.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long to keep silent after having said it.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// What a stranger can cause must not fill the log.
#[derive(Default)]
pub struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    /// Whether it is time to say it; the caller then does.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = said.is_none_or(|said| said + SILENCE <= now);
        if due {
            *said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_again_much_later() {
        let (rarely, began) = (Rarely::default(), Instant::now());
        assert!(rarely.is_due(began));
        assert!(!rarely.is_due(began));
        assert!(!rarely.is_due(began + SILENCE - Duration::from_secs(1)));
        assert!(rarely.is_due(began + SILENCE));
        assert!(!rarely.is_due(began + SILENCE));
    }
}
