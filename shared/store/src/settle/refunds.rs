//! Money on its way back: asking for it, and what the gateway says of it. Facts of a callback and of a query meet here.
//!
//! Everything happens under the lock of the order's row, so the refunds of an order stand still while one of them moves.

use domain::message::event::Event;
use domain::message::job::{CheckRequest, JobRequest, RefundRequest};
use domain::{
    CaseId, CaseKind, Fact, Money, Notification, OrderId, OrderStatus, PaymentMethod, Policies, RefundEvent, RefundId,
    RefundNo, RefundOutcome, RefundStatus, TradeNo, status_by_refunds,
};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::events;
use crate::error::DbError;
use crate::settle::{late, open_cases, outside};
use crate::tables::cases::NewCase;
use crate::tables::orders::Order;
use crate::tables::refunds::{Move, NewRefund, Refund};
use crate::tables::transactions::Payment;
use crate::tables::{cases, events as outbox, extra, jobs, orders, refunds, transactions};

/// How long after its payment money can go back at WeChat Pay; Alipay's contract decides for itself.
const WECHAT_PERIOD: Duration = Duration::days(365);
/// How many refunds of one trade WeChat Pay takes.
const WECHAT_REFUNDS: usize = 50;

/// When a refund that has failed is asked about once more.
const LOOK_BACK: Duration = Duration::days(1);

/// A wish for money back.
#[derive(Debug, Clone)]
pub struct Wish {
    /// A fresh id.
    pub id: RefundId,
    /// Of which order.
    pub order_id: OrderId,
    /// A payment other than the order's own: late, or a second one.
    pub extra_trade: Option<TradeNo>,
    /// A fresh number, or one derived from the trade.
    pub refund_no: RefundNo,
    /// How much; the rest if not said.
    pub amount: Option<Money>,
    /// What the buyer reads.
    pub reason: Option<String>,
    /// Who asks.
    pub requested_by: String,
}

/// Why money cannot go back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefundRefusal {
    /// No such order.
    #[error("there is no such order")]
    NoOrder,
    /// Nothing was paid.
    #[error("the order is not paid")]
    NotPaid,
    /// Another refund of the order is on its way.
    #[error("another refund of the order is on its way")]
    InProgress,
    /// Everything went back, or is reserved.
    #[error("the whole amount has been refunded or is reserved")]
    AlreadyRefunded,
    /// More than is left.
    #[error("at most {0} yuan can be refunded")]
    TooMuch(Money),
    /// A limit of the gateway, or a refund that is not ours and that a person must look at first.
    #[error("{0}")]
    NotRefundable(&'static str),
}

/// Writes refund, transaction, job and the order's state, if the order allows it.
///
/// # Errors
/// [`DbError`]; inside, why the order does not allow it.
pub async fn ask(
    tx: &mut PgConnection,
    wish: &Wish,
    now: OffsetDateTime,
) -> Result<Result<Refund, RefundRefusal>, DbError> {
    let Some(order) = orders::lock_one(tx, wish.order_id).await? else { return Ok(Err(RefundRefusal::NoOrder)) };
    let trade_no = match (&wish.extra_trade, &order.trade_no) {
        (Some(trade_no), _) => trade_no,
        (None, Some(trade_no)) if order.status.was_paid() => trade_no,
        (None, _) => return Ok(Err(RefundRefusal::NotPaid)),
    };
    let payment = transactions::payment_of_trade(tx, &order, trade_no).await?;
    let Some(payment) = payment else { return Ok(Err(RefundRefusal::NotPaid)) };
    let all = refunds::of_order(&mut *tx, order.id).await?;
    if cases::is_open(tx, CaseKind::UnknownRefund, order.id).await? {
        return Ok(Err(RefundRefusal::NotRefundable("a refund that is not ours waits for a person to look")));
    }
    let amount = match allowed(&all, &payment, now) {
        Ok(left) => match wish.amount.unwrap_or(left) {
            amount if amount > left => return Ok(Err(RefundRefusal::TooMuch(left))),
            amount => amount,
        },
        Err(refusal) => return Ok(Err(refusal)),
    };
    let new = NewRefund {
        id: wish.id,
        order_id: order.id,
        transaction_id: payment.id,
        refund_no: wish.refund_no.clone(),
        amount,
        reason: wish.reason.clone(),
        requested_by: wish.requested_by.clone(),
    };
    refunds::create(tx, &new, now).await?;
    follow(tx, &order, now).await?;
    follow_extra(tx, &order, trade_no, now).await?;
    let refund = refunds::get(&mut *tx, wish.id).await?.ok_or(DbError::Moved)?;
    Ok(Ok(refund))
}

