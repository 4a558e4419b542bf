//! Every fact that a gateway can state about an order, in each state of the order.

use domain::PaymentMethod::{self, Alipay, Wechat};
use domain::{LatePaymentPolicy, Money, OrderStatus, RefundReport, Verdict};
use gateway_sim::ledger::{Event, RefundState, Trade};
use gateway_sim::notify::Overrides;
use runtime::clock::Clock;
use serde_json::{Value, json};
use store::settle;
use store::tables::orders::Order;

use super::books::{Books, Cell};
use super::desk::{Desk, Word};
use super::table::{self, Field, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Paid,
    PaidByAnotherTrade,
    AnotherAmount,
    AnotherMerchant,
    OtherGateway,
    ClosedUnpaid,
    PaidAndReturned,
    ForeignRefund,
    Waiting,
    UnknownState,
}

const COLUMNS: [(Told, &str); 10] = [
    (Told::Paid, "paid,\nits own trade"),
    (Told::PaidByAnotherTrade, "paid,\nanother trade"),
    (Told::AnotherAmount, "paid,\nanother amount"),
    (Told::AnotherMerchant, "paid to\nanother merchant"),
    (Told::OtherGateway, "paid at the\nother gateway"),
    (Told::ClosedUnpaid, "closed\nunpaid"),
    (Told::PaidAndReturned, "paid and\nreturned"),
    (Told::ForeignRefund, "a refund\nthat is not ours"),
    (Told::Waiting, "waits for\nthe buyer"),
    (Told::UnknownState, "a state that\nis unknown"),
];
/// How many of the columns report a payment.
const PAYMENTS: usize = 5;

/// Executes every cell of one gateway and draws them.
pub async fn grid(desk: &Desk, method: PaymentMethod) -> String {
    let mut states = Vec::new();
    for status in OrderStatus::ALL {
        let mut under = Vec::new();
        for policy in LatePaymentPolicy::ALL {
            let mut fields = Vec::new();
            for (told, _) in COLUMNS {
                fields.push(field(desk, method, *policy, (*status, told)).await);
            }
            under.push((policy.as_str(), fields));
        }
        states.push(State { name: status.as_str(), under });
    }
    let headings = COLUMNS.map(|(_, heading)| heading);
    let draw = |part| table::draw(&headings, &states, part);
    format!("{}\n{}", draw((0, PAYMENTS)), draw((PAYMENTS, COLUMNS.len())))
}

async fn field(
    desk: &Desk,
    method: PaymentMethod,
    policy: LatePaymentPolicy,
    (own, told): (OrderStatus, Told),
) -> Field {
    let place = format!("{method}, {policy}, {own}, {told:?}");
    let order = desk.world.pending_order(method, "10").await;
    let (trade, word) = words(desk, &order, told).await;
    reach(desk, &order, &trade, own).await;
    let db = &desk.world.db;
    let ids = [1, 2].map(|n| format!("{}-{n}", order.order_no));

    let before = Books::read(db, order.id).await;
    let verdict = desk.tell(policy, &order, &word, &ids[0]).await;
    let after = Books::read(db, order.id).await;
    // The same message, and the same fact in another message.
    desk.tell(policy, &order, &word, &ids[0]).await;
    let again = desk.tell(policy, &order, &word, &ids[1]).await;
    let last = Books::read(db, order.id).await;

    assert_eq!(before.order.status, own, "{place}");
    let cell = Cell { before, verdict, after, again, last, hint: false };
    cell.obeys_the_laws(&place);
    let check = cell.after.job("check", &order.id.to_string());
    assert_eq!(check.is_none(), cell.after.order.status.was_paid(), "{place}: whoever has not paid is asked about");
    lines(&cell)
}

fn lines(cell: &Cell) -> Field {
    let (from, to) = (cell.before.order.status, cell.after.order.status);
    let mut lines = vec![if from == to { cell.verdict.to_string() } else { format!("{} → {to}", cell.verdict) }];
    lines.extend(cell.news());
    if cell.verdict == Verdict::NotPending || cell.verdict == Verdict::Settled {
        let new = |table: &str| cell.after.new_rows(&cell.before, table);
        let came = new("transactions").iter().any(|movement| movement["action_type"] == "payment");
        lines.extend(came.then(|| "+ payment".to_owned()));
        let outside = new("refunds").iter().any(|refund| refund["origin"] == "outside");
        lines.extend(
            (!new("refunds").is_empty()).then(|| if outside { "+ outside refund" } else { "+ refund" }.to_owned()),
        );
        let asks = cell.verdict == Verdict::NotPending
            && new("cases").iter().any(|case| case["evidence"]["policy"] == "fulfil");
        lines.extend(asks.then(|| "asks first".to_owned()));
        let waits = new("cases").iter().any(|case| case["evidence"]["not_refunded"].is_string());
        lines.extend(waits.then(|| "no refund yet".to_owned()));
    }
    lines.extend(cell.again());
    lines
}

