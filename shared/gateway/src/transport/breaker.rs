//! A circuit breaker for each host of a gateway. After several transport failures in a row, further calls fail at once.
//! Then one call at a time tests whether the host answers again.
//!
//! It judges only the transport: a host that answers, with any status, counts as reachable. A call that the breaker
//! stops was not sent. The breaker never changes the outcome of a call that was sent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::PaymentMethod;
use tracing::{info, warn};

use crate::error::GatewayError;

/// This many failures in a row open the breaker.
const FAILURES: u32 = 5;
/// How long the breaker stays open before a call may try again.
pub(crate) const PAUSE: Duration = Duration::from_secs(5);

/// The start of the error text of a call that the breaker stopped.
const STOPPED: &str = "not tried";

/// Whether a breaker stopped the call. We log a warning once, when the breaker opens, and not for each stopped call.
pub(crate) fn stopped(error: &GatewayError) -> bool {
    matches!(error, GatewayError::Unavailable(text) if text.starts_with(STOPPED))
}

/// The breaker of one host.
#[derive(Debug)]
pub(crate) struct Breaker {
    gateway: PaymentMethod,
    host: String,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// Open, and one call is testing the host.
    Trying,
}

/// The permission to make one call.
#[derive(Debug)]
pub(crate) struct Leave<'b> {
    breaker: &'b Breaker,
    /// Whether this call tests the host and has not reported its result yet.
    trying: bool,
    given: Instant,
}

impl Breaker {
    pub(crate) fn new(gateway: PaymentMethod, host: String) -> Breaker {
        let breaker = Breaker { gateway, host, state: Mutex::new(State::Closed { failures: 0 }) };
        breaker.show(false);
        breaker
    }

    /// The permission for one call, or the error of a call that is not sent.
    pub(crate) fn enter(&self, now: Instant) -> Result<Leave<'_>, GatewayError> {
        let mut state = self.lock();
        let trying = match *state {
            State::Closed { .. } => false,
            State::Open { until } if now >= until => true,
            State::Open { .. } | State::Trying => {
                return Err(GatewayError::Unavailable(format!("{STOPPED}: {} failed too often just now", self.host)));
            }
        };
        if trying {
            *state = State::Trying;
        }
        Ok(Leave { breaker: self, trying, given: now })
    }

    fn show(&self, open: bool) {
        let open = if open { 1.0 } else { 0.0 };
        metrics::gauge!("gateway_breaker_open", "gateway" => self.gateway.as_str(), "host" => self.host.clone())
            .set(open);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// The call got an answer, good or bad.
    pub(crate) fn answered(mut self) {
        let Breaker { gateway, host, .. } = self.breaker;
        let before = std::mem::replace(&mut *self.breaker.lock(), State::Closed { failures: 0 });
        self.trying = false;
        if !matches!(before, State::Closed { .. }) {
            self.breaker.show(false);
            info!(%gateway, host, "{host} answers again");
        }
    }

    /// The call failed in transport.
    pub(crate) fn failed(mut self, now: Instant) {
        let Breaker { gateway, host, .. } = self.breaker;
        let mut state = self.breaker.lock();
        let open = State::Open { until: now + PAUSE };
        match *state {
            State::Closed { failures } if failures + 1 < FAILURES => *state = State::Closed { failures: failures + 1 },
            State::Closed { .. } => {
                *state = open;
                self.breaker.show(true);
                warn!(%gateway, host, "{FAILURES} calls to {host} failed in a row: further calls fail at once until it answers");
            }
            State::Trying if self.trying => *state = open,
            // A call that was sent before the breaker opened: its failure is no news.
            State::Open { .. } | State::Trying => {}
        }
        drop(state);
        self.trying = false;
    }
}

/// A test call that was dropped found out nothing, so the next call may try at once.
impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.trying {
            let mut state = self.breaker.lock();
            if *state == State::Trying {
                *state = State::Open { until: self.given };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(PaymentMethod::Wechat, "host".to_owned())
    }

    fn fail(breaker: &Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            breaker.enter(now).unwrap().failed(now);
        }
    }

    fn is_open(breaker: &Breaker, now: Instant) -> bool {
        breaker.enter(now).is_err_and(|error| stopped(&error))
    }

    #[test]
    fn failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
        let (breaker, now) = (breaker(), Instant::now());
        fail(&breaker, FAILURES - 1, now);
        breaker.enter(now).unwrap().answered();
        fail(&breaker, FAILURES - 1, now);
        assert!(!is_open(&breaker, now));
        fail(&breaker, 1, now);
        assert!(is_open(&breaker, now));
        assert!(is_open(&breaker, now + PAUSE - Duration::from_millis(1)));
    }

    #[test]
    fn one_call_at_a_time_finds_out() {
        let (breaker, now) = (breaker(), Instant::now());
        fail(&breaker, FAILURES, now);
        let later = now + PAUSE;
        let trying = breaker.enter(later).unwrap();
        assert!(is_open(&breaker, later));
        trying.failed(later);
        assert!(is_open(&breaker, later + PAUSE - Duration::from_millis(1)));
        breaker.enter(later + PAUSE).unwrap().answered();
        fail(&breaker, FAILURES - 1, later + PAUSE);
        assert!(!is_open(&breaker, later + PAUSE));
    }

    #[test]
    fn one_that_is_given_up_lets_the_next_one_try() {
        let (breaker, now) = (breaker(), Instant::now());
        fail(&breaker, FAILURES, now);
        let later = now + PAUSE;
        drop(breaker.enter(later).unwrap());
        breaker.enter(later).unwrap().answered();
        assert!(!is_open(&breaker, later));
    }

    #[test]
    fn calls_that_left_before_it_opened_change_nothing_by_failing_and_close_it_by_an_answer() {
        let (breaker, now) = (breaker(), Instant::now());
        let (late, later) = (breaker.enter(now).unwrap(), breaker.enter(now).unwrap());
        fail(&breaker, FAILURES, now);
        late.failed(now + PAUSE);
        assert!(breaker.enter(now + PAUSE).is_ok());
        later.answered();
        assert!(!is_open(&breaker, now));
    }
}
