//! Runs work only once when several requests need it at the same time. All of them get its result.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use tokio::sync::watch;

use crate::answer::problem::ApiError;

type Running<K, T> = HashMap<K, watch::Receiver<Option<T>>>;

/// The work that is running, by key.
pub struct Joined<K, T>(Mutex<Running<K, T>>);

impl<K, T> Default for Joined<K, T> {
    fn default() -> Joined<K, T> {
        Joined(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Joined<K, T> {
    /// Runs `work`, or waits for the same work if it is already running.
    ///
    /// # Errors
    /// The request that runs the work gets the work's own error. The requests that wait get 503 and must repeat.
    pub async fn run(&self, key: K, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        let done = match self.join(&key) {
            Ok(mut running) => {
                let ended = running.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
                return ended.ok_or(ApiError::Layer(StatusCode::SERVICE_UNAVAILABLE));
            }
            Err(done) => done,
        };
        let _running = Entry { joined: self, key };
        let outcome = work.await;
        if let Ok(value) = &outcome {
            done.send_replace(Some(value.clone()));
        }
        outcome
    }

    /// The receiver of the work that is already running, or else the sender for a new result.
    fn join(&self, key: &K) -> Result<watch::Receiver<Option<T>>, watch::Sender<Option<T>>> {
        let mut running = self.running();
        if let Some(outcome) = running.get(key) {
            return Ok(outcome.clone());
        }
        let (done, outcome) = watch::channel(None);
        running.insert(key.clone(), outcome);
        Err(done)
    }

    fn running(&self) -> MutexGuard<'_, Running<K, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the work from the map when it ends, however it ends.
struct Entry<'a, K: Hash + Eq + Clone, T: Clone> {
    joined: &'a Joined<K, T>,
    key: K,
}

impl<K: Hash + Eq + Clone, T: Clone> Drop for Entry<'_, K, T> {
    fn drop(&mut self) {
        self.joined.running().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::{Duration, sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn what_many_request_is_done_once_for_each_key() {
        let (joined, runs) = (Joined::default(), AtomicUsize::new(0));
        let work = async |key: usize| {
            sleep(Duration::from_millis(20)).await;
            Ok(runs.fetch_add(1, Ordering::Relaxed) * 10 + key)
        };
        let calls = (0..100).map(|n| joined.run(n % 2, work(n % 2)));
        let got: Vec<usize> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        assert!(got.iter().enumerate().all(|(n, value)| value % 10 == n % 2), "{got:?}");
        assert!(joined.running().is_empty());
    }

    #[tokio::test]
    async fn a_failure_and_a_request_that_is_dropped_leave_nothing_behind() {
        let joined: Joined<(), ()> = Joined::default();
        let fails = async {
            sleep(Duration::from_millis(20)).await;
            Err(ApiError::OrderNotFound)
        };
        let (first, second) = tokio::join!(joined.run((), fails), joined.run((), async { Ok(()) }));
        assert!(matches!(first, Err(ApiError::OrderNotFound)), "{first:?}");
        assert!(matches!(second, Err(ApiError::Layer(StatusCode::SERVICE_UNAVAILABLE))), "{second:?}");
        let dropped = timeout(Duration::from_millis(10), joined.run((), std::future::pending())).await;
        assert!(dropped.is_err());
        assert!(joined.run((), async { Ok(()) }).await.is_ok());
    }
}
