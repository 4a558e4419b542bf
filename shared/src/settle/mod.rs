//! Facts about money in, state and event out: the one place where callbacks, queries and bills meet.
//!
//! A batch is settled with a fixed number of statements: lock the orders, decide in memory, write each kind of effect
//! once. Deciding is pure; every move of an order is asked of [`crate::domain::TRANSITIONS`].

pub mod late;
pub mod refunds;

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::db::cases::NewCase;
use crate::db::orders::{Order, Paid};
use crate::db::transactions::ExtraPayment;
use crate::db::{DbError, case_facts, cases, events, jobs, orders, transactions};
use crate::domain::{
    CaseId, CaseKind, Fact, LatePaymentPolicy, Merchant, Money, Notification, OrderEvent, OrderId, OrderStatus,
    PaymentMethod, Policies, RefundId, TradeNo, TransactionId, Verdict,
};
use crate::event::{self, Event};
use crate::gateway::{self, Verified};

pub use late::{NotHonoured, honour};

use late::Return;
use refunds::RefundVerdict;

/// Settles what the gateways say and returns a verdict on each, in the order given. All or nothing is the caller's
/// commit. Facts of one order count in their natural order (payment, close, refund), however they arrived.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn settle(
    tx: &mut PgConnection,
    told: &[&Verified<Notification>],
    policies: &Policies,
    clock: &Clock,
) -> Result<Vec<Verdict>, DbError> {
    let told: Vec<&Notification> = told.iter().map(|verified| verified.get()).collect();
    settle_facts(tx, &told, policies, clock).await
}

/// Ends an order that nobody has paid and nobody can pay any more, as the gateway was asked and closed it or knows no
/// such trade. It is our own decision, so it needs no proof; an order that is not pending stays as it is.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn end_unpaid(tx: &mut PgConnection, order: &Order, clock: &Clock) -> Result<Verdict, DbError> {
    let decided = Notification {
        method: order.payment_method,
        account: order.account.clone(),
        notice_id: format!("end:{}", order.id),
        merchant: Merchant::Ours,
        order_no: order.order_no.to_string(),
        fact: Fact::ClosedUnpaid,
        doubt: None,
    };
    // Whatever the account's policy is, it is about money, and none is told of here.
    let verdicts = settle_facts(tx, &[&decided], &Policies::default(), clock).await?;
    Ok(verdicts.first().copied().unwrap_or(Verdict::Ignored))
}

async fn settle_facts(
    tx: &mut PgConnection,
    told: &[&Notification],
    policies: &Policies,
    clock: &Clock,
) -> Result<Vec<Verdict>, DbError> {
    let now = clock.now();
    let order_nos: HashSet<&str> = told.iter().map(|n| n.order_no.as_str()).collect();
    let order_nos: Vec<&str> = order_nos.into_iter().collect();
    let locked = orders::lock(tx, &order_nos).await?;
    let mut books = Books {
        recorded: recorded_trades(tx, told, &locked).await?,
        gone: gone_trades(tx, told, &locked).await?,
        orders: locked.into_iter().map(|order| (order.order_no.as_str().to_owned(), order)).collect(),
        effects: Effects::default(),
        policies,
        clock,
        now,
    };

    let mut order: Vec<usize> = (0..told.len()).collect();
    order.sort_by_key(|i| rank(&told[*i].fact));
    let mut verdicts = vec![Verdict::Ignored; told.len()];
    let mut of_refunds = Vec::new();
    for i in order {
        match books.decide(told[i]) {
            Some(verdict) => verdicts[i] = verdict,
            None => of_refunds.push(i),
        }
    }
    std::mem::take(&mut books.effects).write(tx, now).await?;
    // Few, each with a lock and a state of its own, and after the payments that they return.
    for i in of_refunds {
        verdicts[i] = books.refund(tx, told[i]).await?;
    }
    books.effects.write(tx, now).await?;
    Ok(verdicts)
}

/// Payment before close before refund.
fn rank(fact: &Fact) -> u8 {
    match fact {
        Fact::Paid { .. } => 0,
        Fact::ClosedUnpaid => 1,
        Fact::PaidAndReturned { .. } | Fact::Refund { .. } => 2,
        Fact::Nothing => 3,
    }
}

