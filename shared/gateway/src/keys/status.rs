//! The keys of an account, and how long they are valid.

use domain::{AccountName, PaymentMethod};
use time::OffsetDateTime;
use tracing::{error, warn};

use super::ring::Validity;

/// We warn about a certificate when fewer than this many days are left.
pub const WARN_DAYS: f64 = 30.0;

/// The result of a key refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyNews {
    /// This account has the configured keys and no others.
    Fixed,
    /// The gateway has no certificates to give: the merchant uses WeChat Pay's public key only.
    None,
    /// The keys were fetched.
    Fetched {
        /// How many of them are new.
        new: usize,
    },
}

/// A key of an account, and its validity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// Its kind, from a small set: `platform_certificate`, `public_key`, `app_certificate` …
    pub kind: &'static str,
    /// Its name.
    pub serial: String,
    /// When it is valid.
    pub validity: Validity,
}

/// The kind of our own certificate at Alipay. It proves our signatures and verifies none of Alipay's.
pub(crate) const APP_CERTIFICATE: &str = "app_certificate";

/// The key of a kind that is valid longest. An older key of the same kind may expire without harm.
#[derive(Debug, PartialEq)]
pub struct Ending {
    /// See [`KeyStatus`].
    pub kind: &'static str,
    /// Its name.
    pub serial: String,
    /// When it is valid.
    pub validity: Validity,
    /// Days until it expires; below 0 it has expired.
    pub days: f64,
    /// Whether its validity has not begun yet.
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

/// For each kind of key that can expire, the key that is valid longest.
pub fn endings(keys: &[KeyStatus], now: OffsetDateTime) -> Vec<Ending> {
    let mut endings: Vec<Ending> = Vec::new();
    for key in keys {
        let Some(until) = key.validity.until else { continue };
        let days = (until - now).as_seconds_f64() / 86_400.0;
        let early = key.validity.from.is_some_and(|from| now < from);
        let ending = Ending { kind: key.kind, serial: key.serial.clone(), validity: key.validity, days, early };
        match endings.iter_mut().find(|known| known.kind == key.kind) {
            None => endings.push(ending),
            // A valid key takes precedence over one that is not valid yet.
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
    fn of_each_kind_the_one_that_lasts_longest_is_listed() {
        let keys = [
            key("platform_certificate", "OLD", -900, 3),
            key("platform_certificate", "NEW", -1, 900),
            key("platform_certificate", "FUTURE", 5, 1800),
            key(APP_CERTIFICATE, "APP", -900, -2),
            KeyStatus { kind: "public_key", serial: "PUB_KEY_ID_1".to_owned(), validity: Validity::ALWAYS },
        ];
        let listed: Vec<_> = endings(&keys, NOW).into_iter().map(|it| (it.serial, it.days, it.early)).collect();
        assert_eq!(listed, [("NEW".to_owned(), 900.0, false), ("APP".to_owned(), -2.0, false)]);
        let early = endings(&keys[2..3], NOW);
        assert!(early[0].early);
    }
}
