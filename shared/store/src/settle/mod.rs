//! Turns facts into state changes and events. Callbacks and answers to order queries arrive in [`settle`], our own closes
//! of unpaid orders in [`end_unpaid`], and what a gateway reports about our refunds in [`refunds::settle`].
//!
//! A batch locks its orders, decides in memory, then writes each kind of effect once. A refund takes statements of its
//! own. The decisions about payments and closes do no I/O: [`domain::TRANSITIONS`] allows each move of an unpaid order.
//! After payment the state of an order follows from its refunds ([`domain::status_by_refunds`]).

pub mod accounts;
mod booking;
pub mod events;
pub mod late;
mod outside;
pub mod refunds;
pub mod strays;

use std::collections::{HashMap, HashSet};

use domain::message::event::Event;
use domain::message::job::{Asked, CheckRequest, JobRequest};
use domain::{
    CaseId, CaseKind, Fact, LatePaymentPolicy, Merchant, Money, Notification, OrderEvent, OrderId, OrderStatus,
    PaymentMethod, Policies, RefundId, RefundState, Source, TradeNo, TransactionId, Verdict,
};
use gateway::Verified;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::tables::cases::NewCase;
use crate::tables::orders::Order;
use crate::tables::orders::Paid;
use crate::tables::transactions::ExtraPayment;
use crate::tables::{case_facts, cases, events as outbox, extra, jobs, orders, transactions};

pub use booking::{Found, book_asked, trade_of};
pub use late::{NotHonoured, can_fulfil, can_honour, fulfil};

use late::Return;
use refunds::RefundVerdict;

/// Settles facts that the gateways state and returns one verdict for each, in the order given. All changes are in the
/// caller's transaction, so they take effect together or not at all. The facts of one order are processed in their
/// natural order (payment, close, refund), whatever order they arrived in.
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

/// Closes an order that is unpaid and can no longer be paid: the gateway has closed the trade on our request, or has
/// answered that it knows no such trade. This is our own decision, so it needs no signed message. An order that is not
/// pending does not change.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn end_unpaid(tx: &mut PgConnection, order: &Order, clock: &Clock) -> Result<Verdict, DbError> {
    let decided = Notification {
        method: order.payment_method,
        account: order.account.clone(),
        notice_id: format!("end:{}", order.id),
        source: Source::Query,
        merchant: Merchant::Ours,
        order_no: order.order_no.to_string(),
        fact: Fact::ClosedUnpaid,
        doubt: None,
    };
    // The policies only matter for payments, and this fact is a close.
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
        recorded: recorded_trades(tx, told).await?,
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
    // There are few refunds, and each needs its own lock and its own state. They come after the payments that they
    // return.
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
        Fact::PaidAndReturned(_) | Fact::Refund { .. } => 2,
        Fact::Nothing => 3,
    }
}

/// The trades that already have a row in `payment_transactions`. A repeat of such a payment is a duplicate: it never
/// pays the order by itself.
async fn recorded_trades(
    tx: &mut PgConnection,
    told: &[&Notification],
) -> Result<HashSet<(PaymentMethod, String)>, DbError> {
    let paid = told.iter().filter_map(|told| match &told.fact {
        Fact::Paid { trade_no, .. } => Some(trade_no.as_str()),
        _ => None,
    });
    let paid: Vec<&str> = paid.collect();
    if paid.is_empty() { Ok(HashSet::new()) } else { transactions::recorded(tx, &paid).await }
}

/// The trades that were refunded, fully or in part, before we recorded the payment. A case (open or resolved) or
/// another fact of this batch shows the refund. A payment notice that arrives later may be about money that is gone.
async fn gone_trades(
    tx: &mut PgConnection,
    told: &[&Notification],
    locked: &[Order],
) -> Result<HashSet<(OrderId, String)>, DbError> {
    let mut paid = Vec::new();
    let mut gone = HashSet::new();
    for told in told {
        if let Fact::Paid { trade_no, .. } = &told.fact {
            paid.push(trade_no.as_str());
        }
        let order = locked.iter().find(|order| order.order_no.as_str() == told.order_no);
        if let Some((trade, order)) =
            told.fact.returned_trade().zip(order).filter(|(_, order)| is_whose_it_says(told, order))
        {
            gone.insert((order.id, trade.trade_no.to_string()));
        }
    }
    let unpaid: Vec<OrderId> = locked.iter().filter(|order| !order.status.was_paid()).map(|order| order.id).collect();
    if !paid.is_empty() && !unpaid.is_empty() {
        gone.extend(cases::returned_elsewhere(tx, &paid, &unpaid).await?);
    }
    Ok(gone)
}

