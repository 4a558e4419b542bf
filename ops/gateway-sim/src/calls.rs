//! Counts the calls to each gateway, by order and kind of call, for tests that count queries.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::ledger::Gateway;

/// The maximum number of counters. A call beyond it is counted without its order.
const MAX_NAMES: usize = 1_000_000;

/// The kinds of call from a merchant's server to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// `alipay.trade.precreate`, `/v3/pay/transactions/{product}`. Pages and order strings come from browsers and apps.
    Prepay,
    /// A query about a trade.
    Query,
    /// The close of a trade.
    Close,
    /// A refund.
    Refund,
    /// A query about a refund.
    RefundQuery,
    /// A request to pay out an abnormal refund in another way.
    Redirect,
    /// The gateway's certificates.
    Certificates,
    /// Any other method.
    Other,
}

/// The gateway, the account and the order of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) gateway: Gateway,
    pub(crate) account: &'a str,
    pub(crate) out_trade_no: Option<&'a str>,
}

impl At<'_> {
    /// The account as fault scopes name it: `alipay/main`.
    pub(crate) fn account_scope(self) -> String {
        format!("{}/{}", slug(self.gateway), self.account)
    }
}

/// A filter for calls; an absent field matches all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedCalls {
    gateway: Option<Gateway>,
    account: Option<String>,
    out_trade_no: Option<String>,
    call: Option<CallKind>,
}

type Name = (&'static str, String, String, CallKind);

#[derive(Debug, Clone, Copy)]
struct Tally {
    count: u64,
    last: Instant,
    shortest_gap: Option<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<BTreeMap<Name, Tally>>);

impl Calls {
    /// Counts one call whose signature was verified.
    pub(crate) fn count(&self, at: At<'_>, call: CallKind) {
        self.count_at(at, call, Instant::now());
    }

    fn count_at(&self, at: At<'_>, call: CallKind, now: Instant) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gateway = slug(at.gateway);
        let mut name = (gateway, at.account.to_owned(), at.out_trade_no.unwrap_or_default().to_owned(), call);
        if tallies.len() >= MAX_NAMES && !tallies.contains_key(&name) {
            name.2.clear();
        }
        let tally = tallies.entry(name).or_insert(Tally { count: 0, last: now, shortest_gap: None });
        if tally.count > 0 {
            let gap = now - tally.last;
            tally.shortest_gap = Some(tally.shortest_gap.map_or(gap, |shortest| shortest.min(gap)));
        }
        (tally.count, tally.last) = (tally.count + 1, now);
    }

    /// The calls that match the filter, and their total.
    pub(crate) fn view(&self, wanted: &WantedCalls) -> Value {
        let tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(gateway, account, number, call): &Name| {
            wanted.gateway.is_none_or(|wanted| slug(wanted) == *gateway)
                && wanted.account.as_ref().is_none_or(|wanted| wanted == account)
                && wanted.out_trade_no.as_ref().is_none_or(|wanted| wanted == number)
                && wanted.call.is_none_or(|wanted| wanted == *call)
        };
        let found = || tallies.iter().filter(|(name, _)| fits(name));
        let calls: Vec<Value> = found()
            .map(|((gateway, account, number, call), tally)| {
                let gap = tally.shortest_gap.map(|gap| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX));
                json!({
                    "gateway": gateway,
                    "account": account,
                    "out_trade_no": Some(number).filter(|number| !number.is_empty()),
                    "call": call,
                    "count": tally.count,
                    "shortest_gap_ms": gap,
                })
            })
            .collect();
        json!({ "total": found().map(|(_, tally)| tally.count).sum::<u64>(), "calls": calls })
    }

    /// Resets all counters.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn slug(gateway: Gateway) -> &'static str {
    match gateway {
        Gateway::Alipay => "alipay",
        Gateway::Wechat => "wechat",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_order_and_kind_with_their_shortest_gap() {
        let calls = Calls::default();
        let at = At { gateway: Gateway::Wechat, account: "main", out_trade_no: Some("A") };
        let began = Instant::now();
        for after in [0, 5_000, 8_000, 12_000] {
            calls.count_at(at, CallKind::Query, began + Duration::from_millis(after));
        }
        calls.count(at, CallKind::Close);
        calls.count(At { out_trade_no: None, ..at }, CallKind::Certificates);
        let wanted = |text: &str| serde_json::from_str::<WantedCalls>(text).unwrap();
        let queries = calls.view(&wanted(r#"{"out_trade_no":"A","call":"query"}"#));
        assert_eq!((&queries["total"], &queries["calls"][0]["shortest_gap_ms"]), (&json!(4), &json!(3_000)));
        let all = calls.view(&wanted(r#"{"gateway":"wechat"}"#));
        assert_eq!((&all["total"], all["calls"].as_array().unwrap().len()), (&json!(6), 3));
        assert_eq!(calls.view(&wanted(r#"{"gateway":"alipay"}"#))["total"], 0);
        assert_eq!(all["calls"][0]["out_trade_no"], json!(null), "a call that names no order");
        calls.clear();
        assert_eq!(calls.view(&WantedCalls::default())["total"], 0);
    }
}
