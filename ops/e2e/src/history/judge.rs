//! What must be true of every history once nothing is in flight.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::violation::{Found, Invariant, Violation};
use super::{Case, Event, History, Order, outside, refunds};
use crate::shop::yuan;

/// Everything that is wrong with a history in which nothing is in flight.
#[must_use]
pub fn judge(history: &History) -> Vec<Violation> {
    let mut found = Found(judge_at_any_moment(history));
    acknowledged(history, &mut found);
    paid_once(history, &mut found);
    reported_once(history, &mut found);
    delivered(history, &mut found);
    refunds::returned_once(history, &mut found);
    outside::booked(history, &mut found);
    moves(history, &mut found);
    refunds::followed(history, &mut found);
    refunds::reported_as_is(history, &mut found);
    found.0
}

/// What is wrong with a history even while things are in flight: in the middle of a run, and right after a crash.
#[must_use]
pub fn judge_at_any_moment(history: &History) -> Vec<Violation> {
    let mut found = Found::default();
    wrong_accepted(history, &mut found);
    refunds::moved_once(history, &mut found);
    refunds::within_payment(history, &mut found);
    refunds::put_down(history, &mut found);
    created(history, &mut found);
    found.0
}

fn acknowledged(history: &History, found: &mut Found) {
    if history.messages_lost {
        return;
    }
    let known: BTreeSet<(&str, &str)> =
        history.callbacks.iter().map(|callback| (callback.gateway.as_str(), callback.notice_id.as_str())).collect();
    for trade in &history.trades {
        for notice in trade.notices.iter().filter(|notice| notice.accepted > 0) {
            let waits = || history.waiting.iter().any(|body| body.contains(&notice.id));
            if !known.contains(&(trade.gateway.as_str(), notice.id.as_str())) && !waits() {
                let (notice, order_no) = (&notice.id, &trade.order_no);
                found.add(Invariant::Acknowledged, format!("callback {notice} about {order_no} is nowhere"));
            }
        }
    }
}

fn wrong_accepted(history: &History, found: &mut Found) {
    for trade in history.trades.iter().filter(|trade| trade.wrong_accepted != 0) {
        found.add(Invariant::NothingWrongAccepted, format!("a wrong callback about {}", trade.order_no));
    }
}

fn paid_once(history: &History, found: &mut Found) {
    // By trade: the number of payments, and their sum.
    let mut there: BTreeMap<(&str, &str), (usize, i64)> = BTreeMap::new();
    for trade in history.trades.iter().filter(|trade| trade.state == "paid") {
        let (times, fen) = there.entry((&trade.order_no, trade.trade_no.as_deref().unwrap_or(""))).or_default();
        (*times, *fen) = (*times + 1, *fen + trade.amount_fen);
    }
    let orders: BTreeMap<&str, &Order> = history.orders.iter().map(|order| (order.id.as_str(), order)).collect();
    let mut here: BTreeMap<(&str, &str), (usize, i64)> = BTreeMap::new();
    for payment in &history.payments {
        let order_no = orders.get(payment.order_id.as_str()).map_or("no order", |order| &order.order_no);
        let (times, fen) = here.entry((order_no, &payment.trade_no)).or_default();
        (*times, *fen) = (*times + 1, *fen + payment.amount_fen);
    }
    found.differences(Invariant::PaidOnce, "paid at the gateway, and here,", &there, &here);
    let mut by_order: BTreeMap<&str, Vec<(&str, i64)>> = BTreeMap::new();
    for payment in &history.payments {
        by_order.entry(&payment.order_id).or_default().push((&payment.trade_no, payment.amount_fen));
    }
    for order in &history.orders {
        let booked = by_order.remove(order.id.as_str()).unwrap_or_default();
        let own = order.trade_no.as_deref().filter(|_| order.was_paid()).map(|trade_no| (trade_no, order.amount_fen));
        let Order { order_no, status, .. } = order;
        if own.map_or(order.was_paid(), |own| !booked.contains(&own)) {
            found.add(Invariant::PaidOnce, format!("order {order_no} is {status}, and its payments say otherwise"));
        }
        for (trade_no, _) in booked.iter().filter(|payment| Some(**payment) != own) {
            let kinds = ["late_payment", "double_payment", "refunded_elsewhere"];
            let tells = |case: &Case| kinds.contains(&&*case.kind) && case.number == *trade_no;
            if !history.cases_of(order).any(tells) {
                let what = format!("order {order_no} is {status}, and no case reports its other trade {trade_no}");
                found.add(Invariant::PaidOnce, what);
            }
        }
    }
}