/// What we know inside the transaction, and what we will write at its end.
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
    /// Decides one fact: returns its verdict, collects the effects and changes the order in memory. `None`: the fact is
    /// about a refund.
    fn decide(&mut self, told: &Notification) -> Option<Verdict> {
        if told.fact == Fact::Nothing {
            return Some(Verdict::Ignored);
        }
        let Some(order) = self.orders.get(&told.order_no) else {
            return Some(self.case(Verdict::UnknownOrder, CaseKind::UnknownOrder, None, told));
        };
        let id = Some(order.id);
        if let Some((verdict, kind)) = elsewhere(order, told) {
            // One of our refunds may return a payment that arrived at another account.
            let of_refund = !matches!(told.merchant, Merchant::Other(_)) && matches!(told.fact, Fact::Refund { .. });
            return if of_refund { None } else { Some(self.case(verdict, kind, id, told)) };
        }
        Some(match &told.fact {
            Fact::Paid { amount, .. } if *amount != Some(order.amount) => {
                self.case(Verdict::AmountMismatch, CaseKind::AmountMismatch, id, told)
            }
            Fact::Paid { trade_no, .. } if !order.status.was_paid() && self.knows(told.method, trade_no) => {
                Verdict::Duplicate
            }
            Fact::Paid { trade_no, paid_at, .. }
                if !order.status.was_paid() && self.gone.contains(&(order.id, trade_no.to_string())) =>
            {
                self.came_and_went(told, (trade_no, *paid_at))
            }
            Fact::Paid { trade_no, paid_at, .. } => self.paid(told, trade_no, *paid_at),
            Fact::ClosedUnpaid => self.closed(told),
            Fact::Nothing => Verdict::Ignored,
            Fact::PaidAndReturned(_) | Fact::Refund { .. } => return None,
        })
    }

    /// Settles a refund that a callback or a query answer reports.
    async fn refund(&mut self, tx: &mut PgConnection, told: &Notification) -> Result<Verdict, DbError> {
        let Some(order) = self.orders.get(&told.order_no) else { return Ok(Verdict::Ignored) };
        let (id, elsewhere) = (order.id, elsewhere(order, told));
        let Some(ours) = refunds::notice(tx, told, order, self.policies, self.clock).await? else {
            return match elsewhere {
                Some((verdict, kind)) => Ok(self.case(verdict, kind, Some(id), told)),
                None => outside::returned(tx, told, id, self.clock).await,
            };
        };
        // The same message also states the total refunded for the trade, which may be more than our refund.
        if let Some(trade) = told.fact.returned_trade()
            && outside::beside_ours(tx, (id, trade), self.clock).await? == Verdict::Settled
        {
            return Ok(Verdict::Settled);
        }
        Ok(match ours {
            RefundVerdict::Settled => Verdict::Settled,
            RefundVerdict::Duplicate => Verdict::Duplicate,
            RefundVerdict::AmountMismatch => Verdict::AmountMismatch,
        })
    }

    fn paid(&mut self, told: &Notification, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        if order.trade_no.as_ref() == Some(trade_no) {
            return Verdict::Duplicate;
        }
        if let Ok(next) = order.status.next(OrderEvent::PaymentSucceeded) {
            let paid = Paid { id: order.id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(events::order_paid(order, trade_no, paid_at));
            late::take(order, next, &paid);
            self.effects.paid.push(paid);
            return Verdict::Settled;
        }
        if !self.note_extra(told, (trade_no, paid_at)) {
            return Verdict::Duplicate;
        }
        self.extra(told, trade_no, paid_at)
    }

    /// Records a payment beside the order's own payment. False: it is already recorded.
    fn note_extra(&mut self, told: &Notification, (trade_no, paid_at): (&TradeNo, OffsetDateTime)) -> bool {
        let Some(order) = self.orders.get(&told.order_no) else { return false };
        let fresh = self.recorded.insert((told.method, trade_no.as_str().to_owned()));
        if fresh {
            self.effects.extra.push(ExtraPayment {
                id: TransactionId::from_u128(self.clock.fresh_bits()),
                order_id: order.id,
                payment_method: told.method,
                gateway_no: trade_no.clone(),
                amount: order.amount,
                paid_at,
                account: None,
            });
        }
        fresh
    }

    /// A payment that we already know was refunded. After a query to the gateway, people decide whether we deliver for
    /// it.
    fn came_and_went(&mut self, told: &Notification, payment: (&TradeNo, OffsetDateTime)) -> Verdict {
        let id = self.orders.get(&told.order_no).map(|order| order.id);
        self.note_extra(told, payment);
        self.case(Verdict::NotPending, CaseKind::RefundedElsewhere, id, told)
    }

    /// Handles a payment that was not owed, by the account's policy.
    fn extra(&mut self, told: &Notification, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        let (id, closed) = (order.id, order.status == OrderStatus::Closed);
        let kind = if closed { CaseKind::LatePayment } else { CaseKind::DoublePayment };
        let policy = match self.policies.of(order.payment_method, &order.account) {
            // This order exists only so that we can return a payment. There is nothing to deliver.
            LatePaymentPolicy::Fulfil if !order.was_placed() => LatePaymentPolicy::Hold,
            policy => policy,
        };
        metrics::counter!("extra_payments_total", "kind" => kind.as_str(), "policy" => policy.as_str()).increment(1);
        if policy == LatePaymentPolicy::Fulfil && closed && told.source == Source::Notice {
            // Query the gateway first: the notice may be older than a refund.
            let mut case = new_case((kind, Some(id)), told, self.clock);
            case.evidence[late::POLICY] = policy.as_str().into();
            self.effects.fulfil.push((id, case.id));
            self.effects.cases.push(case);
            return Verdict::NotPending;
        }
        if policy == LatePaymentPolicy::Fulfil
            && let Ok(next) = order.status.next(OrderEvent::PaymentHonoured)
        {
            let paid = Paid { id, trade_no: trade_no.clone(), paid_at };
            self.effects.events.push(events::order_paid(order, trade_no, paid_at));
            late::take(order, next, &paid);
            self.effects.honoured.push(paid);
            let case = new_case((kind, Some(id)), told, self.clock);
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

    /// Whether a trade already has its row, although it is not the order's own trade.
    fn knows(&self, method: PaymentMethod, trade_no: &TradeNo) -> bool {
        self.recorded.contains(&(method, trade_no.as_str().to_owned()))
    }

    fn closed(&mut self, told: &Notification) -> Verdict {
        let Some(order) = self.orders.get_mut(&told.order_no) else { return Verdict::UnknownOrder };
        match order.status.next(OrderEvent::ClosedUnpaid) {
            Ok(next) => {
                self.effects.closed.push(order.id);
                self.effects.events.push(events::order_closed(order, self.now));
                order.status = next;
                order.version += 1;
                Verdict::Settled
            }
            Err(_) if order.status == OrderStatus::Closed => Verdict::Duplicate,
            // The close was under way while the payment settled. The payment wins.
            Err(_) => Verdict::Ignored,
        }
    }

    fn case(&mut self, verdict: Verdict, kind: CaseKind, order_id: Option<OrderId>, told: &Notification) -> Verdict {
        let case = new_case((kind, order_id), told, self.clock);
        self.effects.cases.push(case);
        verdict
    }
}

fn new_case((kind, order_id): (CaseKind, Option<OrderId>), told: &Notification, clock: &Clock) -> NewCase {
    NewCase {
        id: CaseId::from_u128(clock.fresh_bits()),
        kind,
        order_id,
        subject_ref: case_number(told),
        evidence: evidence(told),
    }
}

/// Whether a message is about the account and the app that the order was placed with. The account's current apps count
/// too, because a credential may have been renewed under one of them.
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

/// Whether a message is about another gateway, merchant or account than the order's. Returns the verdict and the kind
/// of case.
fn elsewhere(order: &Order, told: &Notification) -> Option<(Verdict, CaseKind)> {
    if order.payment_method != told.method {
        return Some((Verdict::WrongMethod, CaseKind::WrongMethod));
    }
    (!is_whose_it_says(told, order)).then_some((Verdict::WrongMerchant, CaseKind::WrongMerchant))
}

/// The number that identifies a case among those of its kind: the refund's, the trade's, or else the message's.
fn case_number(told: &Notification) -> String {
    match &told.fact {
        Fact::Refund { refund_no, .. } => refund_no.clone(),
        Fact::Paid { trade_no, .. } => trade_no.to_string(),
        Fact::PaidAndReturned(trade) => trade.trade_no.to_string(),
        Fact::ClosedUnpaid | Fact::Nothing => told.notice_id.clone(),
    }
}

/// What a person needs to judge the case, without the payer's identity. The original bytes are in `callbacks`.
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
        Fact::Paid { trade_no, amount, paid_at } => {
            evidence["trade_no"] = trade_no.as_str().into();
            evidence["paid_at"] = json!(paid_at.format(&Rfc3339).ok());
            evidence["amount"] = json!(money(amount));
        }
        Fact::PaidAndReturned(trade) => evidence["trade_no"] = trade.trade_no.as_str().into(),
        Fact::Refund { trade, refund_no, report } => {
            evidence["trade_no"] = trade.trade_no.as_str().into();
            evidence["refund_no"] = refund_no.as_str().into();
            evidence["amount"] = json!(money(&report.amount));
            evidence["outcome"] = outcome(report.state).into();
            evidence["gateway_refund_no"] = json!(report.gateway_refund_no);
            evidence["succeeded_at"] = json!(report.at.and_then(|at| at.format(&Rfc3339).ok()));
        }
        Fact::ClosedUnpaid | Fact::Nothing => {}
    }
    evidence
}

