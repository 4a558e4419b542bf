//! Keeping keys fresh while the process runs: one task asks every gateway for its keys, watches the files of the
//! configuration, and tells how long each certificate still counts.
//!
//! Nothing of it is waited for: a process starts with the keys on file, and works with the old ones while new ones cannot be
//! had.

use std::collections::HashMap;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::keys::{Validity, jitter};
use super::{Gateway, GatewayError, Gateways};
use crate::clock::Clock;
use crate::domain::{AccountName, PaymentMethod};
use crate::panics::{caught, caught_now};

/// How long one look for a key may take that a callback waits for: its gateway gives up after 5 s.
pub(super) const LOOK: Duration = Duration::from_millis(2500);
/// How often keys are asked for: at least and at most. WeChat Pay wants it oftener than every 12 h.
const PERIOD: (Duration, Duration) = (Duration::from_hours(9), Duration::from_hours(11));
/// The first pause after a failure; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// The longest pause after failures while there is a key to work with, and while there is none.
const LONGEST_RETRY: (Duration, Duration) = (Duration::from_mins(30), Duration::from_mins(1));
/// How often the files are looked at.
const WATCH: Duration = Duration::from_secs(5);
/// How often what is due is looked for, and how long keys last is told.
const TURN: Duration = Duration::from_secs(1);
/// From so many days before its end on, a certificate is warned of.
pub const WARN_DAYS: f64 = 30.0;

/// What a question for keys brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyNews {
    /// This account has the keys that were configured and no others.
    Fixed,
    /// The gateway has none to give: a merchant with WeChat Pay's public key alone.
    None,
    /// They are here.
    Fetched {
        /// How many were not known.
        new: usize,
    },
}

/// A key of an account and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// What it is, from a small set: `platform_certificate`, `public_key`, `app_certificate` …
    pub kind: &'static str,
    /// Its name.
    pub serial: String,
    /// When it counts.
    pub validity: Validity,
}

/// Lets one look through in half a minute, whoever asks for it; who comes meanwhile waits for what it finds.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<OffsetDateTime>>);

impl Gate {
    const BETWEEN: time::Duration = time::Duration::seconds(30);

