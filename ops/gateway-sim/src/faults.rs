//! Faults on request: what networks and gateways do to a merchant, with chosen probabilities.
//!
//! The dice are a seeded generator, so a run can be repeated as far as the sequence of its events is the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::calls::At;
use crate::odd::OddFaults;

/// The maximum number of trades with their own faults.
const MAX_SCOPES: usize = 100_000;
const MAX_COPIES: u32 = 1_000;
const MAX_DELAY_MS: u64 = 86_400_000;
const MAX_SLOW_MS: u64 = 120_000;

/// Faults of callbacks; odds are 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallbackFaults {
    /// Odds that a delivery is not sent; the next one follows on the schedule.
    pub lose: f64,
    /// How many more copies follow a delivery that was answered with success.
    pub repeat: u32,
    /// Copies sent at the same time; 0 and 1 both mean one copy.
    pub parallel: u32,
    /// How long the first delivery is delayed; not scaled by the speed.
    pub delay_ms: u64,
    /// Odds that the body of the first delivery is changed after signing.
    pub tamper: f64,
    /// Odds that the first delivery names a serial that does not exist (WeChat Pay).
    pub wrong_serial: f64,
    /// Odds that a stranger's key signs the first delivery.
    pub forged: f64,
    /// Odds of a probe (`WECHATPAY/SIGNTEST/…`) before the first delivery (WeChat Pay).
    pub probe: f64,
    /// The amount that authentic callbacks contain instead of the true one.
    pub wrong_amount_fen: Option<i64>,
    /// Odds that an authentic callback names another merchant.
    pub other_merchant: f64,
    /// Serial of the key, among the account's own, that signs (WeChat Pay).
    pub sign_with: Option<String>,
    /// The payment's notification waits until a refund's notification was sent, for at most one minute.
    pub refund_first: bool,
}

/// Faults of the API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiFaults {
    /// Odds of a 5xx instead of an answer; then nothing was done.
    pub error_5xx: f64,
    /// The delay of every answer.
    pub slow_ms: u64,
    /// Odds that the buyer pays just before a close arrives.
    pub pay_before_close: f64,
}

/// Faults of refunds; odds are 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefundFaults {
    /// Odds that a refund is done but its answer never arrives: the connection is cut after `hold_ms`.
    pub effect_then_timeout: f64,
    /// How long such an answer is held before the connection is cut.
    pub hold_ms: u64,
    /// Odds that a refund is refused because of its rate, with nothing done.
    pub rate_limited: f64,
    /// Odds of a 5xx before anything is done.
    pub error_5xx: f64,
    /// Odds of a 5xx after everything is done.
    pub error_5xx_after: f64,
    /// Odds of a 5xx to a refund query.
    pub query_5xx: f64,
    /// How long a refund is processed; not scaled. 0 means: one second, scaled, at WeChat Pay; no processing at Alipay.
    pub processing_ms: u64,
    /// The age below which a refund query does not know a refund yet (Alipay); not scaled.
    pub query_lag_ms: u64,
    /// Odds that a refund ends `ABNORMAL` (WeChat Pay).
    pub abnormal: f64,
    /// Odds that a refund ends `CLOSED` (WeChat Pay).
    pub closed: f64,
    /// Odds that the answer to a refund query contains another amount, although it is correctly signed.
    pub other_amount: f64,
    /// Whether notices of refunds are suppressed.
    pub no_notice: bool,
}

/// The faults of one trade, or of all trades without their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSet {
    /// `all`, an `out_trade_no`, or an account such as `alipay/main`, which can only have [`FaultSet::odd`].
    #[serde(default = "all")]
    pub scope: String,
    /// Faults of callbacks.
    #[serde(default)]
    pub callbacks: CallbackFaults,
    /// Faults of the API.
    #[serde(default)]
    pub api: ApiFaults,
    /// Faults of refunds.
    #[serde(default)]
    pub refund: RefundFaults,
    /// Faults of the contents of messages.
    #[serde(default)]
    pub odd: OddFaults,
}

fn all() -> String {
    "all".to_owned()
}

/// The fault that an API call meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiFault {
    Unavailable,
    RateLimited,
}

#[derive(Debug)]
pub(crate) struct Faults {
    seed: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    all: FaultSet,
    scopes: HashMap<String, FaultSet>,
    dice: XorShift,
    counts: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Faults {
        Faults { seed, inner: Mutex::new(Inner::new(seed)) }
    }

    /// Sets the faults of one scope.
    ///
    /// # Errors
    /// Names the value that is out of range.
    pub(crate) fn put(&self, set: FaultSet) -> Result<(), String> {
        set.check()?;
        let mut inner = self.lock();
        if set.scope == "all" {
            inner.all = set;
        } else if inner.scopes.len() >= MAX_SCOPES && !inner.scopes.contains_key(&set.scope) {
            return Err(format!("more than {MAX_SCOPES} trades with faults of their own"));
        } else {
            inner.scopes.insert(set.scope.clone(), set);
        }
        Ok(())
    }

