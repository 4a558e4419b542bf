//! Time and fresh ids, passed in so that a test can fix them. No other code reads the system clock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use domain::OrderId;
use time::OffsetDateTime;
use uuid::{ClockSequence, ContextV7, Timestamp, Uuid};

/// Numbers the ids within one millisecond. If the machine's clock is set back, continues from the latest time that it
/// has seen.
static SEQUENCE: Mutex<ContextV7> = Mutex::new(ContextV7::new());

/// The clock that a process works by.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Source);

#[derive(Debug, Clone, Copy)]
enum Source {
    System,
    Fixed(OffsetDateTime),
}

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that always shows the same time, for tests.
    pub const fn fixed(at: OffsetDateTime) -> Clock {
        Clock(Source::Fixed(at))
    }

    /// Now, in UTC.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
    pub fn now(&self) -> OffsetDateTime {
        match self.0 {
            Source::System => OffsetDateTime::now_utc() + step(),
            Source::Fixed(at) => at,
        }
    }

    /// A fresh order id: UUIDv7 of the current time. Ids sort by time, and ids of one process sort in the order of
    /// creation.
    pub fn fresh_id(&self) -> OrderId {
        OrderId::from_u128(self.fresh_bits())
    }

    /// The bits of a fresh UUIDv7, for the id of any other row.
    pub fn fresh_bits(&self) -> u128 {
        let now = self.now();
        let (seconds, nanos) = (u64::try_from(now.unix_timestamp()).unwrap_or(0), now.nanosecond());
        let timestamp = match self.0 {
            Source::System => Timestamp::from_unix(&SEQUENCE, seconds, nanos),
            Source::Fixed(_) => Timestamp::from_unix(Numbered, seconds, nanos),
        };
        Uuid::new_v7(timestamp).as_u128()
    }
}

#[cfg(debug_assertions)]
pub use stepped::arm;
/// The offset of this process's clock, for tests of wrong clocks.
#[cfg(debug_assertions)]
use stepped::step;

#[cfg(not(debug_assertions))]
const fn step() -> time::Duration {
    time::Duration::ZERO
}

/// With debug assertions, a program's clock is off by the number of seconds in the file that `CLOCK_STEP_FILE` names,
/// so that a test can change the clocks of single processes while they run. A release build contains none of this.
#[cfg(debug_assertions)]
mod stepped {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use time::Duration;

    use crate::env::Env;

    static FILE: OnceLock<PathBuf> = OnceLock::new();

    /// Reads the variable. The file is read with every reading of the clock, and need not exist.
    pub fn arm(env: &mut Env) {
        if let Some(file) = env.optional("CLOCK_STEP_FILE") {
            drop(FILE.set(file.into()));
        }
    }

    pub fn step() -> Duration {
        FILE.get().map_or(Duration::ZERO, |file| read(file))
    }

    fn read(file: &Path) -> Duration {
        let seconds = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
        Duration::seconds(seconds.unwrap_or_default().into())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_clock_is_off_by_what_the_file_says() {
            let file = std::env::temp_dir().join(format!("clock-step-{}", std::process::id()));
            assert_eq!(read(&file), Duration::ZERO, "no file");
            for (text, seconds) in [("600", 600), ("-600\n", -600), ("", 0), ("soon", 0)] {
                fs::write(&file, text).unwrap();
                assert_eq!(read(&file), Duration::seconds(seconds), "{text:?}");
            }
            fs::remove_file(&file).unwrap();
        }
    }
}

/// Numbers ids independently of their time: ids of a fixed clock carry its time, even after another clock showed a
/// later one.
struct Numbered;

impl ClockSequence for Numbered {
    type Output = u64;

    fn generate_sequence(&self, _: u64, _: u32) -> u64 {
        static LAST: AtomicU64 = AtomicU64::new(0);
        LAST.fetch_add(1, Ordering::Relaxed)
    }

    fn usable_bits(&self) -> usize {
        42
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fresh_and_sort_by_time() {
        let earlier = Clock::fixed(OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000));
        let later = Clock::fixed(earlier.now() + time::Duration::milliseconds(1));
        assert_ne!(earlier.fresh_id(), earlier.fresh_id());
        assert!(earlier.fresh_id() < later.fresh_id());
    }

    #[test]
    fn ids_of_one_process_sort_as_they_were_made() {
        let then = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        for clock in [Clock::system(), Clock::fixed(then), Clock::system()] {
            let ids: Vec<OrderId> = (0..10_000).map(|_| clock.fresh_id()).collect();
            assert!(ids.is_sorted_by(|one, next| one < next), "{clock:?}");
        }
        let id = Clock::fixed(then).fresh_bits();
        assert_eq!(
            id >> 80,
            u128::try_from(then.unix_timestamp()).unwrap() * 1000,
            "a fixed clock's ids are of its time"
        );
    }
}
