//! Orders for which a person refunds money in the gateway's console.

use super::*;

/// The orders: G costs 400 fen; 150 were refunded in the console, and then the rest by us. H costs 200; 50 were
/// refunded, and that amount is still unknown here. I is closed; its late payment of 90 is held, less 20 that were
/// refunded. J is closed; its payment was refunded before we recorded it. K costs 70; 10 were refunded without any
/// signal from its gateway.
pub(super) fn add_to(history: &mut History) {
    let mut trades = vec![
        trade("alipay", "G", "paid", 400),
        trade("wechat", "H", "paid", 200),
        trade("alipay", "I", "paid", 90),
        trade("wechat", "J", "paid", 60),
        trade("alipay", "K", "paid", 70),
    ];
    for (trade, refunds) in trades.iter_mut().zip([
        vec![console("DESK-G", 150), returned("RG2", 250)],
        vec![console("DESK-H", 50)],
        vec![console("DESK-I", 20)],
        vec![console("DESK-J", 60)],
        vec![ReturnedThere { delivered: false, ..console("DESK-K", 10) }],
    ]) {
        trade.notices.clear();
        trade.refunded_fen = refunds.iter().map(|refund| refund.amount_fen).sum();
        trade.refunds = refunds;
    }
    history.trades.extend(trades);
    history.orders.extend([
        order("G", "refunded", 5, 400, 400),
        order("H", "paid", 2, 200, 0),
        Order { was_closed: true, ..order("I", "closed", 2, 90, 0) },
        Order { was_closed: true, ..order("J", "closed", 2, 60, 0) },
        order("K", "paid", 2, 70, 0),
    ]);
    history.payments.extend([
        payment("G", 400),
        payment("H", 200),
        payment("I", 90),
        payment("J", 60),
        payment("K", 70),
    ]);
    history.refunds.extend([
        outside("G", "1", 150),
        Refund { of_its_user: true, ..refund("G", "2", 250) },
        outside("I", "3", 20),
        outside("J", "4", 60),
    ]);
    let named_data = |no: &str, yuan: &str| json!({ "refund_no": no, "refund_amount": yuan, "origin": "outside" });
    let events = [
        event("order.paid", "G", "G", 2, json!({ "amount": "4.00", "trade_no": "TG" })),
        event("refund.succeeded", "G1", "G", 3, named_data("RG1", "1.50")),
        event("refund.succeeded", "G2", "G", 5, refund_data("RG2", "2.50")),
        event("order.refunded", "G2", "G", 5, refund_data("RG2", "2.50")),
        event("order.paid", "H", "H", 2, json!({ "amount": "2.00", "trade_no": "TH" })),
        event("order.closed", "I", "I", 2, json!({})),
        event("order.closed", "J", "J", 2, json!({})),
        event("order.paid", "K", "K", 2, json!({ "amount": "0.70", "trade_no": "TK" })),
    ];
    events.into_iter().for_each(|event| add(history, event));
    for name in ["G", "H", "I", "J", "K"] {
        history.answers.push(created(name));
        history.named_by_keys.push(name.to_owned());
    }
    history.named_by_keys.push("G2".to_owned());
    history.cases.extend([
        case("unknown_refund", "H", "TH"),
        case("late_payment", "I", "TI"),
        Case { open: false, ..case("refunded_elsewhere", "J", "TJ") },
    ]);
}

fn console(refund_no: &str, amount_fen: i64) -> ReturnedThere {
    ReturnedThere { console: true, delivered: true, ..returned(refund_no, amount_fen) }
}

fn outside(order: &str, nth: &str, amount_fen: i64) -> Refund {
    Refund { origin: "outside".to_owned(), sent: false, of_its_user: false, ..refund(order, nth, amount_fen) }
}

fn of<'a>(history: &'a mut History, id: &str) -> &'a mut Refund {
    history.refunds.iter_mut().find(|refund| refund.id == id).unwrap()
}

fn order_of<'a>(history: &'a mut History, id: &str) -> &'a mut Order {
    history.orders.iter_mut().find(|order| order.id == id).unwrap()
}

fn case_of<'a>(history: &'a mut History, order: &str) -> &'a mut Case {
    history.cases.iter_mut().find(|case| case.order_id.as_deref() == Some(order)).unwrap()
}

fn trade_of<'a>(history: &'a mut History, order_no: &str) -> &'a mut Trade {
    history.trades.iter_mut().find(|trade| trade.order_no == order_no).unwrap()
}

/// Books another refund of this payment.
fn book_again(history: &mut History, id: &str, nth: &str) {
    let twice = of(history, id).clone();
    let order = twice.order_id.clone();
    let (id, refund_no) = (format!("{order}{nth}"), format!("R{order}{nth}"));
    history.refunds.push(Refund { id, refund_no, ..twice });
}

