//! Token buckets by key, in memory with a bound: a bucket is the moment at which it is full again.
//!
//! (The usual limiter crates charge for being asked. Here a look costs nothing, so that refusals alone can be charged, and
//! the rule is the one that [`crate::limits`] follows in Redis.)

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// More keys than that are not remembered: the bound on memory.
const KEYS: usize = 50_000;

/// How much a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// So many in a row.
    pub burst: u32,
    /// And one more each time this has passed.
    pub every: Duration,
}

/// What is left to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Tokens; `None`: this one was not there.
    pub tokens: Option<u32>,
    /// Until one is there again; nothing while some are left.
    pub wait: Duration,
    /// Until all of them are there again.
    pub full_in: Duration,
}

/// See the module.
pub struct Buckets<K> {
    quota: Quota,
    book: Mutex<Book<K>>,
}

struct Book<K> {
    /// When the bucket of a key is full again; full ones need no entry.
    full_at: HashMap<K, Instant>,
    /// A full book is swept now and then, not for each stranger.
    swept_at: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// A full bucket for everybody.
    pub fn new(quota: Quota) -> Buckets<K> {
        Buckets { quota, book: Mutex::new(Book { full_at: HashMap::new(), swept_at: None }) }
    }

    /// Whether the bucket has no token.
    pub fn is_empty(&self, key: &K, now: Instant) -> bool {
        let full_at = self.book().full_at.get(key).copied();
        full_at.is_some_and(|full_at| self.quota.left(full_at.saturating_duration_since(now)).tokens.is_none())
    }

    /// Takes a token, if there is one. A key that finds no room in a full book is let through.
    pub fn take(&self, key: K, now: Instant) -> Left {
        let mut book = self.book();
        let full_in = book.full_at.get(&key).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let left = self.quota.left(full_in);
        if left.tokens.is_some() {
            book.charge(key, now, self.quota.every);
        }
        left
    }

    /// Takes a token, there or not.
    pub fn charge(&self, key: K, now: Instant) {
        self.book().charge(key, now, self.quota.every);
    }

    fn book(&self) -> MutexGuard<'_, Book<K>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quota {
    /// What is left after one token more is taken from a bucket that is full again in `full_in`.
    pub fn left(&self, full_in: Duration) -> Left {
        let (after, most) = (full_in + self.every, self.every * self.burst);
        match most.checked_sub(after) {
            Some(spare) => {
                let tokens = spare.as_nanos() / self.every.as_nanos().max(1);
                Left { tokens: u32::try_from(tokens).ok(), wait: Duration::ZERO, full_in: after }
            }
            None => Left { tokens: None, wait: after - most, full_in },
        }
    }
}

impl<K: Hash + Eq> Book<K> {
    fn charge(&mut self, key: K, now: Instant, every: Duration) {
        if self.full_at.len() >= KEYS && !self.full_at.contains_key(&key) {
            self.sweep(now, every);
            if self.full_at.len() >= KEYS {
                return;
            }
        }
        let full_at = self.full_at.entry(key).or_insert(now);
        *full_at = (*full_at).max(now) + every;
    }

    fn sweep(&mut self, now: Instant, every: Duration) {
        if self.swept_at.is_none_or(|swept_at| swept_at + every <= now) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { burst: 60, every: Duration::from_millis(500) };

    #[test]
    fn a_bucket_is_empty_after_a_burst_and_fills_with_time() {
        let (buckets, began) = (Buckets::new(QUOTA), Instant::now());
        for taken in 1..=QUOTA.burst {
            assert!(!buckets.is_empty(&"a", began));
            let left = buckets.take("a", began);
            assert_eq!((left.tokens, left.full_in), (Some(QUOTA.burst - taken), QUOTA.every * taken));
        }
        assert!(buckets.is_empty(&"a", began) && !buckets.is_empty(&"b", began));
        let refused = buckets.take("a", began + Duration::from_millis(200));
        assert_eq!((refused.tokens, refused.wait), (None, Duration::from_millis(300)));
        assert_eq!(buckets.take("a", began + QUOTA.every).tokens, Some(0), "what is refused costs nothing");
        assert!(!buckets.is_empty(&"a", began + QUOTA.every * QUOTA.burst));
    }

    #[test]
    fn a_flood_of_keys_has_a_bound() {
        let (buckets, began) = (Buckets::new(QUOTA), Instant::now());
        for n in 0..=KEYS {
            assert!(buckets.take(n, began).tokens.is_some());
        }
        assert_eq!(buckets.book().full_at.len(), KEYS);
        buckets.charge(KEYS + 1, began + QUOTA.every);
        assert_eq!(buckets.book().full_at.len(), 1, "the full ones made room");
    }
}
