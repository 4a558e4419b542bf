//! Our refunds: requesting them, and settling what the gateway reports about them. Facts from callbacks and from
//! queries both arrive here.
//!
//! Everything runs under the lock of the order's row, so the order's other refunds cannot change while one of them
//! moves.

use domain::message::event::Event;
use domain::message::job::{CheckRequest, JobRequest, RefundRequest};
use domain::{
    CaseKind, Fact, Money, Notification, OrderId, OrderStatus, Policies, RefundEvent, RefundId, RefundNo, RefundReport,
    RefundState, RefundStatus, TradeNo, status_by_refunds,
};
use gateway::limits;
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::events;
use crate::error::{DbError, NotDone};
use crate::settle::opening::{case_of, open};
use crate::settle::{late, outside};
use crate::tables::orders::Order;
use crate::tables::refunds::{Move, NewRefund, Refund};
use crate::tables::transactions::Payment;
use crate::tables::{cases, events as outbox, extra, jobs, orders, refunds, transactions};

/// How long after a refund fails we query it once more.
const LOOK_BACK: Duration = Duration::days(1);

/// A request for a refund.
#[derive(Debug, Clone)]
pub struct Wish {
    /// A new id.
    pub id: RefundId,
    /// The order to refund.
    pub order_id: OrderId,
    /// The trade, if it is not the order's own payment but a late or second one.
    pub extra_trade: Option<TradeNo>,
    /// A new number, or one derived from the trade.
    pub refund_no: RefundNo,
    /// The amount. `None`: everything that is left.
    pub amount: Option<Money>,
    /// The reason that the buyer reads.
    pub reason: Option<String>,
    /// Who requests the refund.
    pub requested_by: String,
}

/// The reason a refund is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefundRefusal {
    /// No such order.
    #[error("there is no such order")]
    NoOrder,
    /// The order was not paid.
    #[error("the order is not paid")]
    NotPaid,
    /// Another refund of the order is in flight.
    #[error("another refund of the order is on its way")]
    InProgress,
    /// The whole amount has been refunded or is reserved.
    #[error("the whole amount has been refunded or is reserved")]
    AlreadyRefunded,
    /// More than is left to refund.
    #[error("at most {0} yuan can be refunded")]
    TooMuch(Money),
    /// A limit of the gateway, or a refund that is not ours and that a person must check first.
    #[error("{0}")]
    NotRefundable(&'static str),
}

/// Writes the refund, its transaction, its job and the order's new state, if the order allows a refund.
///
/// # Errors
/// [`NotDone`], with the reason if the order does not allow it.
pub async fn ask(tx: &mut PgConnection, wish: &Wish, now: OffsetDateTime) -> Result<Refund, NotDone<RefundRefusal>> {
    let refused = |refusal| Err(NotDone::Refused(refusal));
    let Some(order) = orders::lock_one(tx, wish.order_id).await? else { return refused(RefundRefusal::NoOrder) };
    let trade_no = match (&wish.extra_trade, &order.trade_no) {
        (Some(trade_no), _) => trade_no,
        (None, Some(trade_no)) if order.status.was_paid() => trade_no,
        (None, _) => return refused(RefundRefusal::NotPaid),
    };
    let payment = transactions::payment_of_trade(tx, &order, trade_no).await?;
    let Some(payment) = payment else { return refused(RefundRefusal::NotPaid) };
    let all = refunds::of_order(&mut *tx, order.id).await?;
    if cases::is_open(tx, CaseKind::UnknownRefund, order.id).await? {
        return refused(RefundRefusal::NotRefundable("a person must first check a refund that is not ours"));
    }
    let left = allowed(&all, &payment, now).map_err(NotDone::Refused)?;
    let amount = wish.amount.unwrap_or(left);
    if amount > left {
        return refused(RefundRefusal::TooMuch(left));
    }
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
    Ok(refunds::get(&mut *tx, wish.id).await?.ok_or(DbError::Moved)?)
}

/// How much of a payment can still be refunded.
fn allowed(all: &[Refund], payment: &Payment, now: OffsetDateTime) -> Result<Money, RefundRefusal> {
    if all.iter().any(|refund| refund.status.in_flight()) {
        return Err(RefundRefusal::InProgress);
    }
    // A failed refund never existed at the gateway.
    let of_payment: Vec<&Refund> =
        all.iter().filter(|refund| refund.transaction_id == payment.id && refund.status.reserves()).collect();
    if let Some(text) = limits(payment.payment_method).refuses(now - payment.paid_at, of_payment.len()) {
        return Err(RefundRefusal::NotRefundable(text));
    }
    // What the gateway says was refunded is gone, whether or not we have booked it.
    let reserved = outside::sum(of_payment.iter().copied()).max(payment.returned);
    let left = Money::from_fen(payment.amount.fen() - reserved.fen()).unwrap_or(Money::ZERO);
    if left.is_positive() { Ok(left) } else { Err(RefundRefusal::AlreadyRefunded) }
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundVerdict {
    /// The refund moved.
    Settled,
    /// The refund was already in this state or a later one.
    Duplicate,
    /// The amount differs from the refund's: we open a case, and the refund does not move.
    AmountMismatch,
}

/// The name of a final state, for logs and metrics.
pub const fn named(state: RefundState) -> &'static str {
    match state {
        RefundState::Succeeded => "succeeded",
        RefundState::Absent | RefundState::Closed => "failed",
        RefundState::Abnormal => "abnormal",
        RefundState::Processing => "processing",
    }
}

