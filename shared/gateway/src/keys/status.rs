//! How the keys of an account are: which it has, and until when they count.

use domain::{AccountName, PaymentMethod};
use time::OffsetDateTime;
use tracing::{error, warn};

use super::ring::Validity;

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

/// Our own certificate at Alipay: with it one signs and verifies nothing.
pub(crate) const APP_CERTIFICATE: &str = "app_certificate";

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
    pub(crate) fn warn(&self, method: PaymentMethod, account: &AccountName) {
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
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-05 02:21:10 UTC);

    fn key(kind: &'static str, serial: &str, from: i64, until: i64) -> KeyStatus {
        let at = |days| Some(NOW + time::Duration::days(days));
        KeyStatus { kind, serial: serial.to_owned(), validity: Validity { from: at(from), until: at(until) } }
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