    /// Looks, unless somebody has just done so. Whether what was wanted is `known` then. `now` may be a little
    /// older than the last look's; a clock that was set back by more opens the gate.
    pub(super) async fn look(
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

/// Counts a verified callback by the key that signed it: the labels are as many as keys were ever loaded.
pub(super) fn count_callback(method: PaymentMethod, account: &AccountName, serial: String) {
    let (gateway, account) = (method.as_str(), account.to_string());
    metrics::counter!("callbacks_by_serial_total", "gateway" => gateway, "account" => account, "serial" => serial)
        .increment(1);
}

/// When an account is asked next.
struct Due {
    at: Instant,
    failures: u32,
}

impl Gateways {
    /// Tends the keys of all accounts until `stop`. Run it once in a process, beside the work.
    pub async fn tend(self, clock: Clock, stop: CancellationToken) {
        let both = async { tokio::join!(self.watch_files(), self.refresh(clock)) };
        stop.run_until_cancelled(both).await;
    }

    async fn watch_files(&self) {
        let mut watch = self.watch();
        loop {
            sleep(WATCH).await;
            // A few small files, and reading keys again is rare. What it finds it has logged.
            if let Err(panic) = caught_now(|| drop(watch.look(self))) {
                panic.noted("gateways", "files", &"the files of the gateways");
            }
        }
    }

    async fn refresh(&self, clock: Clock) {
        let mut due: HashMap<(PaymentMethod, AccountName), Due> = HashMap::new();
        let mut told = Told::default();
        loop {
            let now = Instant::now();
            let accounts: Vec<_> = self.iter().collect();
            for gateway in &accounts {
                let next = due.entry(name(gateway.as_ref())).or_insert(Due { at: now, failures: 0 });
                if next.at <= now {
                    // What one gateway answers keeps no other from its keys.
                    let asked = caught(ask(gateway.as_ref(), next.failures, clock.now())).await;
                    *next = asked.unwrap_or_else(|panic| {
                        panic.noted("gateways", "keys", gateway.account());
                        Due { at: now + LONGEST_RETRY.1, failures: next.failures.saturating_add(1) }
                    });
                }
            }
            for gateway in &accounts {
                if let Err(panic) = caught_now(|| told.tell(gateway.as_ref(), clock.now())) {
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

/// Asks one account's gateway, and says when to ask again.
async fn ask(gateway: &dyn Gateway, failures: u32, now: OffsetDateTime) -> Due {
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
        warn!(gateway = %gateway_name, %account, failures, %error, "The keys of {gateway_name}/{account} were not refreshed: the known ones go on");
    } else {
        error!(gateway = %gateway_name, %account, failures, %error, "{gateway_name}/{account} has no key to verify with, and none was fetched: callbacks are put off");
    }
}

/// Whether anything that this gateway signs could be verified now.
fn can_verify(gateway: &dyn Gateway, now: OffsetDateTime) -> bool {
    gateway.key_status().iter().any(|key| key.kind != APP_CERTIFICATE && key.validity.check(now).is_ok())
}

/// Our own certificate at Alipay: with it one signs and verifies nothing.
pub(super) const APP_CERTIFICATE: &str = "app_certificate";

/// Until the next question, after so many failures in a row.
fn pause(failures: u32, works: bool) -> Duration {
    let (least, most) = match failures {
        0 => PERIOD,
        _ => {
            let longest = if works { LONGEST_RETRY.0 } else { LONGEST_RETRY.1 };
            let doubled = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(16)).min(longest);
            (doubled / 2, doubled)
        }
    };
    // Without random bits nothing could be signed either.
    least + jitter(most - least).unwrap_or_default()
}

/// What was told of certificates that end, so that it is told once a day.
#[derive(Default)]
struct Told(HashMap<(PaymentMethod, AccountName, &'static str), i64>);

impl Told {
    /// Sets the gauges of an account, and warns.
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

/// The key of a kind that lasts longest: an older one beside it may end in peace.
#[derive(Debug, PartialEq)]
pub struct Ending {
    /// See [`KeyStatus`].
    pub kind: &'static str,
    /// Its name.
    pub serial: String,
    /// When it counts.
    pub validity: Validity,
    /// Until its end; below 0 it is over.
    pub days: f64,
    /// Whether it does not count yet.
    pub early: bool,
}

impl Ending {
    fn warn(&self, method: PaymentMethod, account: &AccountName) {
        let Ending { kind, serial, .. } = self;
        let days = self.days.floor();
        let (gateway, until) =
            (method.as_str(), self.validity.until.map(|until| until.to_string()).unwrap_or_default());
        if self.early {
            warn!(gateway, %account, kind, serial, "The newest {kind} of {gateway}/{account} does not count yet: check the clock and the file");
        } else if days < 0.0 {
            error!(gateway, %account, kind, serial, until, "The {kind} of {gateway}/{account} has expired, and none follows it");
        } else if days < WARN_DAYS {
            warn!(gateway, %account, kind, serial, until, days, "The {kind} of {gateway}/{account} ends soon, and none follows it");
        }
    }
}

/// Of each kind of key with an end, the one that lasts longest.
pub fn endings(keys: &[KeyStatus], now: OffsetDateTime) -> Vec<Ending> {
    let mut endings: Vec<Ending> = Vec::new();
    for key in keys {
        let Some(until) = key.validity.until else { continue };
        let days = (until - now).as_seconds_f64() / 86_400.0;
        let early = key.validity.from.is_some_and(|from| now < from);
        let ending = Ending { kind: key.kind, serial: key.serial.clone(), validity: key.validity, days, early };
        match endings.iter_mut().find(|known| known.kind == key.kind) {
            None => endings.push(ending),
            // One that counts goes before one that does not yet.
            Some(known) if (known.early, ending.early) == (true, false) => *known = ending,
            Some(known) if known.early == ending.early && known.days < days => *known = ending,
            Some(_) => {}
        }
    }
    endings
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);

    fn key(kind: &'static str, serial: &str, from: i64, until: i64) -> KeyStatus {
        let at = |days| Some(NOW + time::Duration::days(days));
        KeyStatus { kind, serial: serial.to_owned(), validity: Validity { from: at(from), until: at(until) } }
    }

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

    #[test]
    fn of_each_kind_the_one_that_lasts_longest_is_told_of() {
        let keys = [
            key("platform_certificate", "OLD", -900, 3),
            key("platform_certificate", "NEW", -1, 900),
            key("platform_certificate", "FUTURE", 5, 1800),
            key(APP_CERTIFICATE, "APP", -900, -2),
            KeyStatus { kind: "public_key", serial: "PUB_KEY_ID_1".to_owned(), validity: Validity::ALWAYS },
        ];
        let told: Vec<_> = endings(&keys, NOW).into_iter().map(|it| (it.serial, it.days, it.early)).collect();
        assert_eq!(told, [("NEW".to_owned(), 900.0, false), ("APP".to_owned(), -2.0, false)]);
        let early = endings(&keys[2..3], NOW);
        assert!(early[0].early);
    }
}