    /// Makes the callbacks of one trade contain another amount, and keeps its other faults.
    pub(crate) fn wrong_amount(&self, out_trade_no: &str, amount_fen: i64) -> Result<(), String> {
        let set = self.of(Some(out_trade_no));
        let callbacks = CallbackFaults { wrong_amount_fen: Some(amount_fen), ..set.callbacks.clone() };
        self.put(FaultSet { scope: out_trade_no.to_owned(), callbacks, ..set })
    }

    /// Clears faults and counters, and resets the dice.
    pub(crate) fn clear(&self) {
        *self.lock() = Inner::new(self.seed);
    }

    /// The configured faults, and how many times each was injected.
    pub(crate) fn view(&self) -> Value {
        let inner = self.lock();
        let scopes: Vec<_> = inner.scopes.values().take(1_000).collect();
        json!({ "seed": self.seed, "all": inner.all, "trades": scopes, "injected": inner.counts })
    }

    /// The current callback faults of a trade.
    pub(crate) fn callbacks(&self, out_trade_no: &str) -> CallbackFaults {
        self.of(Some(out_trade_no)).callbacks
    }

    /// Throws the dice for the fault `name`, and counts it if it occurs.
    pub(crate) fn falls(&self, name: &'static str, odds: f64) -> bool {
        if odds <= 0.0 {
            return false;
        }
        let mut inner = self.lock();
        let falls = inner.dice.unit() < odds;
        if falls {
            *inner.counts.entry(name).or_default() += 1;
        }
        falls
    }

    /// Counts a fault that needs no dice.
    pub(crate) fn count(&self, name: &'static str) {
        *self.lock().counts.entry(name).or_default() += 1;
    }

    /// Delays an API call as configured, and returns whether it fails.
    pub(crate) async fn api(&self, out_trade_no: Option<&str>) -> Option<ApiFault> {
        let faults = self.of(out_trade_no).api;
        if faults.slow_ms > 0 {
            self.count("slow");
            tokio::time::sleep(Duration::from_millis(faults.slow_ms)).await;
        }
        self.falls("error_5xx", faults.error_5xx).then_some(ApiFault::Unavailable)
    }

    /// The odd contents for a trade: from its own set, else its account's, else the set for all.
    pub(crate) fn odd(&self, at: At<'_>) -> OddFaults {
        let account = at.account_scope();
        let inner = self.lock();
        let own = at.out_trade_no.and_then(|number| inner.scopes.get(number));
        own.or_else(|| inner.scopes.get(&account)).unwrap_or(&inner.all).odd.clone()
    }

    /// The current refund faults of a trade.
    pub(crate) fn refund(&self, out_trade_no: &str) -> RefundFaults {
        self.of(Some(out_trade_no)).refund
    }

    /// The fault that a refund meets before anything is done.
    pub(crate) fn before_refund(&self, out_trade_no: &str) -> Option<ApiFault> {
        let faults = self.refund(out_trade_no);
        if self.falls("refund_rate_limited", faults.rate_limited) {
            return Some(ApiFault::RateLimited);
        }
        self.falls("refund_error_5xx", faults.error_5xx).then_some(ApiFault::Unavailable)
    }

    /// The fault that the answer of a finished refund meets. This does not return if the connection is to be cut.
    pub(crate) async fn after_refund(&self, out_trade_no: &str) -> Option<ApiFault> {
        let faults = self.refund(out_trade_no);
        if self.falls("refund_effect_then_timeout", faults.effect_then_timeout) {
            tokio::time::sleep(Duration::from_millis(faults.hold_ms)).await;
            // Ends the task of this connection, and so the connection, without an answer and without a panic message.
            std::panic::resume_unwind(Box::new("the answer of a refund is lost"));
        }
        self.falls("refund_error_5xx_after", faults.error_5xx_after).then_some(ApiFault::Unavailable)
    }

    /// The fault that a refund query meets.
    pub(crate) fn refund_query(&self, out_trade_no: &str) -> Option<ApiFault> {
        let odds = self.refund(out_trade_no).query_5xx;
        self.falls("refund_query_5xx", odds).then_some(ApiFault::Unavailable)
    }

    /// How many fen too much the answer to a refund query states.
    pub(crate) fn misstated_fen(&self, out_trade_no: &str) -> i64 {
        i64::from(self.falls("refund_other_amount", self.refund(out_trade_no).other_amount))
    }

    /// Whether the buyer pays just before this close.
    pub(crate) fn pays_before_close(&self, out_trade_no: &str) -> bool {
        let odds = self.of(Some(out_trade_no)).api.pay_before_close;
        self.falls("pay_before_close", odds)
    }

