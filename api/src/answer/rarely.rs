//! Limits log lines that any request could cause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long to stay silent after a line.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// Allows one line per 10 minutes: a stranger must not be able to fill the log.
#[derive(Default)]
pub struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    /// Whether a line is due. If so, the caller writes it.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = said.is_none_or(|said| said + SILENCE <= now);
        if due {
            *said = Some(now);
        }
        due
    }
}

/// Allows a few lines per second, and counts the lines that were left out.
pub struct Few {
    most: u32,
    second: Mutex<Second>,
}

struct Second {
    began: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Few {
    /// Allows at most `most` lines per second.
    pub const fn new(most: u32) -> Few {
        Few { most, second: Mutex::new(Second { began: None, said: 0, left_out: 0 }) }
    }

    /// Whether this line may be written, and how many lines were left out in the seconds before. The count is returned
    /// once.
    pub fn take(&self, now: Instant) -> (bool, u64) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if second.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1)) {
            left_out = std::mem::take(&mut second.left_out);
            (second.began, second.said) = (Some(now), 0);
        }
        let says = second.said < self.most;
        if says {
            second.said += 1;
        } else {
            second.left_out += 1;
        }
        (says, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_said_each_second_and_the_others_are_counted() {
        let (few, began) = (Few::new(3), Instant::now());
        let said = (0..10).filter(|_| few.take(began).0).count();
        assert_eq!(said, 3);
        let next = began + Duration::from_secs(1);
        assert_eq!((few.take(next), few.take(next)), ((true, 7), (true, 0)));
    }

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