/// The trades that have a row already. Asked only when an order is met that is not pending: nothing else depends on it.
async fn recorded_trades(
    tx: &mut PgConnection,
    told: &[&Notification],
    locked: &[Order],
) -> Result<HashSet<(PaymentMethod, String)>, DbError> {
    let paid_trades: Vec<&str> = told
        .iter()
        .filter_map(|n| match &n.fact {
            Fact::Paid { trade_no, .. } | Fact::PaidAndReturned { trade_no } => Some(trade_no.as_str()),
            _ => None,
        })
        .collect();
    if paid_trades.is_empty() || locked.iter().all(|order| order.status == OrderStatus::Pending) {
        return Ok(HashSet::new());
    }
    transactions::recorded(tx, &paid_trades).await
}

/// The trades whose money came and went before their order had it: by an open or resolved case, or by another fact of this
/// batch. A payment that is told afterwards is of money that is not there.
async fn gone_trades(
    tx: &mut PgConnection,
    told: &[&Notification],
    locked: &[Order],
) -> Result<HashSet<(OrderId, String)>, DbError> {
    let mut paid = Vec::new();
    let mut gone = HashSet::new();
    for told in told {
        match &told.fact {
            Fact::Paid { trade_no, .. } => paid.push(trade_no.as_str()),
            Fact::PaidAndReturned { trade_no } => {
                let order = locked.iter().find(|order| order.order_no.as_str() == told.order_no);
                gone.extend(order.map(|order| (order.id, trade_no.to_string())));
            }
            _ => {}
        }
    }
    if !paid.is_empty() && locked.iter().any(|order| !order.status.was_paid()) {
        gone.extend(cases::returned_elsewhere(tx, &paid).await?);
    }
    Ok(gone)
}

/// What is known inside the transaction, and what is to be written at its end.
struct Books<'a> {
    orders: HashMap<String, Order>,
    recorded: HashSet<(PaymentMethod, String)>,
    gone: HashSet<(OrderId, String)>,
    effects: Effects,
    policies: &'a Policies,
    clock: &'a Clock,
    now: OffsetDateTime,
}

