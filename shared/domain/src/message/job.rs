//! Jobs: rows that are due, and the messages that nudge a worker to take one.

use serde::{Deserialize, Serialize};
use time::Duration;

use crate::ids::CaseId;
use crate::money::Money;
use crate::order_no::RefundNo;

/// The nudge to work on a `jobs` row. A worker takes the row only with the fence that it has now, which the relay drew at
/// random when it leased the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMessage {
    /// Which row.
    pub id: i64,
    /// The row's fence when it was published.
    pub fence: i64,
}

/// The ages at which an order that is still unpaid is asked about, should its callback be lost: soon, then slower. After
/// the last it is asked about once a day. Its expiry is a moment of its own.
pub const CHECKS: &[Duration] = &[
    Duration::seconds(30),
    Duration::minutes(1),
    Duration::minutes(3),
    Duration::minutes(5),
    Duration::minutes(10),
    Duration::minutes(20),
    Duration::minutes(30),
    Duration::hours(1),
    Duration::hours(2),
    Duration::hours(6),
    Duration::hours(12),
    Duration::hours(24),
];

/// The gaps between two questions about an unpaid order while somebody watches it; after the last one they stay as long.
pub const HINTS: &[Duration] =
    &[Duration::seconds(3), Duration::seconds(5), Duration::seconds(10), Duration::seconds(20), Duration::seconds(30)];
/// The shortest time between two queries about one unpaid order that its schedule and hints cause. What people ask for, and a
/// query after a close that failed, do not wait for it.
pub const AT_LEAST_APART: Duration = Duration::seconds(3);

/// What a `jobs` row is due for.
pub mod kind {
    /// A callback that could not be published when it came.
    pub const CALLBACK: &str = "callback";
    /// Ask the gateway about an order that is not paid.
    pub const CHECK: &str = "check";
    /// Carry a refund a step further.
    pub const REFUND: &str = "refund";
    /// Ask the gateway once more about an order that is paid.
    pub const LOOK_BACK: &str = "look_back";
}

/// What people, or a policy, have decided and a check carries out: the gateway is asked in the same moment. The job's
/// payload holds each under the id of its case, so one never takes the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Asked {
    /// Take the late payment of the case for its order, if its money is there.
    Fulfil,
    /// Book a refund that was made outside, if the gateway knows it.
    BookRefund {
        /// The number that its sender gave it.
        refund_no: RefundNo,
        /// How much went back.
        amount: Money,
    },
}

impl Asked {
    const PREFIX: &str = "case:";

    /// The payload that asks for it.
    pub fn of(&self, case: CaseId) -> serde_json::Value {
        // A struct of texts always has a value.
        let asked = serde_json::to_value(self).unwrap_or_default();
        serde_json::Value::Object([(format!("{}{case}", Asked::PREFIX), asked)].into_iter().collect())
    }

    /// What a payload asks for, each with its case. What cannot be read is left out.
    pub fn in_payload(payload: &serde_json::Value) -> Vec<(CaseId, Asked)> {
        let members = payload.as_object().into_iter().flatten();
        let asked = members.filter_map(|(name, value)| {
            let case = CaseId::parse(name.strip_prefix(Asked::PREFIX)?).ok()?;
            Some((case, serde_json::from_value(value.clone()).ok()?))
        });
        asked.collect()
    }
}
