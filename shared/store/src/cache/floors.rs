//! The newest version of each thing that was shown recently. No older version is shown after it.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// How long a floor is remembered, in seconds. A copy that is older than a shown version expires at most
/// [`crate::cache::FRESH`] later; the rest of the time covers rounding to whole seconds.
const REMEMBERED: u32 = 4;

/// A fixed number of slots, so its size does not grow with the traffic. Things that share a slot share the higher
/// floor. Then a good copy may be skipped and the database is queried instead, which is always correct.
pub(super) struct Floors {
    /// The upper half is the second when it was last shown, the lower half is the version.
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    began: Instant,
}

impl Floors {
    /// Creates this many slots.
    pub fn new(slots: usize) -> Floors {
        let slots = (0..slots.max(1)).map(|_| AtomicU64::new(0)).collect();
        Floors { slots, hasher: RandomState::new(), began: Instant::now() }
    }

    /// Records that this version was shown.
    pub fn raise(&self, key: &str, version: i64, now: Instant) {
        let (now, version) = (self.second(now), u32::try_from(version).unwrap_or(0));
        let raised = |slot| {
            let floor = if is_over(slot, now) { version } else { version.max(slot as u32) };
            Some(u64::from(now) << 32 | u64::from(floor))
        };
        // The closure always returns `Some`, so this never fails.
        let _ = self.slot(key).fetch_update(Ordering::SeqCst, Ordering::SeqCst, raised);
    }

    /// Whether this version may be shown.
    pub fn allow(&self, key: &str, version: i64, now: Instant) -> bool {
        let slot = self.slot(key).load(Ordering::SeqCst);
        is_over(slot, self.second(now)) || version >= i64::from(slot as u32)
    }

    fn slot(&self, key: &str) -> &AtomicU64 {
        let place = self.hasher.hash_one(key) % self.slots.len() as u64;
        &self.slots[usize::try_from(place).unwrap_or(0)]
    }

    /// Counts from 1, because 0 marks an empty slot.
    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.began).as_secs() + 1).unwrap_or(u32::MAX)
    }
}

fn is_over(slot: u64, now: u32) -> bool {
    let second = (slot >> 32) as u32;
    second == 0 || now.saturating_sub(second) > REMEMBERED
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_floor_is_remembered_for_a_few_seconds() {
        let floors = Floors::new(1024);
        let at = |seconds| floors.began + Duration::from_secs(seconds);
        assert!(floors.allow("a", 1, at(0)) && floors.allow("a", 0, at(0)));
        floors.raise("a", 3, at(0));
        floors.raise("a", 2, at(0));
        assert!(floors.allow("a", 3, at(0)) && !floors.allow("a", 2, at(2)));
        floors.raise("a", 1, at(2));
        assert!(!floors.allow("a", 2, at(6)), "shown again, so remembered anew");
        assert!(floors.allow("a", 1, at(7)));
        floors.raise("a", 1, at(7));
        assert!(floors.allow("a", 1, at(7)) && !floors.allow("a", 0, at(7)), "an old floor does not come back");
    }

    #[test]
    fn those_that_share_a_slot_share_the_higher_floor() {
        let floors = Floors::new(1);
        let now = floors.began;
        floors.raise("a", 7, now);
        floors.raise("b", 2, now);
        assert!(!floors.allow("b", 6, now) && floors.allow("b", 7, now));
    }
}