/// How much of a payment is left to go back.
fn allowed(all: &[Refund], payment: &Payment, now: OffsetDateTime) -> Result<Money, RefundRefusal> {
    if all.iter().any(|refund| refund.status.in_flight()) {
        return Err(RefundRefusal::InProgress);
    }
    // A refund that failed was never one of the gateway's.
    let of_payment: Vec<&Refund> =
        all.iter().filter(|refund| refund.transaction_id == payment.id && refund.status.reserves()).collect();
    if payment.payment_method == PaymentMethod::Wechat {
        if now - payment.paid_at > WECHAT_PERIOD {
            return Err(RefundRefusal::NotRefundable("WeChat Pay refunds for one year after the payment"));
        }
        if of_payment.len() >= WECHAT_REFUNDS {
            return Err(RefundRefusal::NotRefundable("WeChat Pay refunds a payment 50 times at most"));
        }
    }
    // What the gateway says went back is gone, booked or not.
    let reserved = outside::sum(of_payment.iter().copied()).max(payment.returned);
    let left = Money::from_fen(payment.amount.fen() - reserved.fen()).unwrap_or(Money::ZERO);
    if left.is_positive() { Ok(left) } else { Err(RefundRefusal::AlreadyRefunded) }
}

/// What the gateway says of a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundFact {
    /// The money went back.
    Returned {
        /// This refund's amount, where it is told.
        amount: Option<Money>,
        /// What has gone back of the trade in all, where it is stated.
        returned: Option<Money>,
        /// The gateway's number.
        gateway_refund_no: Option<String>,
        /// By the gateway's clock.
        at: Option<OffsetDateTime>,
    },
    /// It will not go back under this number.
    Failed {
        /// In words, for the event and a person.
        why: String,
        /// The gateway closed it, rather than never having known it.
        closed: bool,
    },
    /// It could not be delivered.
    Undeliverable {
        /// The gateway's number.
        gateway_refund_no: Option<String>,
    },
}

impl RefundFact {
    /// For logs and labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            RefundFact::Returned { .. } => "succeeded",
            RefundFact::Failed { .. } => "failed",
            RefundFact::Undeliverable { .. } => "abnormal",
        }
    }
}

/// What a fact did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundVerdict {
    /// The refund moved.
    Settled,
    /// It stood there already, or has gone further.
    Duplicate,
    /// The amount is not the refund's: a case, and no move.
    AmountMismatch,
}