/// Brings a pending order to `own`; `trade` is the one that pays it.
async fn reach(desk: &Desk, order: &Order, trade: &Trade, own: OrderStatus) {
    if own == OrderStatus::Closed {
        let mut tx = desk.world.db.begin().await.unwrap();
        assert_eq!(settle::end_unpaid(&mut tx, order, &Clock::system()).await.unwrap(), Verdict::Settled);
        tx.commit().await.unwrap();
    }
    if !own.was_paid() {
        return;
    }
    let paid = Word::notice(trade, Overrides::default());
    let id = format!("{}-paid", order.order_no);
    assert_eq!(desk.tell(LatePaymentPolicy::Hold, order, &paid, &id).await, Verdict::Settled);
    let amount = match own {
        OrderStatus::Refunding | OrderStatus::PartiallyRefunded => Some(Money::from_yuan("4").unwrap()),
        OrderStatus::Refunded => None,
        _ => return,
    };
    let refund = desk.ask(order, None, amount).await;
    if own != OrderStatus::Refunding {
        desk.heard(&refund, &RefundReport::of(domain::RefundState::Succeeded)).await;
    }
}

/// The order's own trade, and the fact in its gateway's words.
async fn words(desk: &Desk, order: &Order, told: Told) -> (Trade, Word) {
    let trade = desk.world.paid_trade(order);
    let alipay = order.payment_method == Alipay;
    let state = |at_alipay: &str, at_wechat: &str| match alipay {
        true => with("trade_status", json!(at_alipay)),
        false => with("/trade_state", json!(at_wechat)),
    };
    let word = match told {
        Told::Paid => Word::notice(&trade, Overrides::default()),
        Told::PaidByAnotherTrade => Word::notice(&desk.world.paid_trade(order), Overrides::default()),
        Told::AnotherAmount => Word::notice(&trade, Overrides { amount_fen: Some(999), ..Overrides::default() }),
        Told::AnotherMerchant if alipay => Word::notice(&trade, with("seller_id", json!("2088000000000000"))),
        Told::AnotherMerchant => Word::notice(&trade, with("/mchid", json!("1900000000"))),
        Told::OtherGateway => {
            let payment_method = if alipay { Wechat } else { Alipay };
            let there = Order { payment_method, ..order.clone() };
            Word::notice(&desk.world.paid_trade(&there), Overrides::default())
        }
        Told::ClosedUnpaid if alipay => {
            let mut unpaid = trade.clone();
            unpaid.notices.last_mut().unwrap().event = Event::Closed;
            Word::notice(&unpaid, Overrides::default())
        }
        // WeChat Pay sends no callback about these two: the answer to a query shows them.
        Told::ClosedUnpaid => {
            desk.closed_there(order).await;
            Word::Answer
        }
        Told::PaidAndReturned if !alipay => {
            let trade = desk.paid_there(order).await;
            desk.returned_there(order, &trade).await;
            return (trade, Word::Answer);
        }
        Told::PaidAndReturned => {
            let returned = trade.clone().refunded("UNNAMED", order.amount.fen(), RefundState::Success);
            let unnamed = [("out_biz_no".to_owned(), None)].into_iter().collect();
            Word::notice(&returned, Overrides { fields: unnamed, ..Overrides::default() })
        }
        Told::ForeignRefund => {
            Word::notice(&trade.clone().refunded("NOT_OURS", 100, RefundState::Success), Overrides::default())
        }
        Told::Waiting => Word::notice(&trade, state("WAIT_BUYER_PAY", "NOTPAY")),
        Told::UnknownState => Word::notice(&trade, state("TRADE_SOMETHING_NEW", "SOMETHING_NEW")),
    };
    (trade, word)
}

/// One field of the message differs.
pub fn with(field: &str, value: Value) -> Overrides {
    Overrides { fields: [(field.to_owned(), Some(value))].into_iter().collect(), ..Overrides::default() }
}
