//! Money that was refunded outside the service: what the gateways say, compared with what is booked here and what
//! waits as a case. It also checks the total balance: what was paid, less what was refunded, is fulfilled or held.

use std::collections::{BTreeMap, BTreeSet};

use super::violation::{Found, Invariant};
use super::{History, Order, Payment, ReturnedThere, Trade};

/// The kinds of case that report a refund which our books lack.
const TELLS: [&str; 2] = ["unknown_refund", "refunded_elsewhere"];

/// The order's number and the trade's number.
type Name<'a> = (&'a str, &'a str);

/// What was refunded in the consoles is booked here, to the fen, or an open case reports it. This covers only what
/// the gateways let the service know. Nothing else is booked.
pub(super) fn booked(history: &History, found: &mut Found) {
    let (there, here) = (in_the_consoles(history), by_our_books(history));
    let nothing = Console::default();
    let names: BTreeSet<&Name<'_>> = there.keys().chain(here.keys()).collect();
    for name in names {
        let console = there.get(name).unwrap_or(&nothing);
        let booked = here.get(name).copied().unwrap_or(0);
        let ((order_no, trade_no), Console { went, known }) = (name, console);
        if booked > *went {
            let what = format!("{booked} fen are booked as returned outside of trade {trade_no}, and {went} went back");
            found.add(Invariant::ReturnedOutside, what);
        }
        if booked < *known && !is_reported(history, order_no, trade_no) {
            let what = format!(
                "the gateway says that {known} fen of trade {trade_no} of {order_no} went back outside, {booked} are booked, and no case reports it"
            );
            found.add(Invariant::ReturnedOutside, what);
        }
    }
    for refund in history.refunds.iter().filter(|refund| refund.is_outside() && !refund.succeeded()) {
        let (refund_no, status) = (&refund.refund_no, &refund.status);
        found.add(Invariant::ReturnedOutside, format!("{refund_no} was made outside and is {status}"));
    }
}

/// Whether a case reports a refund that the books lack. The case must be open. For a payment that is not booked at
/// all, a case that people have resolved also counts.
fn is_reported(history: &History, order_no: &str, trade_no: &str) -> bool {
    let Some(order) = history.orders.iter().find(|order| order.order_no == order_no) else { return false };
    let recorded = history.payments.iter().any(|payment| payment.trade_no == trade_no);
    history.cases_of(order).any(|case| TELLS.contains(&case.kind.as_str()) && (case.open || !recorded))
}

/// What people refunded of a trade in the gateway's console.
#[derive(Debug, Default, PartialEq, Eq)]
struct Console {
    /// The amount.
    went: i64,
    /// The part of it that the gateway has let us know.
    known: i64,
}

fn in_the_consoles(history: &History) -> BTreeMap<Name<'_>, Console> {
    let mut all: BTreeMap<Name<'_>, Console> = BTreeMap::new();
    for trade in &history.trades {
        let went = in_console(&trade.refunds);
        if went == 0 {
            continue;
        }
        let console = all.entry((trade.order_no.as_str(), trade.trade_no.as_deref().unwrap_or(""))).or_default();
        console.went += went;
        console.known +=
            if trade.gateway == "alipay" { known_at_alipay(trade) } else { known_at_wechat(history, trade) };
    }
    all
}

/// The sum that was refunded in the console.
fn in_console<'a>(refunds: impl IntoIterator<Item = &'a ReturnedThere>) -> i64 {
    let done = refunds.into_iter().filter(|refund| refund.console && refund.state == "success");
    done.map(|refund| refund.amount_fen).sum()
}

/// Alipay's notice of a refund states the total that was refunded until then. Alipay's query reports a trade that
/// was refunded completely, and never a partial refund.
fn known_at_alipay(trade: &Trade) -> i64 {
    if trade.refunded_fen >= trade.amount_fen {
        return in_console(&trade.refunds);
    }
    let last = trade.refunds.iter().rposition(|refund| refund.delivered);
    in_console(&trade.refunds[..last.map_or(0, |last| last + 1)])
}