/// Lets a fact move its refund, and the order with it: state, transaction, events, cases.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn settle(
    tx: &mut PgConnection,
    refund: &Refund,
    fact: &RefundFact,
    policies: &Policies,
    clock: &Clock,
) -> Result<RefundVerdict, DbError> {
    let now = clock.now();
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    // Read again under the lock: another fact may have been faster.
    let refund = refunds::get(&mut *tx, refund.id).await?.ok_or(DbError::Moved)?;
    if let RefundFact::Returned { amount: Some(amount), .. } = fact
        && *amount != refund.amount
    {
        let (amount, requested) = (amount.to_string(), refund.amount.to_string());
        let told = json!({ "refund_no": refund.refund_no, "amount": amount, "requested_amount": requested });
        open(tx, &case_of(clock, CaseKind::AmountMismatch, &refund, told), now).await?;
        return Ok(RefundVerdict::AmountMismatch);
    }
    let event = match fact {
        RefundFact::Returned { .. } => RefundEvent::Returned,
        RefundFact::Failed { .. } => RefundEvent::Failed,
        RefundFact::Undeliverable { .. } => RefundEvent::Undeliverable,
    };
    // Whoever speaks of a refund that we never sent proves that it was sent.
    let mut from = refund.status;
    if from == RefundStatus::Pending {
        refunds::mark_sent(tx, refund.id, now).await?;
        from = RefundStatus::Processing;
    }
    let Some(to) = from.next(event) else {
        no_move(tx, &refund, fact, clock).await?;
        return Ok(RefundVerdict::Duplicate);
    };
    refunds::apply(tx, &step(&refund, (from, to), fact, now), now).await?;
    let after = follow(tx, &order, now).await?;
    follow_extra(tx, &after, &refund.trade_no, now).await?;
    tell(tx, (&after, &refund, from), fact, clock).await?;
    if after.status == OrderStatus::Refunded && order.status != OrderStatus::Refunded {
        outbox::append(tx, &[events::order_refunded(&after, &refund)], now).await?;
    }
    if let RefundFact::Returned { returned: Some(sum), .. } = fact {
        crate::tables::outside::note_returned(tx, refund.transaction_id, *sum).await?;
    }
    if to.is_final() {
        let stated = if let RefundFact::Returned { returned, .. } = fact { *returned } else { None };
        ended(tx, &refund, (to, stated), clock).await?;
    }
    // Also when it is stuck: it holds up no other refund any more.
    late::give_back_what_waited(tx, &after, policies, clock).await?;
    count(&refund, fact, now);
    Ok(RefundVerdict::Settled)
}

/// A refund has ended: what went back beside it can be recognised now.
async fn ended(
    tx: &mut PgConnection,
    refund: &Refund,
    (to, stated): (RefundStatus, Option<Money>),
    clock: &Clock,
) -> Result<(), DbError> {
    outside::compare_again(tx, refund, stated, clock).await?;
    if to == RefundStatus::Failed {
        // Whether the money went back another way, the gateway tells of the whole trade.
        let sync = JobRequest::Check(refund.order_id, CheckRequest::sync());
        jobs::request(&mut *tx, &sync, Duration::ZERO).await?;
    }
    Ok(())
}

/// A refund that has failed was asked about once more, and the gateway knows nothing of it.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn looked_back(tx: &mut PgConnection, refund: &Refund, clock: &Clock) -> Result<(), DbError> {
    outside::compare_again(tx, refund, None, clock).await
}

/// Takes `amount` for what a refund returns, as two people have accepted the gateway's word. Changes nothing where the payment does
/// not hold that much beside its other refunds, or the refund is over: the fact is a mismatch then, as before.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn accept_amount(
    tx: &mut PgConnection,
    refund: &Refund,
    amount: Money,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    orders::lock_one(tx, refund.order_id).await?;
    let all = refunds::of_order(&mut *tx, refund.order_id).await?;
    let others = all.iter().filter(|other| other.id != refund.id && other.transaction_id == refund.transaction_id);
    let reserved: i64 = others.filter(|other| other.status.reserves()).map(|other| other.amount.fen()).sum();
    if !amount.is_positive() || reserved + amount.fen() > refund.payment_amount.fen() {
        return Ok(());
    }
    refunds::note_amount(tx, refund.id, amount, now).await
}

/// A fact that moves nothing can still bring the gateway's number, without which nobody can send the refund another way.
/// And what a gateway still has in hand of a refund that we have given up is for a person.
async fn no_move(tx: &mut PgConnection, refund: &Refund, fact: &RefundFact, clock: &Clock) -> Result<(), DbError> {
    let RefundFact::Undeliverable { gateway_refund_no } = fact else { return Ok(()) };
    match (refund.status, gateway_refund_no) {
        (RefundStatus::Abnormal, Some(number)) if refund.gateway_refund_no.is_none() => {
            refunds::note_number(tx, refund.id, number, clock.now()).await
        }
        (RefundStatus::Failed, number) => {
            let evidence = json!({ "refund_no": refund.refund_no, "gateway_refund_no": number, "found": "abnormal" });
            open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), clock.now()).await
        }
        _ => Ok(()),
    }
}

