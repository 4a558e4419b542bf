//! The control: a sound history is found sound, and each planted fault is found, and nothing else.

mod outside;

use serde_json::{Value, json};

use super::*;

/// The orders: A is paid and refunded in two parts. B is paid twice, and the second payment was refunded. C is
/// closed. D waits for its buyer. E is closed and paid too late, and that money is held. F is closed, and its late
/// payment was honoured.
fn sound() -> History {
    let mut history = History {
        trades: vec![
            trade("alipay", "A", "paid", 100),
            trade("wechat", "B", "paid", 250),
            trade("wechat", "C", "closed", 70),
            trade("alipay", "D", "offered", 30),
            trade("alipay", "E", "paid", 50),
            trade("wechat", "F", "paid", 80),
            Trade { order_no: "NB".to_owned(), refunded_fen: 250, ..trade("wechat", "B-again", "paid", 250) },
        ],
        orders: vec![
            order("A", "refunded", 6, 100, 100),
            order("B", "paid", 2, 250, 0),
            Order { was_closed: true, ..order("C", "closed", 2, 70, 0) },
            order("D", "pending", 1, 30, 0),
            Order { was_closed: true, ..order("E", "closed", 2, 50, 0) },
            Order { was_closed: true, ..order("F", "paid", 3, 80, 0) },
        ],
        payments: vec![
            payment("A", 100),
            payment("B", 250),
            payment("E", 50),
            payment("F", 80),
            Payment { order_id: "B".to_owned(), ..payment("B-again", 250) },
        ],
        refunds: vec![
            refund("A", "1", 40),
            refund("A", "2", 60),
            Refund { payment_id: "PB-again".to_owned(), of_its_user: false, ..refund("B", "3", 250) },
        ],
        callbacks: vec![callback("alipay", "notice-A"), callback("wechat", "notice-B")],
        events: vec![
            event("order.paid", "A", "A", 2, json!({ "amount": "1.00", "trade_no": "TA" })),
            event("order.paid", "B", "B", 2, json!({ "amount": "2.50", "trade_no": "TB" })),
            event("order.closed", "C", "C", 2, json!({})),
            event("refund.succeeded", "A1", "A", 4, refund_data("RA1", "0.40")),
            event("refund.succeeded", "A2", "A", 6, refund_data("RA2", "0.60")),
            event("order.refunded", "A2", "A", 6, refund_data("RA2", "0.60")),
            event("extra_payment.refunded", "B3", "B", 2, refund_data("RB3", "2.50")),
            event("order.closed", "E", "E", 2, json!({})),
            event("order.closed", "F", "F", 2, json!({})),
            event("order.paid", "F", "F", 3, json!({ "amount": "0.80", "trade_no": "TF" })),
        ],
        answers: ["A", "B", "C", "D", "E", "F"].map(created).into(),
        named_by_keys: ["A", "B", "C", "D", "E", "F", "A1", "A2"].map(str::to_owned).into(),
        cases: vec![
            case("double_payment", "B", "TB-again"),
            case("late_payment", "E", "TE"),
            case("late_payment", "F", "TF"),
        ],
        ..History::default()
    };
    history.trades[0].refunded_fen = 100;
    history.trades[0].refunds = vec![returned("RA1", 40), returned("RA2", 60)];
    history.trades[6].refunds = vec![returned("RB3", 250)];
    history.trades[2..].iter_mut().for_each(|trade| trade.notices.clear());
    // B's callback also exists as a job, as after a broker confirmation that came too late.
    history.waiting = vec![r#"{"id":"notice-B","event_type":"TRANSACTION.SUCCESS"}"#.to_owned()];
    history.deliveries = history.events.iter().map(delivered).collect();
    // Repeats are allowed everywhere.
    history.deliveries.push(history.deliveries[0].clone());
    history.answers.push(history.answers[0].clone());
    for (key, status) in [("key-Y", 503), ("key-A", 409)] {
        history.answers.push(Answered { key: key.to_owned(), status, text: String::new(), come_again: true });
    }
    history.answers.push(refused("key-Z"));
    let reused = r#"{"code":"idempotency_key_reused"}"#.to_owned();
    history.answers.push(Answered { status: 422, text: reused, ..refused("key-B") });
    outside::add_to(&mut history);
    history
}

fn trade(gateway: &str, name: &str, state: &str, fen: i64) -> Trade {
    Trade {
        gateway: gateway.to_owned(),
        order_no: format!("N{name}"),
        trade_no: Some(format!("T{name}")),
        state: state.to_owned(),
        amount_fen: fen,
        refunded_fen: 0,
        wrong_accepted: 0,
        notices: vec![Notice { id: format!("notice-{name}"), accepted: 2 }],
        refunds: Vec::new(),
        violations: BTreeMap::new(),
    }
}

fn order(name: &str, status: &str, version: i64, amount_fen: i64, refunded_fen: i64) -> Order {
    let paid = !matches!(status, "pending" | "closed");
    Order {
        id: name.to_owned(),
        order_no: format!("N{name}"),
        status: status.to_owned(),
        version,
        amount_fen,
        refunded_fen,
        trade_no: paid.then(|| format!("T{name}")),
        was_closed: false,
        close_requested: false,
    }
}

fn payment(name: &str, amount_fen: i64) -> Payment {
    Payment { id: format!("P{name}"), order_id: name.to_owned(), trade_no: format!("T{name}"), amount_fen }
}

fn refund(order: &str, nth: &str, amount_fen: i64) -> Refund {
    Refund {
        id: format!("{order}{nth}"),
        order_id: order.to_owned(),
        payment_id: format!("P{order}"),
        refund_no: format!("R{order}{nth}"),
        amount_fen,
        status: "succeeded".to_owned(),
        origin: "service".to_owned(),
        sent: true,
        of_its_user: true,
        moved_at: nth.parse().unwrap(),
        movement: Some(format!("{order} {amount_fen} succeeded")),
    }
}

fn returned(refund_no: &str, amount_fen: i64) -> ReturnedThere {
    ReturnedThere {
        refund_no: refund_no.to_owned(),
        amount_fen,
        state: "success".to_owned(),
        effects: 1,
        console: false,
        delivered: false,
    }
}

fn callback(gateway: &str, notice_id: &str) -> Callback {
    Callback { gateway: gateway.to_owned(), notice_id: notice_id.to_owned() }
}

fn event(kind: &str, of: &str, order: &str, version: i64, mut data: Value) -> Event {
    data["order_no"] = format!("N{order}").into();
    data["order_version"] = version.into();
    Event { event_id: format!("{kind}:{of}"), kind: kind.to_owned(), order_id: Some(order.to_owned()), data }
}

fn refund_data(refund_no: &str, yuan: &str) -> Value {
    json!({ "refund_no": refund_no, "refund_amount": yuan, "origin": "service" })
}

fn delivered(event: &Event) -> Delivered {
    Delivered { id: event.event_id.clone(), kind: event.kind.clone(), data: event.data.clone() }
}

fn created(name: &str) -> Answered {
    let text = json!({ "order": { "id": name, "order_no": format!("N{name}") } }).to_string();
    Answered { key: format!("key-{name}"), status: 201, text, come_again: false }
}

fn refused(key: &str) -> Answered {
    Answered { key: key.to_owned(), status: 409, text: String::new(), come_again: false }
}

fn case(kind: &str, order: &str, number: &str) -> Case {
    Case { kind: kind.to_owned(), order_id: Some(order.to_owned()), number: number.to_owned(), open: true }
}

/// The name of a fault, how it is planted, and the invariants it breaks: these, and no others.
type Fault = (&'static str, fn(&mut History), &'static [Invariant]);

const FAULTS: &[Fault] = &[
    ("an acknowledged callback is lost", |h| drop(h.callbacks.remove(0)), &[Invariant::Acknowledged]),
    (
        "another gateway's callback has its id",
        |h| h.callbacks[0].gateway = "wechat".to_owned(),
        &[Invariant::Acknowledged],
    ),
    ("a forged callback is accepted", |h| h.trades[1].wrong_accepted = 1, &[Invariant::NothingWrongAccepted]),
    ("a payment is booked with another amount", |h| h.payments[1].amount_fen += 1, &[Invariant::PaidOnce]),
    (
        "a payment is booked under another trade",
        |h| h.trades[1].trade_no = Some("TX".to_owned()),
        &[Invariant::PaidOnce],
    ),
    (
        "a payment is booked twice",
        |h| h.payments.push(Payment { id: "PX".to_owned(), ..h.payments[1].clone() }),
        &[Invariant::PaidOnce],
    ),
    ("a payment that came is not booked", |h| drop(h.payments.remove(1)), &[Invariant::PaidOnce]),
    ("a second payment that came is not booked", |h| drop(h.payments.pop()), &[Invariant::PaidOnce]),
    ("a second payment has no case", |h| drop(h.cases.remove(0)), &[Invariant::PaidOnce]),
    ("a late payment has no case", |h| drop(h.cases.remove(1)), &[Invariant::PaidOnce]),
    ("a late payment's case is of another trade", |h| h.cases[1].number = "TX".to_owned(), &[Invariant::PaidOnce]),
    ("a late payment is honoured and no case says so", |h| drop(h.cases.remove(2)), &[Invariant::Moves]),
    ("an order is given away", |h| h.trades[1].state = "waiting".to_owned(), &[Invariant::PaidOnce]),
    ("a payment of an unpaid order is booked", |h| h.payments.push(payment("D", 30)), &[Invariant::PaidOnce]),
    ("a fulfilment is not told of", |h| lose(h, "order.paid:B"), &[Invariant::ReportedOnce]),
    ("an end is not told of", |h| lose(h, "order.closed:C"), &[Invariant::ReportedOnce]),
    ("a refund is not told of", |h| lose(h, "refund.succeeded:A1"), &[Invariant::ReportedOnce, Invariant::Moves]),
    ("that all was returned is not told of", |h| lose(h, "order.refunded:A2"), &[Invariant::ReportedOnce]),
    (
        "that all was returned is told by the first refund",
        |h| rename(h, "order.refunded:A2", "order.refunded:A1"),
        &[Invariant::ReportedOnce],
    ),
    (
        "a fulfilment has a second id",
        |h| add(h, event("order.paid", "B-again", "B", 2, json!({}))),
        &[Invariant::ReportedOnce, Invariant::Moves],
    ),
    (
        "an event id is there twice",
        |h| h.events.push(h.events[2].clone()),
        &[Invariant::ReportedOnce, Invariant::Moves],
    ),
    (
        "a fulfilment of an unpaid order is told",
        |h| add(h, event("order.paid", "D", "D", 2, json!({}))),
        &[Invariant::ReportedOnce],
    ),
    ("a fulfilment tells of another amount", |h| tell(h, 1, "amount", json!("9.99")), &[Invariant::ReportedOnce]),
    ("a fulfilment tells of another trade", |h| tell(h, 1, "trade_no", json!("TX")), &[Invariant::ReportedOnce]),
    (
        "an order has another amount than its payment",
        |h| h.orders[1].amount_fen = 1,
        &[Invariant::PaidOnce, Invariant::ReportedOnce],
    ),
    (
        "an order names another trade than its payment",
        |h| h.orders[1].trade_no = Some("TX".to_owned()),
        &[Invariant::PaidOnce, Invariant::ReportedOnce],
    ),
    ("an event names another order", |h| tell(h, 1, "order_no", json!("NA")), &[Invariant::ReportedOnce]),
    (
        "an event of a refund tells another amount",
        |h| tell(h, 3, "refund_amount", json!("0.60")),
        &[Invariant::ReportedOnce],
    ),
    (
        "a fulfilment is never delivered",
        |h| h.deliveries.retain(|delivery| delivery.id != "order.paid:B"),
        &[Invariant::Delivered],
    ),
    (
        "something is delivered that nobody wrote",
        |h| h.deliveries[1].id = "order.paid:D".to_owned(),
        &[Invariant::Delivered],
    ),
    (
        "something else is delivered than was written",
        |h| h.deliveries[1].data["amount"] = json!("9.99"),
        &[Invariant::Delivered],
    ),
    ("a refund is delivered before its payment", |h| h.deliveries.rotate_left(1), &[Invariant::Delivered]),
    ("money moves twice for one refund", |h| h.trades[0].refunds[0].effects = 2, &[Invariant::ReturnedOnce]),
    (
        "money moves for a refund that failed",
        |h| h.trades[0].refunds[0].state = "closed".to_owned(),
        &[Invariant::ReturnedOnce],
    ),
    ("a refund went back that is not here", forget_refund, &[Invariant::ReturnedOnce, Invariant::Moves]),
    ("a refund is booked with another amount", |h| h.trades[0].refunds[1].amount_fen -= 1, &[Invariant::ReturnedOnce]),
    ("a refund has no movement", |h| h.refunds[0].movement = None, &[Invariant::ReturnedOnce]),
    (
        "a movement says otherwise than its refund",
        |h| h.refunds[0].movement = Some("A 40 pending".to_owned()),
        &[Invariant::ReturnedOnce],
    ),
    ("the gateway's total differs", |h| h.trades[0].refunded_fen -= 1, &[Invariant::ReturnedOnce]),
    (
        "a limit of a gateway is run into",
        |h| h.trades[0].violations = BTreeMap::from([("too_soon".to_owned(), 1)]),
        &[Invariant::WithinPayment],
    ),
    ("more is reserved than was paid", reserve_more, &[Invariant::WithinPayment, Invariant::Moves]),
    ("an order has moved once too often", |h| h.orders[0].version += 1, &[Invariant::Moves]),
    ("a closed order has not moved", |h| h.orders[2].version -= 1, &[Invariant::Moves]),
    ("a request to close has raised no version", |h| h.orders[2].close_requested = true, &[Invariant::Moves]),
    ("a closed order waits again", |h| h.orders[2].status = "pending".to_owned(), &[Invariant::Moves]),
    (
        "an order that a person looks at has moved by itself",
        |h| {
            h.cases.push(case("gateway_protocol", "D", "TX"));
            h.orders[3].version += 1;
        },
        &[Invariant::Moves],
    ),
    ("a closed order can be paid at its gateway", |h| h.trades[2].state = "waiting".to_owned(), &[Invariant::Moves]),
    (
        "an order was closed on its way to paid",
        |h| {
            h.orders[1].was_closed = true;
            add(h, event("order.closed", "B", "B", 4, json!({})));
        },
        &[Invariant::Moves],
    ),
    (
        "an order does not follow its refunds",
        |h| {
            h.orders[0].refunded_fen = 60;
        },
        &[Invariant::Moves],
    ),
    ("an event is of a version that was skipped", |h| tell(h, 0, "order_version", json!(3)), &[Invariant::Moves]),
    ("a refund was sent without being put down", |h| h.refunds[0].sent = false, &[Invariant::Moves]),
    ("a created order does not exist", |h| h.answers.push(created("X")), &[Invariant::Created]),
    (
        "a refund that was taken on does not exist",
        |h| {
            h.answers.push(Answered {
                key: "k".to_owned(),
                status: 202,
                text: r#"{"id":"A3","refund_no":"RA3"}"#.to_owned(),
                come_again: false,
            })
        },
        &[Invariant::Created],
    ),
    ("a key that made an order is refused", |h| h.answers.push(refused("key-B")), &[Invariant::Created]),
    ("an order was made for no key", |h| drop(h.named_by_keys.remove(1)), &[Invariant::Created]),
    ("one key has made two refunds", |h| h.named_by_keys.retain(|named| named != "A2"), &[Invariant::Created]),
    (
        "one key has made two orders",
        |h| h.answers.push(Answered { key: "key-A".to_owned(), ..created("B") }),
        &[Invariant::Created],
    ),
];

#[test]
fn a_sound_history_is_found_sound() {
    assert_eq!(judge(&sound()), []);
    assert_eq!(judge(&History::default()), []);
}

#[test]
fn each_planted_fault_is_found_and_named() {
    for (name, plant, broken) in FAULTS.iter().chain(outside::FAULTS) {
        let mut history = sound();
        plant(&mut history);
        let violations = judge(&history);
        let mut found: Vec<Invariant> = violations.iter().map(|violation| violation.invariant).collect();
        found.sort_unstable();
        found.dedup();
        let mut broken = broken.to_vec();
        broken.sort_unstable();
        assert_eq!(found, broken, "{name}: {violations:?}");
    }
}

#[test]
fn what_is_never_true_is_found_at_any_moment() {
    let early = [
        "money moves twice for one refund",
        "more is reserved than was paid",
        "a refund was sent without being put down",
        "a created order does not exist",
        "a forged callback is accepted",
    ];
    for (name, plant, _) in FAULTS.iter().filter(|(name, _, _)| early.contains(name)) {
        let mut history = sound();
        // Many things are still in flight.
        history.callbacks.clear();
        history.events.clear();
        history.deliveries.clear();
        assert_eq!(judge_at_any_moment(&history), []);
        plant(&mut history);
        assert_eq!(judge_at_any_moment(&history).len(), 1, "{name}");
    }
    assert!(early.iter().all(|early| FAULTS.iter().any(|(name, _, _)| name == early)));
}

#[test]
fn every_invariant_has_a_fault_that_breaks_it_alone() {
    for invariant in Invariant::ALL {
        assert!(FAULTS.iter().chain(outside::FAULTS).any(|(_, _, broken)| *broken == [invariant]), "{invariant:?}");
    }
}

#[test]
fn a_wiped_broker_excuses_lost_callbacks_and_the_order_of_events_and_no_money() {
    let mut history = sound();
    history.messages_lost = true;
    history.callbacks.clear();
    history.deliveries.rotate_left(1);
    assert_eq!(judge(&history), []);
    history.payments.pop();
    assert_ne!(judge(&history), []);
}

#[test]
fn what_became_of_a_second_payment_raises_the_version_as_often_as_it_changes() {
    let mut history = sound();
    history.orders[1].version += 2;
    assert_eq!(judge(&history), []);
    history.orders[1].version = 1;
    assert_ne!(judge(&history), []);
}

#[test]
fn a_refund_that_ended_after_its_end_may_have_moved_its_order_once_more() {
    let mut history = sound();
    history.orders[0].version += 1;
    history.cases.push(case("refund_abnormal", "A", "RA2"));
    assert_eq!(judge(&history), []);
}

/// Removes the event: it is neither written nor delivered.
fn lose(history: &mut History, id: &str) {
    history.events.retain(|event| event.event_id != id);
    history.deliveries.retain(|delivery| delivery.id != id);
}

/// Adds the event: it is written and delivered.
fn add(history: &mut History, event: Event) {
    history.deliveries.push(delivered(&event));
    history.events.push(event);
}

fn rename(history: &mut History, from: &str, to: &str) {
    let mut event = history.events.iter().find(|event| event.event_id == from).unwrap().clone();
    lose(history, from);
    // Its data is also that of the other refund.
    event.event_id = to.to_owned();
    event.data["refund_no"] = json!("RA1");
    event.data["refund_amount"] = json!("0.40");
    add(history, event);
}

/// The event is written and delivered with another value.
fn tell(history: &mut History, nth: usize, name: &str, value: Value) {
    history.events[nth].data[name] = value;
    history.deliveries = history.events.iter().map(delivered).collect();
}

fn forget_refund(history: &mut History) {
    history.refunds.remove(0);
    lose(history, "refund.succeeded:A1");
}

fn reserve_more(history: &mut History) {
    let stuck =
        Refund { status: "abnormal".to_owned(), movement: Some("A 1 pending".to_owned()), ..refund("A", "3", 1) };
    history.refunds.push(stuck);
    history.named_by_keys.push("A3".to_owned());
}
