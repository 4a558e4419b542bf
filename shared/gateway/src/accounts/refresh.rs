//! Refreshes keys while the process runs. One task requests the keys of every gateway, watches the configuration files,
//! and reports how many days each certificate remains valid.
//!
//! Nothing waits for this task. A process starts with the keys on file, and uses the old keys while new ones cannot be
//! fetched.

use std::collections::HashMap;
use std::time::Duration;

use domain::{AccountName, PaymentMethod};
use runtime::clock::Clock;
use runtime::error_chain::chain;
use runtime::panics::{caught, caught_now};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::accounts::Gateways;
use crate::adapter::Gateway;
use crate::error::GatewayError;
use crate::keys::{APP_CERTIFICATE, Ending, KeyNews, endings, jitter};

/// The shortest and the longest pause between two refreshes. WeChat Pay requires a refresh more often than every 12 h.
const PERIOD: (Duration, Duration) = (Duration::from_hours(9), Duration::from_hours(11));
/// The first pause after a failure; each further failure doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// The longest pause after failures: with a usable key, and without one.
const LONGEST_RETRY: (Duration, Duration) = (Duration::from_mins(30), Duration::from_mins(1));
/// How often the files are checked.
const WATCH: Duration = Duration::from_secs(5);
/// How often we check which accounts are due, and report the remaining days of each key.
const TURN: Duration = Duration::from_secs(1);

/// When the keys of an account are refreshed next.
struct Due {
    at: Instant,
    failures: u32,
}

impl Gateways {
    /// Keeps the keys of all accounts current until `stop`. Run it once per process, in parallel with the work.
    pub async fn tend(self, clock: Clock, stop: CancellationToken) {
        let both = async { tokio::join!(self.watch_files(), self.refresh(clock)) };
        stop.run_until_cancelled(both).await;
    }

    async fn watch_files(&self) {
        let mut watch = self.watch();
        loop {
            sleep(WATCH).await;
            // Blocking is acceptable here: the files are few and small, and a reload is rare. `look` logs its own
            // result.
            if let Err(panic) = caught_now(|| drop(watch.look(self))) {
                panic.noted("gateways", "files", &"the files of the gateways");
            }
        }
    }

    async fn refresh(&self, clock: Clock) {
        let mut due: HashMap<(PaymentMethod, AccountName), Due> = HashMap::new();
        let mut warned = Warned::default();
        loop {
            let now = Instant::now();
            let accounts: Vec<_> = self.iter().collect();
            for gateway in &accounts {
                let next = due.entry(name(gateway.as_ref())).or_insert(Due { at: now, failures: 0 });
                if next.at <= now {
                    // A panic for one gateway must not stop the refresh of the others.
                    let refreshed = caught(refresh_keys(gateway.as_ref(), next.failures, clock.now())).await;
                    *next = refreshed.unwrap_or_else(|panic| {
                        panic.noted("gateways", "keys", gateway.account());
                        Due { at: now + LONGEST_RETRY.1, failures: next.failures.saturating_add(1) }
                    });
                }
            }
            for gateway in &accounts {
                if let Err(panic) = caught_now(|| warned.tell(gateway.as_ref(), clock.now())) {
                    panic.noted("gateways", "certificates", gateway.account());
                }
            }
            sleep(TURN).await;
        }
    }
}

fn name(gateway: &dyn Gateway) -> (PaymentMethod, AccountName) {
    (gateway.method(), gateway.account().clone())
}

/// Refreshes the keys of one account, and returns when to do so again.
async fn refresh_keys(gateway: &dyn Gateway, failures: u32, now: OffsetDateTime) -> Due {
    let method = gateway.method();
    let outcome = gateway.refresh_keys(now).await;
    let outcome_name = match &outcome {
        Ok(KeyNews::Fixed) => "fixed",
        Ok(KeyNews::None) => "none",
        Ok(KeyNews::Fetched { .. }) => "fetched",
        Err(_) => "failed",
    };
    let labels = [("gateway", method.as_str()), ("outcome", outcome_name)];
    metrics::counter!("gateway_key_refreshes_total", &labels).increment(1);
    let failures = if outcome.is_ok() { 0 } else { failures.saturating_add(1) };
    if let Err(error) = outcome {
        say(gateway, failures, &error, now);
    }
    Due { at: Instant::now() + pause(failures, can_verify(gateway, now)), failures }
}

fn say(gateway: &dyn Gateway, failures: u32, error: &GatewayError, now: OffsetDateTime) {
    let (gateway_name, account) = name(gateway);
    if can_verify(gateway, now) {
        warn!(gateway = %gateway_name, %account, failures, error = chain(&error), "The keys of {gateway_name}/{account} were not refreshed: the known keys stay in use");
    } else {
        error!(gateway = %gateway_name, %account, failures, error = chain(&error), "{gateway_name}/{account} has no key to verify with, and none was fetched: callbacks are deferred");
    }
}

/// Whether there is a key that is valid now and verifies this gateway's signatures.
fn can_verify(gateway: &dyn Gateway, now: OffsetDateTime) -> bool {
    gateway.key_status().iter().any(|key| key.kind != APP_CERTIFICATE && key.validity.check(now).is_ok())
}

/// The pause until the next refresh, after this many consecutive failures.
fn pause(failures: u32, works: bool) -> Duration {
    let (least, most) = match failures {
        0 => PERIOD,
        _ => {
            let longest = if works { LONGEST_RETRY.0 } else { LONGEST_RETRY.1 };
            let doubled = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(16)).min(longest);
            (doubled / 2, doubled)
        }
    };
    // Without random bits there is no jitter; signing would fail as well.
    least + jitter(most - least).unwrap_or_default()
}

/// The day of the last warning for each certificate, so that an expiry is logged once a day.
#[derive(Default)]
struct Warned(HashMap<(PaymentMethod, AccountName, &'static str), i64>);

impl Warned {
    /// Sets the gauges of an account, and logs warnings.
    fn tell(&mut self, gateway: &dyn Gateway, now: OffsetDateTime) {
        let (method, account) = name(gateway);
        for ending in endings(&gateway.key_status(), now) {
            let Ending { kind, days, .. } = ending;
            metrics::gauge!("gateway_key_days_left", "gateway" => method.as_str(), "account" => account.to_string(), "key" => kind)
                .set(days);
            let today = now.unix_timestamp().div_euclid(86_400);
            let last = self.0.insert((method, account.clone(), kind), today);
            if last != Some(today) {
                ending.warn(method, &account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_under_twelve_hours_and_grow_with_failures() {
        for _ in 0..100 {
            let period = pause(0, true);
            assert!(period >= PERIOD.0 && period <= PERIOD.1, "{period:?}");
            for (failures, works, most) in
                [(1, true, 5), (2, true, 10), (40, true, 1800), (3, false, 20), (40, false, 60)]
            {
                let pause = pause(failures, works).as_secs_f64();
                assert!(pause <= f64::from(most) && pause >= f64::from(most) / 2.0, "{failures} {pause}");
            }
        }
    }
}