/// Applies what the gateway states about a refund to its row and to the order: states, transaction, events, cases. The
/// caller passes `Absent` only if the gateway has refused the request, so that none can take effect any more.
/// `Processing` makes the next query due now.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn settle(
    tx: &mut PgConnection,
    refund: &Refund,
    report: &RefundReport,
    policies: &Policies,
    clock: &Clock,
) -> Result<RefundVerdict, DbError> {
    let now = clock.now();
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    // Read again under the lock: another fact may have arrived first.
    let refund = refunds::get(&mut *tx, refund.id).await?.ok_or(DbError::Moved)?;
    if report.state == RefundState::Succeeded
        && let Some(amount) = report.amount
        && amount != refund.amount
    {
        let (amount, requested) = (amount.to_string(), refund.amount.to_string());
        let told = json!({ "refund_no": refund.refund_no, "amount": amount, "requested_amount": requested });
        open(tx, &case_of(clock, CaseKind::AmountMismatch, &refund, told), now).await?;
        return Ok(RefundVerdict::AmountMismatch);
    }
    let event = match report.state {
        RefundState::Succeeded => RefundEvent::Returned,
        RefundState::Absent | RefundState::Closed => RefundEvent::Failed,
        RefundState::Abnormal => RefundEvent::Undeliverable,
        RefundState::Processing if refund.status == RefundStatus::Succeeded => return Ok(RefundVerdict::Duplicate),
        // Also for a failed refund: an earlier request may have taken effect late.
        RefundState::Processing => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), Duration::ZERO).await?;
            return Ok(RefundVerdict::Settled);
        }
    };
    // A fact about a refund that we have not marked as sent proves that it was sent.
    let mut from = refund.status;
    if from == RefundStatus::Pending {
        refunds::mark_sent(tx, refund.id, now).await?;
        from = RefundStatus::Processing;
    }
    let Some(to) = from.next(event) else {
        no_move(tx, &refund, report, clock).await?;
        return Ok(RefundVerdict::Duplicate);
    };
    refunds::apply(tx, &step(&refund, (from, to), report, now), now).await?;
    let after = follow(tx, &order, now).await?;
    follow_extra(tx, &after, &refund.trade_no, now).await?;
    tell(tx, (&after, &refund, from), report, clock).await?;
    if after.status == OrderStatus::Refunded && order.status != OrderStatus::Refunded {
        outbox::append(tx, &[events::order_refunded(&after, &refund)], now).await?;
    }
    if let Some(sum) = report.returned {
        crate::tables::outside::note_returned(tx, refund.transaction_id, sum).await?;
    }
    if to.is_final() {
        ended(tx, &refund, (to, report.returned), clock).await?;
    }
    // This also applies to an abnormal refund: it no longer blocks the order's other refunds.
    late::give_back_what_waited(tx, &after, policies, clock).await?;
    count(&refund, report.state, now);
    Ok(RefundVerdict::Settled)
}

/// Runs when a refund becomes final. Money that was returned outside this service can be recognised now.
async fn ended(
    tx: &mut PgConnection,
    refund: &Refund,
    (to, stated): (RefundStatus, Option<Money>),
    clock: &Clock,
) -> Result<(), DbError> {
    outside::compare_again(tx, refund, stated, clock).await?;
    if to == RefundStatus::Failed {
        // The money may have been returned in another way. A query about the whole trade shows it.
        let sync = JobRequest::Check(refund.order_id, CheckRequest::sync());
        jobs::request(&mut *tx, &sync, Duration::ZERO).await?;
    }
    Ok(())
}

/// We queried a failed refund once more, and the gateway does not know it.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn looked_back(tx: &mut PgConnection, refund: &Refund, clock: &Clock) -> Result<(), DbError> {
    outside::compare_again(tx, refund, None, clock).await
}

/// Changes the refund's amount to `amount`, because two people have accepted what the gateway states. Nothing changes
/// if the payment does not cover that amount beside its other refunds, or if the refund is final. The fact is then an
/// amount mismatch, as before.
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