impl Books<'_> {
    /// One fact: its verdict, with the effects noted and the order in memory moved. `None`: it tells of a refund.
    fn decide(&mut self, told: &Notification) -> Option<Verdict> {
        if told.fact == Fact::Nothing {
            return Some(Verdict::Ignored);
        }
        let Some(order) = self.orders.get(&told.order_no) else {
            return Some(self.case(Verdict::UnknownOrder, CaseKind::UnknownOrder, None, told));
        };
        let id = Some(order.id);
        if order.payment_method != told.method {
            return Some(self.case(Verdict::WrongMethod, CaseKind::WrongMethod, id, told));
        }
        if !is_whose_it_says(told, order) {
            return Some(self.case(Verdict::WrongMerchant, CaseKind::WrongMerchant, id, told));
        }
        Some(match &told.fact {
            Fact::Paid { amount, .. } if *amount != Some(order.amount) => {
                self.case(Verdict::AmountMismatch, CaseKind::AmountMismatch, id, told)
            }
            Fact::Paid { trade_no, .. }
                if !order.status.was_paid() && self.gone.contains(&(order.id, trade_no.to_string())) =>
            {
                Verdict::NotPending
            }
            Fact::Paid { trade_no, paid_at, .. } => self.paid(told, trade_no, *paid_at),
            Fact::ClosedUnpaid => self.closed(told),
            // Money that came late, was noted, and has gone back since.
            Fact::PaidAndReturned { trade_no } if !order.status.was_paid() && self.knows(told.method, trade_no) => {
                Verdict::Duplicate
            }
            // A return of money that was never ours to give back, of an order that we never saw paid.
            Fact::PaidAndReturned { .. } if !order.status.was_paid() => {
                self.case(Verdict::NotPending, CaseKind::RefundedElsewhere, id, told)
            }
            Fact::Nothing => Verdict::Ignored,
            Fact::PaidAndReturned { .. } | Fact::Refund { .. } => return None,
        })
    }

    /// What a callback or an answer tells of money that went back.
    async fn refund(&mut self, tx: &mut PgConnection, told: &Notification) -> Result<Verdict, DbError> {
        let Some(id) = self.orders.get(&told.order_no).map(|order| order.id) else { return Ok(Verdict::Ignored) };
        if let Fact::PaidAndReturned { trade_no } = &told.fact {
            return Ok(match refunds::explained(tx, id, trade_no).await? {
                true => Verdict::Ignored,
                false => self.case(Verdict::UnknownRefund, CaseKind::UnknownRefund, Some(id), told),
            });
        }
        Ok(match refunds::notice(tx, &told.fact, id, self.policies, self.clock).await? {
            Some(RefundVerdict::Settled) => Verdict::Settled,
            Some(RefundVerdict::Duplicate) => Verdict::Duplicate,
            Some(RefundVerdict::AmountMismatch) => Verdict::AmountMismatch,
            None => self.case(Verdict::UnknownRefund, CaseKind::UnknownRefund, Some(id), told),
        })
    }

    fn paid(&mut self, told: &Notification, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        if order.trade_no.as_ref() == Some(trade_no) {
            return Verdict::Duplicate;
        }
        if let Ok(next) = order.status.next(OrderEvent::PaymentSucceeded) {
            let paid = Paid { id: order.id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(event::order_paid(order, trade_no, paid_at));
            late::take(order, next, &paid);
            self.effects.paid.push(paid);
            return Verdict::Settled;
        }
        if !self.recorded.insert((told.method, trade_no.as_str().to_owned())) {
            return Verdict::Duplicate;
        }
        let (id, amount) = (order.id, order.amount);
        self.effects.extra.push(ExtraPayment {
            id: TransactionId::from_u128(self.clock.fresh_bits()),
            order_id: id,
            payment_method: told.method,
            gateway_no: trade_no.clone(),
            amount,
            paid_at,
        });
        self.extra(told, trade_no, paid_at)
    }

    /// Money that was not owed: what the account's policy makes of it.
    fn extra(&mut self, told: &Notification, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        let (id, closed) = (order.id, order.status == OrderStatus::Closed);
        let kind = if closed { CaseKind::LatePayment } else { CaseKind::DoublePayment };
        let policy = self.policies.of(order.payment_method, &order.account);
        metrics::counter!("extra_payments_total", "kind" => kind.as_str(), "policy" => policy.as_str()).increment(1);
        if policy == LatePaymentPolicy::Fulfil
            && let Ok(next) = order.status.next(OrderEvent::PaymentHonoured)
        {
            let paid = Paid { id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(event::order_paid(order, trade_no, paid_at));
            late::take(order, next, &paid);
            self.effects.honoured.push(paid);
            let case = self.new_case(kind, Some(id), told);
            self.effects.decided.push(case);
            return Verdict::Settled;
        }
        if policy == LatePaymentPolicy::Refund {
            let back =
                Return { id: RefundId::from_u128(self.clock.fresh_bits()), order_id: id, trade_no: trade_no.clone() };
            self.effects.returns.push((back, self.effects.cases.len()));
        }
        self.case(Verdict::NotPending, kind, Some(id), told)
    }

    /// Whether a trade has its row, although it is not the order's own.
    fn knows(&self, method: PaymentMethod, trade_no: &TradeNo) -> bool {
        self.recorded.contains(&(method, trade_no.as_str().to_owned()))
    }

    fn closed(&mut self, told: &Notification) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        match order.status.next(OrderEvent::ClosedUnpaid) {
            Ok(next) => {
                self.effects.closed.push(order.id);
                self.effects.events.push(event::order_closed(order, self.now));
                order.status = next;
                order.version += 1;
                Verdict::Settled
            }
            Err(_) if order.status == OrderStatus::Closed => Verdict::Duplicate,
            // A close that was on its way while the payment settled: the payment is the stronger fact.
            Err(_) => Verdict::Ignored,
        }
    }

    fn case(&mut self, verdict: Verdict, kind: CaseKind, order_id: Option<OrderId>, told: &Notification) -> Verdict {
        let case = self.new_case(kind, order_id, told);
        self.effects.cases.push(case);
        verdict
    }

    fn new_case(&self, kind: CaseKind, order_id: Option<OrderId>, told: &Notification) -> NewCase {
        NewCase {
            id: CaseId::from_u128(self.clock.fresh_bits()),
            kind,
            order_id,
            gateway_no: case_number(told),
            evidence: evidence(told),
        }
    }
}

/// Whether a message is about the account and the app that the order was placed with. The account's apps of today count
/// too: a credential may have been made anew under one of them.
fn is_whose_it_says(told: &Notification, order: &Order) -> bool {
    let merchant = match &told.merchant {
        Merchant::Ours => true,
        Merchant::OtherApp { app, .. } => {
            gateway::app_of_order(order.payment_method, &order.prepay) == Some(app.as_str())
        }
        Merchant::Other(_) => false,
    };
    merchant && order.account == told.account
}