/// How refunds end, and after how long.
fn count(refund: &Refund, fact: &RefundFact, now: OffsetDateTime) {
    let labels = [("gateway", refund.payment_method.as_str()), ("outcome", fact.as_str())];
    metrics::counter!("refunds_total", &labels).increment(1);
    let took = (now - refund.created_at).as_seconds_f64();
    metrics::histogram!("refund_duration_seconds", &labels).record(took.max(0.0));
}

fn step(refund: &Refund, (from, to): (RefundStatus, RefundStatus), fact: &RefundFact, now: OffsetDateTime) -> Move {
    let (gateway_refund_no, succeeded_at, error) = match fact {
        RefundFact::Returned { gateway_refund_no, at, .. } => {
            (gateway_refund_no.clone(), Some(at.unwrap_or(now)), None)
        }
        RefundFact::Failed { why, .. } => (None, None, Some(why.clone())),
        RefundFact::Undeliverable { gateway_refund_no } => {
            (gateway_refund_no.clone(), None, Some("the gateway could not deliver it".to_owned()))
        }
    };
    Move { id: refund.id, from, to, gateway_refund_no, succeeded_at, error }
}

/// Lets an order follow its refunds, those of its own payment; returns the order as it is then.
pub(super) async fn follow(tx: &mut PgConnection, order: &Order, now: OffsetDateTime) -> Result<Order, DbError> {
    let mut order = order.clone();
    if !order.status.was_paid() {
        return Ok(order);
    }
    let all = refunds::of_order(&mut *tx, order.id).await?;
    let own: Vec<&Refund> = all.iter().filter(|refund| Some(&refund.trade_no) == order.trade_no.as_ref()).collect();
    let succeeded = own.iter().filter(|refund| refund.status == RefundStatus::Succeeded);
    // A refund that had failed can be found returned beside its successor: that is a case, and the order is returned whole.
    let returned = Money::from_fen(succeeded.map(|refund| refund.amount.fen()).sum()).unwrap_or(Money::MAX);
    let returned = returned.min(order.amount);
    let in_flight = own.iter().any(|refund| refund.status.in_flight());
    let to = status_by_refunds(in_flight, returned, order.amount);
    if (to, returned) != (order.status, order.refunded_amount) {
        orders::mark_by_refunds(tx, &order, to, returned, now).await?;
        (order.status, order.refunded_amount, order.version) = (to, returned, order.version + 1);
    }
    Ok(order)
}

/// Lets what the buyer reads of money that was not owed follow a refund of it.
async fn follow_extra(
    tx: &mut PgConnection,
    order: &Order,
    trade_no: &TradeNo,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    if order.trade_no.as_ref() == Some(trade_no) { Ok(()) } else { extra::follow(tx, &[order.id], now).await }
}

