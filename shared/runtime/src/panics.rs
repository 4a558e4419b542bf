//! A panic concerns only the piece of work in which it happens: one callback, job, event, dead letter or order.
//!
//! The work runs inside [`caught`], and the caller decides what happens to it. An abort is not caught: a stack
//! overflow, no memory, a panic during unwinding. It ends the process, and the broker redelivers the messages to
//! another process. See `ops/decisions/0016-a-panic-concerns-one-piece-of-work.md`.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::shorten_chars;
use futures_util::FutureExt;
use tracing::error;

/// The maximum number of characters that we store of a panic's message.
const LONGEST: usize = 200;

/// The error of work that panicked, with the panic's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(String);

impl Panicked {
    /// Reads the payload of `catch_unwind` or of a failed task.
    pub fn of(payload: &(dyn Any + Send)) -> Panicked {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        // For a wrong slice index the standard library quotes the sliced text, which may name a payer.
        let text = text.unwrap_or("no message").split(" of `").next().unwrap_or_default();
        Panicked(shorten_chars(text, LONGEST).to_owned())
    }

    /// The panic's message.
    pub fn message(&self) -> &str {
        &self.0
    }

    /// Counts and logs the panic. `worker` and `stage` come from small sets; `subject` is what the work was about: an
    /// order number, a notice id, the number of a job.
    pub fn noted(self, worker: &'static str, stage: &'static str, subject: &dyn Display) -> Panicked {
        metrics::counter!("panics_caught_total", "worker" => worker, "stage" => stage).increment(1);
        error!(worker, stage, %subject, panic = self.0, "Work on {subject} panicked at {stage}");
        self
    }
}

/// Runs work to completion; a panic becomes an error. What the work borrowed must be usable after a panic.
///
/// # Errors
/// [`Panicked`].
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|payload| Panicked::of(payload.as_ref()))
}

/// [`caught`] for work that is not async.
///
/// # Errors
/// [`Panicked`].
pub fn caught_now<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::of(payload.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_message() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(caught(async { panic!("at once") }).await, Err::<(), _>(Panicked("at once".to_owned())));
        let later = async {
            tokio::task::yield_now().await;
            panic!("number {}", 2)
        };
        assert_eq!(caught(later).await, Err::<(), _>(Panicked("number 2".to_owned())));
        assert_eq!(caught_now(|| std::panic::panic_any(5)), Err::<(), _>(Panicked("no message".to_owned())));
    }

    #[test]
    fn a_message_is_short_and_quotes_no_foreign_text() {
        let foreign = "ñandú and the payer's name".to_owned();
        let end = std::hint::black_box(1);
        let Panicked(text) = caught_now(|| foreign[..end].len()).unwrap_err();
        assert!(!text.contains("payer") && text.contains("char boundary"), "{text}");
        let Panicked(text) = caught_now(|| panic!("{}", "é".repeat(1000))).map(|(): ()| ()).unwrap_err();
        assert_eq!(text.chars().count(), LONGEST);
    }
}