/// What makes a case one of its kind: the refund, the trade, or else the message.
fn case_number(told: &Notification) -> String {
    match &told.fact {
        Fact::Refund { refund_no, .. } => refund_no.clone(),
        Fact::Paid { trade_no, .. } | Fact::PaidAndReturned { trade_no } => trade_no.to_string(),
        Fact::ClosedUnpaid | Fact::Nothing => told.notice_id.clone(),
    }
}

/// What a person needs to judge, without the payer's identity. The bytes are in `callbacks`.
fn evidence(told: &Notification) -> Value {
    let mut evidence = json!({
        "payment_method": told.method,
        "account": told.account,
        "notice_id": told.notice_id,
        "order_no": told.order_no,
    });
    if let Merchant::Other(ids) | Merchant::OtherApp { ids, .. } = &told.merchant {
        evidence["merchant"] = ids.as_str().into();
    }
    if let Some(doubt) = &told.doubt {
        evidence["doubt"] = doubt.as_str().into();
    }
    let money = |amount: &Option<Money>| amount.map(|amount| amount.to_string());
    match &told.fact {
        Fact::Paid { trade_no, amount, .. } => {
            evidence["trade_no"] = trade_no.as_str().into();
            evidence["amount"] = json!(money(amount));
        }
        Fact::PaidAndReturned { trade_no } => evidence["trade_no"] = trade_no.as_str().into(),
        Fact::Refund { trade_no, refund_no, amount, outcome, .. } => {
            evidence["trade_no"] = trade_no.as_str().into();
            evidence["refund_no"] = refund_no.as_str().into();
            evidence["amount"] = json!(money(amount));
            evidence["outcome"] = format!("{outcome:?}").to_lowercase().into();
        }
        Fact::ClosedUnpaid | Fact::Nothing => {}
    }
    evidence
}

/// What a batch writes, each kind with one statement.
#[derive(Default)]
struct Effects {
    paid: Vec<Paid>,
    closed: Vec<OrderId>,
    extra: Vec<ExtraPayment>,
    events: Vec<Event>,
    cases: Vec<NewCase>,
    /// Orders that a late payment makes paid, and their cases, decided already.
    honoured: Vec<Paid>,
    decided: Vec<NewCase>,
    /// Each with the place of its case among `cases`.
    returns: Vec<(Return, usize)>,
}

impl Effects {
    async fn write(mut self, tx: &mut PgConnection, now: OffsetDateTime) -> Result<(), DbError> {
        if !self.paid.is_empty() {
            orders::mark_paid(tx, &self.paid, now).await?;
            let ids: Vec<OrderId> = self.paid.iter().map(|paid| paid.id).collect();
            jobs::drop_checks(tx, &ids).await?;
        }
        if !self.closed.is_empty() {
            orders::mark_closed(tx, &self.closed, now).await?;
        }
        if !self.extra.is_empty() {
            transactions::note_extra(tx, &self.extra, now).await?;
        }
        if !self.honoured.is_empty() {
            orders::mark_honoured(tx, &self.honoured, now).await?;
            let ids: Vec<OrderId> = self.honoured.iter().map(|paid| paid.id).collect();
            jobs::drop_checks(tx, &ids).await?;
            let decision = ("taken for its order: the account's policy is fulfil", late::POLICY);
            cases::record_resolved(tx, &self.decided, decision, now).await?;
        }
        for (back, case) in &self.returns {
            late::give_back(tx, back, &mut self.cases[*case].evidence, now).await?;
        }
        if !self.cases.is_empty() {
            self.events.extend(open_cases(tx, &self.cases, now).await?);
        }
        if !self.events.is_empty() {
            events::append(tx, &self.events, now).await?;
        }
        Ok(())
    }
}

/// Opens or reopens cases and returns the events that tell of it.
///
/// # Errors
/// [`DbError`].
pub async fn open_cases(tx: &mut PgConnection, new: &[NewCase], now: OffsetDateTime) -> Result<Vec<Event>, DbError> {
    let opened = case_facts::open(tx, new, now).await?;
    Ok(opened.iter().map(event::case_opened).collect())
}