/// Compares the events that must exist, by id, with those that do exist.
fn reported_once(history: &History, found: &mut Found) {
    let mut due: BTreeMap<String, usize> = BTreeMap::new();
    for order in &history.orders {
        let facts = [("order.paid", order.was_paid()), ("order.closed", order.was_closed)];
        due.extend(facts.iter().filter(|(_, so)| *so).map(|(kind, _)| (format!("{kind}:{}", order.id), 1)));
    }
    due.extend(refunds::events_due(history).into_iter().map(|id| (id, 1)));
    let mut reported: BTreeMap<String, usize> = BTreeMap::new();
    for event in history.events.iter().filter(|event| !event.kind.starts_with("case.")) {
        *reported.entry(event.event_id.clone()).or_default() += 1;
    }
    found.differences(Invariant::ReportedOnce, "what has happened, and the events that report it,", &due, &reported);

    // Whatever the ids are: an order has at most one fulfilment event.
    let mut paid: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for event in history.events.iter().filter(|event| event.kind == "order.paid") {
        paid.entry(event.order_id.as_deref().unwrap_or("no order")).or_default().insert(&event.event_id);
    }
    for (order, ids) in paid.iter().filter(|(_, ids)| ids.len() > 1) {
        found.add(Invariant::ReportedOnce, format!("order {order} is fulfilled under several ids: {ids:?}"));
    }
    let orders: BTreeMap<&str, &Order> = history.orders.iter().map(|order| (order.id.as_str(), order)).collect();
    for event in history.events.iter().filter(|event| event.kind.starts_with("order.")) {
        let order = event.order_id.as_deref().and_then(|id| orders.get(id));
        let tells = |name: &str| event.data[name].as_str();
        if tells("order_no") != order.map(|order| order.order_no.as_str()) {
            found.add(Invariant::ReportedOnce, format!("{} names another order", event.event_id));
        }
        let tells_its_payment = |order: &&Order| {
            tells("amount") == Some(yuan(order.amount_fen).as_str()) && tells("trade_no") == order.trade_no.as_deref()
        };
        if event.kind == "order.paid" && !order.is_some_and(tells_its_payment) {
            found.add(Invariant::ReportedOnce, format!("{} reports another payment than its order's", event.event_id));
        }
    }
}

fn delivered(history: &History, found: &mut Found) {
    let written: BTreeMap<&str, &Event> = history.events.iter().map(|event| (event.event_id.as_str(), event)).collect();
    let mut received: Vec<&str> = Vec::new();
    for delivery in &history.deliveries {
        match written.get(delivery.id.as_str()) {
            Some(event) if event.kind == delivery.kind && event.data == delivery.data => received.push(&delivery.id),
            Some(_) => found.add(Invariant::Delivered, format!("{} arrived with other contents", delivery.id)),
            None => found.add(Invariant::Delivered, format!("{} arrived and was never written", delivery.id)),
        }
    }
    let known: BTreeSet<&str> = received.iter().copied().collect();
    for event in history.events.iter().filter(|event| !known.contains(event.event_id.as_str())) {
        found.add(Invariant::Delivered, format!("{} was never delivered", event.event_id));
    }
    if !history.messages_lost {
        in_order(history, &received, found);
    }
}

/// When a consumer first receives an event, it has already received all earlier events of the same order.
fn in_order(history: &History, received: &[&str], found: &mut Found) {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, id) in received.iter().enumerate() {
        first.entry(id).or_insert(place);
    }
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &history.events {
        let (Some(order), Some(place)) = (event.order_id.as_deref(), first.get(event.event_id.as_str())) else {
            continue;
        };
        if last.insert(order, *place).is_some_and(|before| before > *place) {
            found.add(Invariant::Delivered, format!("{} overtook an earlier event of its order", event.event_id));
        }
    }
}

