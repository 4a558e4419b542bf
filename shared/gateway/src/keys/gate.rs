//! Looks up a key that a message names: seldom, and once for all callers that wait for it.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The time limit of one key lookup while a callback waits: the gateway that sent the callback stops waiting after 5 s.
pub(crate) const LOOK: Duration = Duration::from_millis(2500);

/// Allows one lookup per 30 s; concurrent callers wait and share its result.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Option<OffsetDateTime>>);

impl Gate {
    const BETWEEN: time::Duration = time::Duration::seconds(30);

    /// Runs `look`, unless a lookup ran within the last 30 s. Returns whether the key is `known` afterwards. `now` may
    /// be a little older than that of the last lookup; a clock that was set back by 30 s or more opens the gate.
    pub(crate) async fn look(
        &self,
        now: OffsetDateTime,
        known: impl Fn() -> bool,
        look: impl Future<Output = ()>,
    ) -> bool {
        let whole = async {
            let mut last = self.0.lock().await;
            let opens = last.is_none_or(|last| (now - last).abs() >= Gate::BETWEEN);
            if !known() && opens {
                *last = Some(now);
                look.await;
            }
            known()
        };
        timeout(LOOK, whole).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);

    #[tokio::test]
    async fn a_look_is_taken_once_in_half_a_minute() {
        let (gate, looks) = (Gate::default(), AtomicU32::new(0));
        let look = async |seconds: i64, known: bool| {
            let now = NOW + time::Duration::seconds(seconds);
            let found = gate
                .look(now, || known, async { looks.store(looks.load(Ordering::Relaxed) + 1, Ordering::Relaxed) })
                .await;
            (found, looks.load(Ordering::Relaxed))
        };
        assert_eq!(look(0, true).await, (true, 0), "nothing to look for");
        assert_eq!(look(0, false).await, (false, 1));
        assert_eq!(look(29, false).await, (false, 1));
        assert_eq!(look(30, false).await, (false, 2));
        assert_eq!(look(0, false).await, (false, 3), "the clock was set back");
    }

    #[tokio::test]
    async fn who_comes_while_a_look_is_under_way_gets_what_it_finds() {
        let (gate, found) = (Gate::default(), AtomicU32::new(0));
        let known = || found.load(Ordering::Relaxed) > 0;
        let first = gate.look(NOW, known, async {
            tokio::task::yield_now().await;
            found.store(1, Ordering::Relaxed);
        });
        let second = gate.look(NOW, known, async { panic!("two looks") });
        assert_eq!(tokio::join!(first, second), (true, true));
    }
}
