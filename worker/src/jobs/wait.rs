//! How long a job waits before its next step.

use std::time::Duration;

use runtime::clock::Clock;

/// The `step`-th wait of a schedule, varied by [`spread`]; beyond the end of the schedule the last wait applies.
pub(crate) fn pause(clock: &Clock, schedule: &[Duration], step: i32) -> time::Duration {
    let step = usize::try_from(step).unwrap_or(0).min(schedule.len().saturating_sub(1));
    let wait = schedule.get(step).copied().unwrap_or(Duration::from_secs(60));
    spread(clock, wait)
}

/// A wait made longer by up to a tenth, so that jobs that failed together are not tried again together.
pub(crate) fn spread(clock: &Clock, wait: Duration) -> time::Duration {
    let share = f64::from(u8::try_from(clock.fresh_bits() % 256).unwrap_or(0)) / 2560.0;
    time::Duration::seconds_f64(wait.mul_f64(1.0 + share).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use domain::message::schedule::RETRY;

    use super::*;

    #[test]
    fn a_schedule_ends_in_its_last_wait() {
        let clock = Clock::system();
        for (step, seconds) in [(-1, 2.0), (0, 2.0), (1, 10.0), (5, 1800.0), (6, 1800.0), (i32::MAX, 1800.0)] {
            let wait = pause(&clock, &RETRY, step).as_seconds_f64();
            assert!((seconds..=seconds * 1.1).contains(&wait), "{step}: {wait}");
        }
    }
}