/// The state of a refund in the evidence of a case. Statements in `tables` and older cases have these words.
const fn outcome(state: RefundState) -> &'static str {
    match state {
        RefundState::Succeeded => "succeeded",
        RefundState::Closed => "closed",
        RefundState::Abnormal => "abnormal",
        RefundState::Processing | RefundState::Absent => "hint",
    }
}

/// What a batch writes. Each kind takes one statement.
#[derive(Default)]
struct Effects {
    paid: Vec<Paid>,
    closed: Vec<OrderId>,
    extra: Vec<ExtraPayment>,
    events: Vec<Event>,
    cases: Vec<NewCase>,
    /// Orders that become paid by a late payment. Their cases, already resolved, are in `decided`.
    honoured: Vec<Paid>,
    /// Late payments that the policy will fulfil after a query to the gateway: the order and the case.
    fulfil: Vec<(OrderId, CaseId)>,
    decided: Vec<NewCase>,
    /// Each with the index of its case in `cases`.
    returns: Vec<(Return, usize)>,
}

impl Effects {
    /// The orders for which an extra payment may have arrived, or whose extra payment may now have become their own.
    fn with_extra_money(&self) -> Vec<OrderId> {
        let noted = self.extra.iter().map(|extra| extra.order_id);
        let honoured = self.honoured.iter().map(|paid| paid.id);
        let of_cases = self.cases.iter().filter(|case| case.kind.is_of_money_held()).filter_map(|case| case.order_id);
        let orders: HashSet<OrderId> = noted.chain(honoured).chain(of_cases).collect();
        orders.into_iter().collect()
    }