/// A report that causes no move can still bring the gateway's refund number, which a person needs to send the refund
/// another way. If the gateway still holds a refund that we have recorded as failed, we open a case for a person.
async fn no_move(tx: &mut PgConnection, refund: &Refund, report: &RefundReport, clock: &Clock) -> Result<(), DbError> {
    if report.state != RefundState::Abnormal {
        return Ok(());
    }
    match (refund.status, &report.gateway_refund_no) {
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

/// Counts how refunds finish and how long they take.
fn count(refund: &Refund, state: RefundState, now: OffsetDateTime) {
    let labels = [("gateway", refund.payment_method.as_str()), ("outcome", named(state))];
    metrics::counter!("refunds_total", &labels).increment(1);
    let took = (now - refund.created_at).as_seconds_f64();
    metrics::histogram!("refund_duration_seconds", &labels).record(took.max(0.0));
}

/// Why the refund did not reach the buyer, in words, for the event and for a person.
fn failure(refund: &Refund, state: RefundState) -> Option<String> {
    match state {
        RefundState::Succeeded | RefundState::Processing => None,
        RefundState::Closed => Some("the gateway closed it".to_owned()),
        RefundState::Abnormal => Some("the gateway could not deliver it".to_owned()),
        RefundState::Absent => Some(match &refund.refused_code {
            Some(code) => format!("the gateway refused it ({code}) and knows no such refund"),
            None => "the gateway knows no such refund".to_owned(),
        }),
    }
}

fn step(refund: &Refund, (from, to): (RefundStatus, RefundStatus), report: &RefundReport, now: OffsetDateTime) -> Move {
    let succeeded_at = (report.state == RefundState::Succeeded).then(|| report.at.unwrap_or(now));
    let gateway_refund_no = report.gateway_refund_no.clone();
    Move { id: refund.id, from, to, gateway_refund_no, succeeded_at, error: failure(refund, report.state) }
}

/// Updates an order from the refunds of its own payment and returns the updated order.
pub(super) async fn follow(tx: &mut PgConnection, order: &Order, now: OffsetDateTime) -> Result<Order, DbError> {
    let mut order = order.clone();
    if !order.status.was_paid() {
        return Ok(order);
    }
    let all = refunds::of_order(&mut *tx, order.id).await?;
    let own: Vec<&Refund> = all.iter().filter(|refund| Some(&refund.trade_no) == order.trade_no.as_ref()).collect();
    let succeeded = own.iter().filter(|refund| refund.status == RefundStatus::Succeeded);
    // A failed refund can turn out to be returned after its successor was returned too. That opens a case, and the
    // order counts as fully refunded.
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

/// Updates what the buyer reads about a payment that was not owed, after a refund of it has changed.
async fn follow_extra(
    tx: &mut PgConnection,
    order: &Order,
    trade_no: &TradeNo,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    if order.trade_no.as_ref() == Some(trade_no) { Ok(()) } else { extra::follow(tx, &[order.id], now).await }
}

/// Writes the events and cases of a move.
async fn tell(
    tx: &mut PgConnection,
    (order, refund, from): (&Order, &Refund, RefundStatus),
    report: &RefundReport,
    clock: &Clock,
) -> Result<(), DbError> {
    let now = clock.now();
    let mut told: Vec<Event> = Vec::new();
    let why = failure(refund, report.state);
    match report.state {
        RefundState::Succeeded => {
            told.push(events::refund_succeeded(order, refund, report.at.unwrap_or(now)));
            cases::end_of_refund(tx, refund, "the refund has succeeded", now).await?;
            if from == RefundStatus::Failed {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "found": "returned" });
                open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), now).await?;
            }
        }
        RefundState::Absent | RefundState::Closed => {
            told.push(events::refund_failed(order, refund, why.as_deref().unwrap_or_default()));
            // A payment that was not owed must still be returned. Its case may have been resolved when this refund was
            // requested.
            if report.state == RefundState::Closed || order.trade_no.as_ref() != Some(&refund.trade_no) {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "why": why });
                open(tx, &case_of(clock, CaseKind::RefundClosed, refund, evidence), now).await?;
            }
        }
        RefundState::Abnormal => {
            let evidence = json!({
                "refund_no": refund.refund_no, "amount": refund.amount, "gateway_refund_no": report.gateway_refund_no,
            });
            open(tx, &case_of(clock, CaseKind::RefundAbnormal, refund, evidence), now).await?;
        }
        RefundState::Processing => {}
    }
    outbox::append(tx, &told, now).await?;
    match report.state {
        // The schedule queries it until it is final: an undeliverable one daily.
        RefundState::Abnormal | RefundState::Processing => Ok(()),
        // No signed answer states that the gateway knows no such refund, so we query it once more, much later.
        RefundState::Absent => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), LOOK_BACK).await
        }
        RefundState::Succeeded | RefundState::Closed => jobs::drop_refund(tx, refund.id).await,
    }
}

/// Settles what a callback says about one of our refunds. `None`: we have no
/// refund with this number, or that refund belongs to another order, trade or account; then a person must judge.
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
    let Fact::Refund { trade, refund_no, report } = &told.fact else { return Ok(None) };
    // Compare the account of the payment, not of the order: people may return a payment that arrived at another
    // account.
    let paid_there = |refund: &Refund| {
        let account = refund.account.as_ref().unwrap_or(&order.account);
        (refund.payment_method, account) == (told.method, &told.account)
    };
    let found = refunds::by_refund_no(&mut *tx, refund_no).await?;
    let found =
        found.filter(|refund| refund.order_id == order.id && refund.trade_no == trade.trade_no && paid_there(refund));
    let Some(refund) = found else { return Ok(None) };
    settle(tx, &refund, report, policies, clock).await.map(Some)
}