/// WeChat Pay's notice reports one refund. Its query reports only that something was refunded. If a refund of the
/// trade is booked here, that refund may explain the answer, so the query proves nothing more.
fn known_at_wechat(history: &History, trade: &Trade) -> i64 {
    let payment = history.payments.iter().find(|payment| Some(&payment.trade_no) == trade.trade_no.as_ref());
    let booked = |payment: &Payment| history.refunds.iter().any(|r| r.payment_id == payment.id && r.status != "failed");
    match payment.is_some_and(booked) {
        true => in_console(trade.refunds.iter().filter(|refund| refund.delivered)),
        false => in_console(&trade.refunds),
    }
}

fn by_our_books(history: &History) -> BTreeMap<Name<'_>, i64> {
    let orders: BTreeMap<&str, &str> =
        history.orders.iter().map(|order| (order.id.as_str(), order.order_no.as_str())).collect();
    let mut sums = BTreeMap::new();
    for payment in &history.payments {
        let order_no = orders.get(payment.order_id.as_str()).copied().unwrap_or("no order");
        let own = history.refunds.iter().filter(|refund| refund.payment_id == payment.id);
        let fen: i64 = own.filter(|refund| refund.is_outside()).map(|refund| refund.amount_fen).sum();
        *sums.entry((order_no, payment.trade_no.as_str())).or_default() += fen;
    }
    sums
}

/// The total in fen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Balance {
    /// What buyers paid at the gateways.
    pub paid: i64,
    /// What was refunded there, by the service or outside it.
    pub returned: i64,
    /// What the books count as delivered: paid orders, less what was refunded of them.
    pub fulfilled: i64,
    /// Other payments that are not yet refunded, less what was refunded outside and waits as a case.
    pub held: i64,
    /// What was refunded in a console without any signal from the gateway: only the gateway's bills can show it.
    pub unseen: i64,
}

impl Balance {
    /// Whether no money is lost and none is invented.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.paid - self.returned == self.fulfilled + self.held - self.unseen
    }

    fn add(&mut self, other: Balance) {
        self.paid += other.paid;
        self.returned += other.returned;
        self.fulfilled += other.fulfilled;
        self.held += other.held;
        self.unseen += other.unseen;
    }
}

/// The sum over all orders once nothing is in flight, and each order for which it does not hold.
#[must_use]
pub fn balance(history: &History) -> (Balance, Vec<String>) {
    let (there, here) = (in_the_consoles(history), by_our_books(history));
    let (mut total, mut wrong) = (Balance::default(), Vec::new());
    for order in &history.orders {
        let balance = of_order(history, order, &there, &here);
        if !balance.holds() {
            wrong.push(format!("order {}, {}: {balance:?}", order.order_no, order.status));
        }
        total.add(balance);
    }
    let known: BTreeSet<&str> = history.orders.iter().map(|order| order.order_no.as_str()).collect();
    for trade in history.trades.iter().filter(|trade| trade.state == "paid" && !known.contains(&*trade.order_no)) {
        wrong.push(format!("{} fen were paid for {}, which is no order", trade.amount_fen, trade.order_no));
    }
    (total, wrong)
}

fn of_order(
    history: &History,
    order: &Order,
    there: &BTreeMap<Name<'_>, Console>,
    here: &BTreeMap<Name<'_>, i64>,
) -> Balance {
    let mut balance = Balance::default();
    for trade in history.trades.iter().filter(|trade| trade.order_no == order.order_no && trade.state == "paid") {
        balance.paid += trade.amount_fen;
        balance.returned += trade.refunds.iter().filter(|r| r.state == "success").map(|r| r.amount_fen).sum::<i64>();
    }
    if order.was_paid() {
        balance.fulfilled = order.amount_fen - order.refunded_fen;
    }
    for payment in history.payments.iter().filter(|payment| payment.order_id == order.id) {
        let name = (order.order_no.as_str(), payment.trade_no.as_str());
        if let Some(Console { went, known }) = there.get(&name) {
            let booked = here.get(&name).copied().unwrap_or(0);
            match is_reported(history, &order.order_no, &payment.trade_no) {
                true => balance.held -= (went - booked).max(0),
                false => balance.unseen += (went - booked.max(*known)).max(0),
            }
        }
        if order.was_paid() && order.trade_no.as_ref() == Some(&payment.trade_no) {
            continue;
        }
        let own = history.refunds.iter().filter(|refund| refund.payment_id == payment.id && refund.succeeded());
        balance.held += payment.amount_fen - own.map(|refund| refund.amount_fen).sum::<i64>();
    }
    balance
}