/// Events and cases of a move.
async fn tell(
    tx: &mut PgConnection,
    (order, refund, from): (&Order, &Refund, RefundStatus),
    fact: &RefundFact,
    clock: &Clock,
) -> Result<(), DbError> {
    let now = clock.now();
    let mut told: Vec<Event> = Vec::new();
    match fact {
        RefundFact::Returned { at, .. } => {
            told.push(events::refund_succeeded(order, refund, at.unwrap_or(now)));
            cases::end_of_refund(tx, refund, "the refund has succeeded", now).await?;
            if from == RefundStatus::Failed {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "found": "returned" });
                open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), now).await?;
            }
        }
        RefundFact::Failed { why, closed } => {
            told.push(events::refund_failed(order, refund, why));
            // Money that was not owed is still owed back: its case may have been resolved when this refund was asked for.
            if *closed || order.trade_no.as_ref() != Some(&refund.trade_no) {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "why": why });
                open(tx, &case_of(clock, CaseKind::RefundClosed, refund, evidence), now).await?;
            }
        }
        RefundFact::Undeliverable { gateway_refund_no } => {
            let evidence = json!({
                "refund_no": refund.refund_no, "amount": refund.amount, "gateway_refund_no": gateway_refund_no,
            });
            open(tx, &case_of(clock, CaseKind::RefundAbnormal, refund, evidence), now).await?;
        }
    }
    outbox::append(tx, &told, now).await?;
    match fact {
        // It is asked about daily until it ends.
        RefundFact::Undeliverable { .. } => Ok(()),
        // Nobody signed that the gateway knows no such refund: one more question, much later.
        RefundFact::Failed { closed: false, .. } => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), LOOK_BACK).await
        }
        RefundFact::Returned { .. } | RefundFact::Failed { .. } => jobs::drop_refund(tx, refund.id).await,
    }
}

/// Takes what a callback tells of a refund; a hint only brings the question forward. `None`: no refund of ours has this number,
/// or the one that has it returns another trade, which a person must judge.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn notice(
    tx: &mut PgConnection,
    told: &Notification,
    order: &Order,
    policies: &Policies,
    clock: &Clock,
) -> Result<Option<RefundVerdict>, DbError> {
    let Fact::Refund { trade, refund_no, amount, gateway_refund_no, at, outcome } = &told.fact else {
        return Ok(None);
    };
    // Where the payment is, and not where the order is: people may return a payment of another account.
    let paid_there = |refund: &Refund| {
        let account = refund.account.as_ref().unwrap_or(&order.account);
        (refund.payment_method, account) == (told.method, &told.account)
    };
    let found = refunds::by_refund_no(&mut *tx, refund_no).await?;
    let found =
        found.filter(|refund| refund.order_id == order.id && refund.trade_no == trade.trade_no && paid_there(refund));
    let Some(refund) = found else { return Ok(None) };
    let (gateway_refund_no, amount, at) = (gateway_refund_no.clone(), *amount, *at);
    let fact = match outcome {
        RefundOutcome::Succeeded => RefundFact::Returned { amount, returned: None, gateway_refund_no, at },
        RefundOutcome::Closed => RefundFact::Failed { why: "the gateway closed it".to_owned(), closed: true },
        RefundOutcome::Abnormal => RefundFact::Undeliverable { gateway_refund_no },
        RefundOutcome::Hint if refund.status == RefundStatus::Succeeded => return Ok(Some(RefundVerdict::Duplicate)),
        // Of a failed one too: an earlier request may have had its effect late.
        RefundOutcome::Hint => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), Duration::ZERO).await?;
            return Ok(Some(RefundVerdict::Settled));
        }
    };
    settle(tx, &refund, &fact, policies, clock).await.map(Some)
}

/// A case about a refund of ours.
pub fn case_of(clock: &Clock, kind: CaseKind, refund: &Refund, evidence: serde_json::Value) -> NewCase {
    NewCase { gateway_no: refund.refund_no.to_string(), ..case(clock, kind, refund.order_id, evidence) }
}

/// A case about an order; the caller says under which number.
pub(super) fn case(clock: &Clock, kind: CaseKind, order_id: OrderId, evidence: serde_json::Value) -> NewCase {
    let id = CaseId::from_u128(clock.fresh_bits());
    NewCase { id, kind, order_id: Some(order_id), gateway_no: String::new(), evidence }
}

/// Opens one case, with its event.
///
/// # Errors
/// [`DbError`].
pub async fn open(tx: &mut PgConnection, case: &NewCase, now: OffsetDateTime) -> Result<(), DbError> {
    let opened = open_cases(tx, std::slice::from_ref(case), now).await?;
    outbox::append(tx, &opened, now).await
}