/// Checks each order's version against the moves of the state table.
fn moves(history: &History, found: &mut Found) {
    let can_be_paid: BTreeSet<&str> =
        history.trades.iter().filter(|trade| trade.state == "waiting").map(|trade| trade.order_no.as_str()).collect();
    for order in &history.orders {
        let Order { order_no, status, version: is, .. } = order;
        let became = |kinds: &[&str]| history.cases_of(order).any(|case| kinds.contains(&case.kind.as_str()));
        if status == "closed" && can_be_paid.contains(order_no.as_str()) {
            found.add(Invariant::Moves, format!("order {order_no} is closed here and can be paid at the gateway"));
        }
        if order.was_paid() && order.was_closed && !became(&["late_payment", "refunded_elsewhere"]) {
            found.add(Invariant::Moves, format!("order {order_no} was closed and is paid, and no case explains it"));
        }
        // In these cases the refund's final result came after the service had already recorded an end, so the order
        // moved once more.
        if became(&["refund_abnormal", "refund_after_failure"]) {
            continue;
        }
        // A refund moves its order to `refunding`, and away from it at the end.
        let own = refunds::of_own_payment(history, order);
        let by_refunds: i64 = own.iter().map(|refund| refunds::moves_of(refund)).sum();
        let moves = match status.as_str() {
            "pending" => 0,
            "closed" => 1,
            _ => 1 + i64::from(order.was_closed) + by_refunds,
        };
        let version = order.first_version() + moves;
        // The `version` also rises each time that money beside the order's own payment changes, because the buyer
        // sees that money.
        let beside = history.has_money_beside(order);
        if *is < version || (*is > version && !beside) {
            found.add(Invariant::Moves, format!("order {order_no}, {status}, has version {is} and not {version}: moved more often, or less, than there was reason to"));
        }
        versions_reported(history, order, found);
    }
}

/// Each event of an order contains the version that its move led to.
fn versions_reported(history: &History, order: &Order, found: &mut Found) {
    let own = refunds::of_own_payment(history, order);
    let mut before = order.first_version();
    for event in history.events.iter().filter(|event| event.order_id.as_ref() == Some(&order.id)) {
        let Some(at) = event.data["order_version"].as_i64() else { continue };
        if ["refund.requested", "refund.declined"].contains(&&*event.kind) {
            continue; // They leave the order as it is.
        }
        let of_order = ["order.paid", "order.closed"].contains(&event.kind.as_str());
        let refund = event.event_id.split_once(':').map(|(_, id)| id);
        let of_refund = own.iter().find(|own| Some(own.id.as_str()) == refund);
        if !of_order && of_refund.is_none() {
            continue; // A refund of a late or second payment moves no order.
        }
        // Two events report an order that was refunded completely: the refund's event and the order's own.
        let same = event.kind == "order.refunded" && at == before;
        let later = at > before && history.has_money_beside(order);
        let due = before + of_refund.map_or(1, |refund| refunds::moves_of(refund));
        if !same && at != due && !(later && at > due) {
            found.add(Invariant::Moves, format!("{} is of version {at} and not {due}", event.event_id));
        }
        before = at;
    }
}

fn created(history: &History, found: &mut Found) {
    let orders: BTreeMap<&str, &Order> = history.orders.iter().map(|order| (order.id.as_str(), order)).collect();
    let users_own = history.refunds.iter().filter(|refund| refund.of_its_user).map(|refund| &refund.id);
    let mut keys_of: BTreeMap<&str, usize> = BTreeMap::new();
    for named in &history.named_by_keys {
        *keys_of.entry(named).or_default() += 1;
    }
    for id in history.orders.iter().map(|order| &order.id).chain(users_own) {
        let keys = keys_of.get(id.as_str()).copied().unwrap_or_default();
        if keys != 1 {
            found.add(Invariant::Created, format!("{id} was created by {keys} keys"));
        }
    }
    let refused: BTreeSet<&str> =
        history.answers.iter().filter(|answer| answer.refused()).map(|answer| answer.key.as_str()).collect();
    let mut by_key: BTreeMap<&str, &str> = BTreeMap::new();
    for answer in history.answers.iter().filter(|answer| answer.created()) {
        if refused.contains(answer.key.as_str()) {
            found.add(Invariant::Created, format!("key {} created something and was refused permanently", answer.key));
        }
        if *by_key.entry(&answer.key).or_insert(&answer.text) != answer.text {
            found.add(Invariant::Created, format!("key {} was answered in two ways", answer.key));
        }
        let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let there = match body["order"]["id"].as_str() {
            Some(id) => orders.get(id).is_some_and(|order| order.order_no == text(&body["order"]["order_no"])),
            None => history
                .refunds
                .iter()
                .any(|refund| refund.id == text(&body["id"]) && refund.refund_no == text(&body["refund_no"])),
        };
        if !there {
            found.add(Invariant::Created, format!("key {} was answered with what does not exist", answer.key));
        }
    }
}