    fn of(&self, out_trade_no: Option<&str>) -> FaultSet {
        let inner = self.lock();
        out_trade_no.and_then(|no| inner.scopes.get(no)).unwrap_or(&inner.all).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new(seed: u64) -> Inner {
        let (callbacks, api, refund) = (CallbackFaults::default(), ApiFaults::default(), RefundFaults::default());
        let all = FaultSet { scope: all(), callbacks, api, refund, odd: OddFaults::default() };
        Inner { all, scopes: HashMap::new(), dice: XorShift::new(seed), counts: BTreeMap::new() }
    }
}

impl FaultSet {
    fn check(&self) -> Result<(), String> {
        let CallbackFaults { lose, tamper, wrong_serial, forged, probe, other_merchant, .. } = self.callbacks;
        let odds = [
            ("lose", lose),
            ("tamper", tamper),
            ("wrong_serial", wrong_serial),
            ("forged", forged),
            ("probe", probe),
            ("other_merchant", other_merchant),
            ("error_5xx", self.api.error_5xx),
            ("pay_before_close", self.api.pay_before_close),
            ("refund.effect_then_timeout", self.refund.effect_then_timeout),
            ("refund.rate_limited", self.refund.rate_limited),
            ("refund.error_5xx", self.refund.error_5xx),
            ("refund.error_5xx_after", self.refund.error_5xx_after),
            ("refund.query_5xx", self.refund.query_5xx),
            ("refund.abnormal", self.refund.abnormal),
            ("refund.closed", self.refund.closed),
            ("refund.other_amount", self.refund.other_amount),
        ];
        if let Some((name, value)) = odds.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(format!("{name} is {value}, and odds are 0 to 1"));
        }
        let CallbackFaults { repeat, parallel, delay_ms, .. } = self.callbacks;
        let limits = [
            ("repeat", u64::from(repeat), u64::from(MAX_COPIES)),
            ("parallel", u64::from(parallel), u64::from(MAX_COPIES)),
            ("delay_ms", delay_ms, MAX_DELAY_MS),
            ("slow_ms", self.api.slow_ms, MAX_SLOW_MS),
            ("refund.hold_ms", self.refund.hold_ms, MAX_SLOW_MS),
            ("refund.processing_ms", self.refund.processing_ms, MAX_DELAY_MS),
            ("refund.query_lag_ms", self.refund.query_lag_ms, MAX_DELAY_MS),
        ];
        if let Some((name, value, limit)) = limits.iter().find(|(_, value, limit)| value > limit) {
            return Err(format!("{name} is {value}, more than {limit}"));
        }
        self.odd.check()?;
        let of_account = self.scope.contains('/');
        let plain = (CallbackFaults::default(), ApiFaults::default(), RefundFaults::default());
        if of_account && (&self.callbacks, &self.api, &self.refund) != (&plain.0, &plain.1, &plain.2) {
            return Err("the scope of an account has `odd` alone".to_owned());
        }
        match self.callbacks.wrong_amount_fen {
            Some(fen) if fen < 0 => Err(format!("wrong_amount_fen is {fen}, below 0")),
            _ if self.scope.is_empty() || self.scope.len() > 64 => {
                Err("scope is `all`, an out_trade_no or an account".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// xorshift64*: small, and the same on every machine.
#[derive(Debug)]
struct XorShift(u64);

impl XorShift {
    fn new(seed: u64) -> XorShift {
        XorShift(seed ^ 0x9E37_79B9_7F4A_7C15 | 1)
    }

    /// A number from 0 up to, but not including, 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        f64::from(u32::try_from(bits).unwrap_or_default()) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dice_repeat_and_are_fair() {
        let (mut one, mut other) = (XorShift::new(7), XorShift::new(7));
        let mut below = 0;
        for _ in 0..10_000 {
            let value = one.unit();
            assert!((0.0..1.0).contains(&value));
            assert!((value - other.unit()).abs() < f64::EPSILON);
            below += u32::from(value < 0.3);
        }
        assert!((2_800..3_200).contains(&below), "{below}");
    }

    #[test]
    fn odds_and_limits_are_checked() {
        let faults = Faults::new(1);
        for bad in [
            r#"{"callbacks":{"lose":1.1}}"#,
            r#"{"callbacks":{"tamper":-0.1}}"#,
            r#"{"callbacks":{"repeat":1001}}"#,
            r#"{"api":{"slow_ms":120001}}"#,
            r#"{"refund":{"closed":2}}"#,
            r#"{"refund":{"hold_ms":120001}}"#,
            r#"{"scope":""}"#,
            r#"{"scope":"alipay/main","callbacks":{"lose":1}}"#,
            r#"{"odd":{"refuse":[{"status":200,"code":"X"}]}}"#,
            r#"{"odd":{"refuse":[{"code":""}]}}"#,
        ] {
            let set: FaultSet = serde_json::from_str(bad).unwrap();
            assert!(faults.put(set).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<FaultSet>(r#"{"callbacks":{"loose":1}}"#).is_err());
    }

    #[test]
    fn a_trade_with_faults_of_its_own_has_no_others() {
        let faults = Faults::new(1);
        faults.put(serde_json::from_str(r#"{"callbacks":{"lose":1}}"#).unwrap()).unwrap();
        faults.put(serde_json::from_str(r#"{"scope":"A","callbacks":{"repeat":2}}"#).unwrap()).unwrap();
        assert!(faults.callbacks("B").lose > 0.9);
        assert!(faults.callbacks("A").lose < 0.1);
        assert_eq!(faults.callbacks("A").repeat, 2);
    }
}