    async fn write(mut self, tx: &mut PgConnection, now: OffsetDateTime) -> Result<(), DbError> {
        if !self.paid.is_empty() {
            orders::mark_paid(tx, &self.paid, now).await?;
            let ids: Vec<OrderId> = self.paid.iter().map(|paid| paid.id).collect();
            jobs::end_checks(tx, &ids).await?;
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
            jobs::end_checks(tx, &ids).await?;
            cases::record_resolved(tx, &self.decided, (late::BY_POLICY, late::POLICY), now).await?;
        }
        for (back, case) in &self.returns {
            late::give_back(tx, back, &mut self.cases[*case].evidence, now).await?;
        }
        if !self.cases.is_empty() {
            self.events.extend(open_cases(tx, &self.cases, now).await?);
        }
        for (order_id, case_id) in &self.fulfil {
            let check = JobRequest::Check(*order_id, CheckRequest::of_case(*case_id, Asked::Fulfil));
            jobs::request(&mut *tx, &check, Duration::ZERO).await?;
        }
        // Updates what the buyer reads about payments that were not owed.
        extra::follow(tx, &self.with_extra_money(), now).await?;
        if !self.events.is_empty() {
            outbox::append(tx, &self.events, now).await?;
        }
        Ok(())
    }
}

/// Opens or reopens cases and returns the events that announce them.
///
/// # Errors
/// [`DbError`].
pub async fn open_cases(tx: &mut PgConnection, new: &[NewCase], now: OffsetDateTime) -> Result<Vec<Event>, DbError> {
    let opened = case_facts::open(tx, new, now).await?;
    Ok(opened.iter().map(events::case_opened).collect())
}
