//! The rules for refunds: per refund, per payment and per order.

use std::collections::{BTreeMap, BTreeSet};

use super::violation::{Found, Invariant};
use super::{Case, History, Order, Payment, Refund};
use crate::shop::yuan;

/// Money moved exactly once for each refund that succeeded at a gateway, and for no other refund.
pub(super) fn moved_once(history: &History, found: &mut Found) {
    for refund in history.trades.iter().flat_map(|trade| &trade.refunds) {
        if refund.effects != i64::from(refund.state == "success") {
            let (refund_no, times) = (&refund.refund_no, refund.effects);
            found.add(Invariant::ReturnedOnce, format!("money moved {times} times for refund {refund_no}"));
        }
    }
}

/// What was refunded at the gateways is booked here, refund by refund.
pub(super) fn returned_once(history: &History, found: &mut Found) {
    let mut there: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for trade in &history.trades {
        for refund in trade.refunds.iter().filter(|refund| !refund.console) {
            if refund.state == "success" {
                *there.entry((&trade.order_no, &refund.refund_no)).or_default() += refund.amount_fen;
            }
        }
        let sum: i64 = trade.refunds.iter().filter(|refund| refund.state == "success").map(|r| r.amount_fen).sum();
        if sum != trade.refunded_fen {
            found.add(Invariant::ReturnedOnce, format!("the gateway's own total of {} differs", trade.order_no));
        }
    }
    let mut here: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for refund in history.refunds.iter().filter(|refund| refund.succeeded() && !refund.is_outside()) {
        *here.entry((order_no(history, refund), &refund.refund_no)).or_default() += refund.amount_fen;
    }
    found.differences(Invariant::ReturnedOnce, "refunded at the gateways, and here,", &there, &here);
    for refund in &history.refunds {
        let status = match refund.status.as_str() {
            // It has no movement before it is approved.
            "requested" | "declined" => continue,
            "withdrawn" if refund.movement.is_none() => continue,
            "withdrawn" => "failed",
            ended @ ("succeeded" | "failed") => ended,
            _ => "pending",
        };
        let due = format!("{} {} {status}", refund.order_id, refund.amount_fen);
        if refund.movement.as_ref() != Some(&due) {
            let (refund_no, is) = (&refund.refund_no, &refund.movement);
            let what = format!("refunds and their movements differ: {refund_no} with {is:?} and not {due:?}");
            found.add(Invariant::ReturnedOnce, what);
        }
    }
}

/// No payment is refunded, or can still be refunded, beyond its amount.
pub(super) fn within_payment(history: &History, found: &mut Found) {
    for payment in &history.payments {
        let own = history.refunds.iter().filter(|refund| refund.payment_id == payment.id && refund.reserves());
        let fen: i64 = own.map(|refund| refund.amount_fen).sum();
        if fen > payment.amount_fen {
            let (trade_no, paid) = (&payment.trade_no, payment.amount_fen);
            found.add(
                Invariant::WithinPayment,
                format!("{fen} of {paid} fen of trade {trade_no} are returned or reserved"),
            );
        }
    }
    for trade in &history.trades {
        if trade.refunded_fen > trade.amount_fen {
            found.add(Invariant::WithinPayment, format!("more than all of {} went back", trade.order_no));
        }
        if !trade.violations.is_empty() {
            let (order_no, broken) = (&trade.order_no, &trade.violations);
            found.add(Invariant::WithinPayment, format!("limits of a gateway were broken by {order_no}: {broken:?}"));
        }
    }
}

/// Orders have the status that their refunds lead to.
pub(super) fn followed(history: &History, found: &mut Found) {
    for order in history.orders.iter().filter(|order| order.was_paid()) {
        let own = of_own_payment(history, order);
        let returned: i64 = own.iter().filter(|refund| refund.succeeded()).map(|refund| refund.amount_fen).sum();
        let status = match returned {
            _ if own.iter().any(|refund| refund.in_flight()) => "refunding",
            all if all == order.amount_fen => "refunded",
            some if some > 0 => "partially_refunded",
            _ => "paid",
        };
        if (order.status.as_str(), order.refunded_fen) != (status, returned) {
            let Order { order_no, status: is, refunded_fen, .. } = order;
            let what = format!(
                "orders do not stand as their refunds make them: {order_no} is {is} with {refunded_fen} fen returned, and not {status} with {returned}"
            );
            found.add(Invariant::Moves, what);
        }
    }
}

/// Before a gateway knows a refund, the service has recorded that it will send it.
pub(super) fn put_down(history: &History, found: &mut Found) {
    for known in history.trades.iter().flat_map(|trade| &trade.refunds).filter(|known| !known.console) {
        let here = history.refunds.iter().find(|refund| refund.refund_no == known.refund_no);
        if here.is_none_or(|refund| refund.status == "pending" || !refund.sent) {
            let refund_no = &known.refund_no;
            found.add(
                Invariant::Moves,
                format!("the gateway knows refund {refund_no}, which is not recorded as sent here"),
            );
        }
    }
}