pub(super) const FAULTS: &[Fault] = &[
    (
        "a return in the console is booked with less than went back, and no case tells",
        |h| {
            of(h, "I3").amount_fen = 19;
            of(h, "I3").movement = Some("I 19 succeeded".to_owned());
        },
        &[Invariant::ReturnedOutside],
    ),
    ("a return in the console is booked twice", |h| book_again(h, "I3", "9"), &[Invariant::ReturnedOutside]),
    (
        "a return is booked that never happened",
        |h| trade_of(h, "NI").refunds[0].state = "processing".to_owned(),
        &[Invariant::ReturnedOnce, Invariant::ReturnedOutside],
    ),
    (
        "people have closed the case of a return that is not booked",
        |h| case_of(h, "H").open = false,
        &[Invariant::ReturnedOutside],
    ),
    (
        "a return of which a later notice tells is not booked",
        |h| {
            trade_of(h, "NK").refunds.push(console("DESK-K2", 0));
        },
        &[Invariant::ReturnedOutside],
    ),
    (
        "a payment of which all went back in silence is still delivered for",
        |h| {
            trade_of(h, "NK").refunds[0].amount_fen = 70;
            trade_of(h, "NK").refunded_fen = 70;
        },
        &[Invariant::ReturnedOutside],
    ),
    (
        "a return in the console has no case",
        |h| h.cases.retain(|case| case.number != "TH"),
        &[Invariant::ReturnedOutside],
    ),
    (
        "a return in the console is booked as ours",
        |h| {
            of(h, "I3").origin = "service".to_owned();
        },
        &[Invariant::ReturnedOnce, Invariant::ReturnedOutside, Invariant::ReportedOnce],
    ),
    (
        "a refund of ours is booked as somebody's in the console",
        |h| {
            of(h, "B3").origin = "outside".to_owned();
            retell(h, "extra_payment.refunded:B3", "origin", "outside");
        },
        &[Invariant::ReturnedOnce, Invariant::ReturnedOutside, Invariant::ReportedOnce],
    ),
    (
        "a return in the console is published as ours",
        |h| retell(h, "refund.succeeded:G1", "origin", "service"),
        &[Invariant::ReportedOnce],
    ),
    (
        "a return in the console is not published",
        |h| lose(h, "refund.succeeded:G1"),
        &[Invariant::ReportedOnce, Invariant::Moves],
    ),
    (
        "a return is published for a payment that was not",
        |h| {
            let data = json!({ "refund_no": "RI3", "refund_amount": "0.20", "origin": "outside" });
            add(h, event("refund.succeeded", "I3", "I", 2, data));
        },
        &[Invariant::ReportedOnce],
    ),
    (
        "an order does not follow a return in the console",
        |h| {
            order_of(h, "G").refunded_fen = 250;
            order_of(h, "G").status = "partially_refunded".to_owned();
            lose(h, "order.refunded:G2");
        },
        &[Invariant::Moves],
    ),
    ("a return in the console has moved its order twice", |h| order_of(h, "G").version += 1, &[Invariant::Moves]),
    (
        "money that came and went is delivered for",
        |h| {
            let paid = order("J", "paid", 3, 60, 0);
            *order_of(h, "J") = Order { was_closed: true, ..paid };
            add(h, event("order.paid", "J", "J", 3, json!({ "amount": "0.60", "trade_no": "TJ" })));
        },
        &[Invariant::ReportedOnce, Invariant::Moves],
    ),
    (
        "more goes back in the console than was paid",
        |h| {
            let trade = trade_of(h, "NJ");
            trade.refunds.push(console("DESK-J2", 5));
            trade.refunded_fen += 5;
        },
        &[Invariant::ReturnedOutside, Invariant::WithinPayment],
    ),
];

/// The event is written and delivered with another value.
fn retell(history: &mut History, id: &str, name: &str, value: &str) {
    let event = history.events.iter_mut().find(|event| event.event_id == id).unwrap();
    event.data[name] = value.into();
    history.deliveries = history.events.iter().map(delivered).collect();
}

#[test]
fn money_in_less_money_returned_is_fulfilled_or_held() {
    let (total, wrong) = balance(&sound());
    assert_eq!(wrong, <[String; 0]>::default());
    assert!(total.holds(), "{total:?}");
    // Paid: A to F, the other payments of B and E, and G to K. Refunded: A completely, the other payment of B, G,
    // 50, 20, J completely and 10.
    let paid = 100 + 250 + 250 + 50 + 80 + 400 + 200 + 90 + 60 + 70;
    let returned = 100 + 250 + 400 + 50 + 20 + 60 + 10;
    let (held, unseen) = (50 + 70 - 50, 10);
    assert_eq!(total, Balance { paid, returned, fulfilled: paid - returned - held + unseen, held, unseen });
}

/// Changes that break books which agree.
type Plant = fn(&mut History);

#[test]
fn money_that_is_lost_or_made_up_unbalances_its_order() {
    let faults: [(&str, Plant); 7] = [
        ("NB", |h| h.refunds.retain(|refund| refund.id != "B3")),
        ("NE", |h| h.payments.retain(|payment| payment.order_id != "E")),
        ("NG", |h| order_of(h, "G").refunded_fen = 250),
        ("NH", |h| case_of(h, "H").open = false),
        ("NI", |h| h.refunds.retain(|refund| refund.id != "I3")),
        ("NJ", |h| order_of(h, "J").status = "paid".to_owned()),
        ("NX", |h| h.trades.push(trade("wechat", "X", "paid", 5))),
    ];
    for (order_no, plant) in faults {
        let mut history = sound();
        plant(&mut history);
        let (_, wrong) = balance(&history);
        assert_eq!(wrong.len(), 1, "{order_no}: {wrong:?}");
        assert!(wrong[0].contains(order_no), "{order_no}: {wrong:?}");
    }
}
