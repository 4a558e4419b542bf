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
enum Stated {
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

const COLUMNS: [(Stated, &str); 10] = [
    (Stated::Paid, "paid,\nits own trade"),
    (Stated::PaidByAnotherTrade, "paid,\nanother trade"),
    (Stated::AnotherAmount, "paid,\nanother amount"),
    (Stated::AnotherMerchant, "paid to\nanother merchant"),
    (Stated::OtherGateway, "paid at the\nother gateway"),
    (Stated::ClosedUnpaid, "closed\nunpaid"),
    (Stated::PaidAndReturned, "paid and\nreturned"),
    (Stated::ForeignRefund, "a refund\nthat is not ours"),
    (Stated::Waiting, "waits for\nthe buyer"),
    (Stated::UnknownState, "a state that\nis unknown"),
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
            for (stated, _) in COLUMNS {
                fields.push(field(desk, method, *policy, (*status, stated)).await);
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
    (own, stated): (OrderStatus, Stated),
) -> Field {
    let place = format!("{method}, {policy}, {own}, {stated:?}");
    let order = desk.world.pending_order(method, "10").await;
    let (trade, word) = words(desk, &order, stated).await;
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
        let queries = cell.verdict == Verdict::NotPending
            && new("cases").iter().any(|case| case["evidence"]["policy"] == "fulfil");
        lines.extend(queries.then(|| "asks first".to_owned()));
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
    let refund = desk.request_refund(order, None, amount).await;
    if own != OrderStatus::Refunding {
        desk.answered(&refund, &RefundReport::of(domain::RefundState::Succeeded)).await;
    }
}

/// The order's own trade, and the fact in its gateway's words.
async fn words(desk: &Desk, order: &Order, stated: Stated) -> (Trade, Word) {
    let trade = desk.world.paid_trade(order);
    let alipay = order.payment_method == Alipay;
    let state = |at_alipay: &str, at_wechat: &str| match alipay {
        true => with("trade_status", json!(at_alipay)),
        false => with("/trade_state", json!(at_wechat)),
    };
    let word = match stated {
        Stated::Paid => Word::notice(&trade, Overrides::default()),
        Stated::PaidByAnotherTrade => Word::notice(&desk.world.paid_trade(order), Overrides::default()),
        Stated::AnotherAmount => Word::notice(&trade, Overrides { amount_fen: Some(999), ..Overrides::default() }),
        Stated::AnotherMerchant if alipay => Word::notice(&trade, with("seller_id", json!("2088000000000000"))),
        Stated::AnotherMerchant => Word::notice(&trade, with("/mchid", json!("1900000000"))),
        Stated::OtherGateway => {
            let payment_method = if alipay { Wechat } else { Alipay };
            let there = Order { payment_method, ..order.clone() };
            Word::notice(&desk.world.paid_trade(&there), Overrides::default())
        }
        Stated::ClosedUnpaid if alipay => {
            let mut unpaid = trade.clone();
            unpaid.notices.last_mut().unwrap().event = Event::Closed;
            Word::notice(&unpaid, Overrides::default())
        }
        // WeChat Pay sends no callback about these two: the answer to a query shows them.
        Stated::ClosedUnpaid => {
            desk.closed_there(order).await;
            Word::Answer
        }
        Stated::PaidAndReturned if !alipay => {
            let trade = desk.paid_there(order).await;
            desk.returned_there(order, &trade).await;
            return (trade, Word::Answer);
        }
        Stated::PaidAndReturned => {
            let returned = trade.clone().refunded("UNNAMED", order.amount.fen(), RefundState::Success);
            let unnamed = [("out_biz_no".to_owned(), None)].into_iter().collect();
            Word::notice(&returned, Overrides { fields: unnamed, ..Overrides::default() })
        }
        Stated::ForeignRefund => {
            Word::notice(&trade.clone().refunded("NOT_OURS", 100, RefundState::Success), Overrides::default())
        }
        Stated::Waiting => Word::notice(&trade, state("WAIT_BUYER_PAY", "NOTPAY")),
        Stated::UnknownState => Word::notice(&trade, state("TRADE_SOMETHING_NEW", "SOMETHING_NEW")),
    };
    (trade, word)
}

/// One field of the message differs.
pub fn with(field: &str, value: Value) -> Overrides {
    Overrides { fields: [(field.to_owned(), Some(value))].into_iter().collect(), ..Overrides::default() }
}