/// The events that refunds must cause: one for each final state, and one for each order that was refunded
/// completely, under the id of the refund that completed it. No event reports an outside refund of a late or second
/// payment.
pub(super) fn events_due(history: &History) -> Vec<String> {
    let own: BTreeSet<&str> = history
        .orders
        .iter()
        .filter(|order| order.was_paid())
        .flat_map(|order| of_own_payment(history, order))
        .map(|refund| refund.id.as_str())
        .collect();
    let ended = history.refunds.iter().filter(|refund| !refund.in_flight() && refund.status != "abnormal");
    let ended = ended.filter(|refund| !refund.is_outside() || own.contains(refund.id.as_str()));
    let mut due: Vec<String> = ended
        .map(|refund| match refund.status.as_str() {
            "succeeded" if !own.contains(refund.id.as_str()) => format!("extra_payment.refunded:{}", refund.id),
            "failed" if !own.contains(refund.id.as_str()) => format!("extra_payment.refund_failed:{}", refund.id),
            status => format!("refund.{status}:{}", refund.id),
        })
        .collect();
    due.extend(passed_through(history));
    due.extend(received(history));
    for order in history.orders.iter().filter(|order| order.status == "refunded") {
        let own = of_own_payment(history, order);
        let last = own.iter().filter(|refund| refund.succeeded()).max_by_key(|refund| refund.moved_at);
        due.extend(last.map(|refund| format!("order.refunded:{}", refund.id)));
    }
    due
}

/// The events of states that a refund can leave again: it was requested first, or the gateway could not deliver it, which
/// its case says.
fn passed_through(history: &History) -> Vec<String> {
    let mut due = Vec::new();
    for refund in &history.refunds {
        let has_event =
            |kind: &str| history.events.iter().any(|event| event.event_id == format!("{kind}:{}", refund.id));
        let is_stuck = |case: &Case| case.kind == "refund_abnormal" && case.number == refund.refund_no;
        if refund.status != "requested" && has_event("refund.requested") {
            due.push(format!("refund.requested:{}", refund.id));
        }
        if has_event("refund.abnormal") && (refund.status == "abnormal" || history.cases.iter().any(is_stuck)) {
            due.push(format!("refund.abnormal:{}", refund.id));
        }
    }
    due
}

/// The events of payments that arrived and that their orders were not owed. A payment that a person recorded from a case, or
/// whose money had gone before, has none; an order may have accepted it later.
fn received(history: &History) -> Vec<String> {
    let ids = history.payments.iter().map(|payment| format!("extra_payment.received:{}", payment.id));
    ids.filter(|id| history.events.iter().any(|event| event.event_id == *id)).collect()
}

/// How many times a refund has moved its order: to `refunding` and away from it. A refund that was made outside is
/// booked in one move. One that never began moves nothing.
pub(super) fn moves_of(refund: &Refund) -> i64 {
    match refund.status.as_str() {
        "requested" | "declined" => 0,
        "withdrawn" if refund.movement.is_none() => 0,
        _ if refund.in_flight() || refund.is_outside() => 1,
        _ => 2,
    }
}

/// Finds events of refunds whose data differs from their refund.
pub(super) fn reported_as_is(history: &History, found: &mut Found) {
    for event in &history.events {
        let refund = event.event_id.split_once(':').and_then(|(_, id)| history.refunds.iter().find(|r| r.id == id));
        let Some(refund) = refund else { continue };
        let reported =
            (event.order_id.as_deref(), event.data["refund_no"].as_str(), event.data["refund_amount"].as_str());
        if reported != (Some(&refund.order_id), Some(&refund.refund_no), Some(&yuan(refund.amount_fen))) {
            found.add(Invariant::ReportedOnce, format!("{} states wrong facts about its refund", event.event_id));
        }
        // An event without an origin is ours: all refunds were ours before there was a second origin.
        if event.data["origin"].as_str().unwrap_or("service") != refund.origin {
            found.add(Invariant::ReportedOnce, format!("{} does not say who made the refund", event.event_id));
        }
    }
}

/// The refunds of the order's own payment, not of a late or second one.
pub(super) fn of_own_payment<'a>(history: &'a History, order: &Order) -> Vec<&'a Refund> {
    let is_own =
        |payment: &&Payment| payment.order_id == order.id && Some(&payment.trade_no) == order.trade_no.as_ref();
    let own = history.payments.iter().find(is_own).map(|payment| payment.id.as_str());
    history.refunds.iter().filter(|refund| Some(refund.payment_id.as_str()) == own).collect()
}

fn order_no<'a>(history: &'a History, refund: &Refund) -> &'a str {
    history.orders.iter().find(|order| order.id == refund.order_id).map_or("no order", |order| &order.order_no)
}
