//! The rules that must hold, and what was found to break them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A rule that must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Every callback that was answered with success is stored as evidence, or waits as a job.
    Acknowledged,
    /// No wrong callback was answered with success.
    NothingWrongAccepted,
    /// What was paid at the gateways is booked as paid here, and nothing else: per order and in total. Money beyond
    /// an order's own payment has a case.
    PaidOnce,
    /// Exactly one event reports each payment of an order, and exactly one each close.
    ReportedOnce,
    /// Each event was delivered as it was written, and the events of an order were delivered in sequence.
    Delivered,
    /// What we refunded at the gateways is booked as refunded here, each refund once.
    ReturnedOnce,
    /// What people refunded in the gateways' consoles is booked here, or an open case reports it. Nothing else is
    /// booked as refunded by them.
    ReturnedOutside,
    /// No payment is refunded beyond its amount, and no limit of a gateway was exceeded.
    WithinPayment,
    /// Each order has the status and version that the state table and its refunds lead to. No state was skipped,
    /// and an order that is closed here cannot be paid at the gateway.
    Moves,
    /// What an answer says exists does exist. The same key always got the same answer once an answer was final.
    Created,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 10] = [
        Invariant::Acknowledged,
        Invariant::NothingWrongAccepted,
        Invariant::PaidOnce,
        Invariant::ReportedOnce,
        Invariant::Delivered,
        Invariant::ReturnedOnce,
        Invariant::ReturnedOutside,
        Invariant::WithinPayment,
        Invariant::Moves,
        Invariant::Created,
    ];
}

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub invariant: Invariant,
    /// What is true instead.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

/// What was found so far.
#[derive(Default)]
pub(super) struct Found(pub(super) Vec<Violation>);

impl Found {
    pub(super) fn add(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.0.push(Violation { invariant, what: what.into() });
    }

    /// Adds a violation for each entry that only one collection has, or that differs between them.
    pub(super) fn differences<K: Ord + fmt::Debug, V: PartialEq + fmt::Debug>(
        &mut self,
        invariant: Invariant,
        what: &str,
        one: &BTreeMap<K, V>,
        other: &BTreeMap<K, V>,
    ) {
        let names: BTreeSet<&K> = one.keys().chain(other.keys()).collect();
        for name in names.into_iter().filter(|name| one.get(name) != other.get(name)) {
            self.add(invariant, format!("{what} {name:?}: {:?} and {:?}", one.get(name), other.get(name)));
        }
    }
}
