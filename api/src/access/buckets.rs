//! Token buckets by key, in bounded memory. A bucket is stored as the moment at which it is full again.
//!
//! (The usual limiter crates charge for each check. Here a check is free, so that only refusals are charged. The rule
//! is the same as in Redis, see [`crate::access::limits`].)

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The most keys that are remembered, which bounds the memory. All other keys share one bucket.
const KEYS: usize = 50_000;
/// The shared bucket holds as many tokens as this many keys together.
const SHARED: u32 = 64;

/// The quota of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Tokens that may be used in a row.
    pub burst: u32,
    /// The time after which one token is added.
    pub every: Duration,
}

/// What is left for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The tokens that are left. `None`: there was no token for this request.
    pub tokens: Option<u32>,
    /// The time until the next token is added. Zero if there was a token for this request.
    pub wait: Duration,
    /// The time until the bucket is full again.
    pub full_in: Duration,
}

/// See the module.
pub struct Buckets<K> {
    quota: Quota,
    book: Mutex<Book<K>>,
}

struct Book<K> {
    /// When the bucket of each key is full again. A full bucket needs no entry.
    full_at: HashMap<K, Instant>,
    /// The same for all keys that found no room.
    others_full_at: Instant,
    /// When the book was last swept. A full book is swept at intervals, not for each new key.
    swept_at: Option<Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Starts with a full bucket for every key.
    pub fn new(quota: Quota) -> Buckets<K> {
        let book = Book { full_at: HashMap::new(), others_full_at: Instant::now(), swept_at: None };
        Buckets { quota, book: Mutex::new(book) }
    }

    /// Whether the bucket has no token.
    pub fn is_empty(&self, key: &K, now: Instant) -> bool {
        let mut book = self.book();
        let (quota, full_at) = match book.has_room_for(key, now, self.quota.every) {
            true => (self.quota, book.full_at.get(key).copied()),
            false => (self.quota.shared(), Some(book.others_full_at)),
        };
        full_at.is_some_and(|full_at| quota.left(full_at.saturating_duration_since(now)).tokens.is_none())
    }

    /// Takes a token, if there is one. A key that finds no room in a full book uses the shared bucket.
    pub fn take(&self, key: K, now: Instant) -> Left {
        let mut book = self.book();
        let (quota, full_at) = book.bucket(key, now, self.quota);
        let left = quota.left(full_at.saturating_duration_since(now));
        if left.tokens.is_some() {
            *full_at = (*full_at).max(now) + quota.every;
        }
        left
    }

    /// Takes a token even if there is none. The bucket then needs longer to fill.
    pub fn charge(&self, key: K, now: Instant) {
        let mut book = self.book();
        let (quota, full_at) = book.bucket(key, now, self.quota);
        *full_at = (*full_at).max(now) + quota.every;
    }

    fn book(&self) -> MutexGuard<'_, Book<K>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quota {
    /// The quota of the shared bucket: as much as [`SHARED`] keys together.
    fn shared(self) -> Quota {
        Quota { burst: self.burst.saturating_mul(SHARED), every: self.every / SHARED }
    }

    /// What is left after one more token is taken from a bucket that is full again in `full_in`.
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
    /// The bucket of a key: its own, or the shared one when the book is full.
    fn bucket(&mut self, key: K, now: Instant, quota: Quota) -> (Quota, &mut Instant) {
        match self.has_room_for(&key, now, quota.every) {
            true => (quota, self.full_at.entry(key).or_insert(now)),
            false => (quota.shared(), &mut self.others_full_at),
        }
    }

    fn has_room_for(&mut self, key: &K, now: Instant, every: Duration) -> bool {
        if self.full_at.len() >= KEYS && !self.full_at.contains_key(key) {
            self.sweep(now, every);
        }
        self.full_at.len() < KEYS || self.full_at.contains_key(key)
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
        // Keys beyond the bound share one bucket, so they are not let through without limit.
        let strangers = (KEYS + 1..2 * KEYS).filter(|n| buckets.take(*n, began).tokens.is_some()).count();
        assert_eq!(strangers, (QUOTA.burst * SHARED) as usize - 1);
        assert!(
            buckets.is_empty(&(3 * KEYS), began) && !buckets.is_empty(&1, began),
            "those that were there are known"
        );
        buckets.charge(KEYS + 1, began + QUOTA.every);
        assert_eq!(buckets.book().full_at.len(), 1, "the full ones made room");
    }
}
