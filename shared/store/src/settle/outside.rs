//! Refunds that this service did not send: made in the gateway's console, with the merchant's keys, or before we first
//! learned of the payment.
//!
//! Each such refund is booked once, as a refund record of origin `outside`. Alipay states the total refunded for a
//! trade; we book the part that our refunds and earlier bookings do not explain. WeChat Pay names each refund with its
//! amount. While one of our refunds is in flight, we cannot distinguish the two, so we compare again when it becomes
//! final.

use domain::message::job::{JobRequest, RefundRequest};
use domain::{
    CaseKind, CaseStatus, Money, Notification, OrderId, OrderStatus, RefundId, RefundNo, ReturnedTrade, TransactionId,
    Verdict,
};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::events;
use super::evidence::new_case;
use super::opening;
use super::refunds::follow::follow;
use super::trade::{Named, Return, Trade};
use crate::error::DbError;
use crate::tables::cases;
use crate::tables::orders::{self, Order};
use crate::tables::outside::{self, OutsideRefund};
use crate::tables::refunds::{self, Refund};
use crate::tables::transactions::{self, ExtraPayment, Payment};
use crate::tables::{events as outbox, extra, jobs};

/// The member of a case's evidence that states how much was refunded.
const RETURNED: &str = "returned";
/// The value of that member if the gateway does not state the amount.
const NOT_STATED: &str = "not stated";
/// The name under which the service resolves a case that needs no decision any more.
const SERVICE: &str = "service";

/// Whether our failed refunds have been queried again.
#[derive(Clone, Copy)]
enum Failed {
    MayExplain,
    /// This one was queried. Any other that still has a query scheduled is queried first.
    WasQueried(RefundId),
}

/// Settles a message about refunded money that names none of our refunds.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn returned(
    tx: &mut PgConnection,
    notification: &Notification,
    order_id: OrderId,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    // If one of our refund numbers appears with another trade or order, there is nothing that we can book.
    let ours = match notification.fact.number() {
        Some(number) => refunds::by_refund_no(&mut *tx, number).await?.is_some(),
        None => false,
    };
    let proved = Return::of(&notification.fact).zip(notification.fact.returned_trade()).filter(|_| !ours);
    let Some((proved, trade)) = proved else {
        return open(tx, UNKNOWN_REFUND, notification, order_id, clock).await;
    };
    let order = orders::lock_one(tx, order_id).await?.ok_or(DbError::Moved)?;
    let known = transactions::payment_of_trade(tx, &order, &trade.trade_no).await?;
    if known.is_none()
        && let Some(verdict) = first_sight(tx, &order, notification, trade, clock).await?
    {
        return Ok(verdict);
    }
    let trade = Trade::read(tx, order_id, &trade.trade_no).await?.ok_or(DbError::Moved)?;
    let verdict = match proved {
        Return::InAll(Some(sum)) => {
            outside::note_returned(tx, trade.payment.id, sum).await?;
            let payment = Payment { returned: trade.payment.returned.max(sum), ..trade.payment };
            compare(tx, &Trade { payment, ..trade }, notification.fact.number(), Failed::MayExplain, clock).await?
        }
        Return::InAll(None) => unstated(tx, &trade, notification, clock).await?,
        Return::One(named) => one(tx, &trade, &named, notification, clock).await?,
    };
    Ok(if known.is_none() { Verdict::NotPending } else { verdict })
}

/// Settles the total refunded for a trade, which a message about one of our refunds states as well.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn beside_ours(
    tx: &mut PgConnection,
    order_id: OrderId,
    trade: &ReturnedTrade,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let known = Trade::read(tx, order_id, &trade.trade_no).await?;
    let Some((known, sum)) = known.zip(trade.returned) else { return Ok(Verdict::Duplicate) };
    outside::note_returned(tx, known.payment.id, sum).await?;
    let payment = Payment { returned: known.payment.returned.max(sum), ..known.payment };
    compare(tx, &Trade { payment, ..known }, None, Failed::MayExplain, clock).await
}

/// Compares again after one of our refunds became final, or after a failed one was queried once more. `stated`: the
/// total refunded for the trade, from the same answer.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn compare_again(
    tx: &mut PgConnection,
    refund: &Refund,
    stated: Option<Money>,
    clock: &Clock,
) -> Result<(), DbError> {
    let Some(trade) = Trade::read(tx, refund.order_id, &refund.trade_no).await? else { return Ok(()) };
    if trade.waits() {
        return Ok(());
    }
    let payment = Payment { returned: trade.payment.returned.max(stated.unwrap_or(Money::ZERO)), ..trade.payment };
    compare(tx, &Trade { payment, ..trade }, None, Failed::WasQueried(refund.id), clock).await?;
    for case in cases::of_order(&mut *tx, refund.order_id).await? {
        let Some(named) = Named::waiting(&case, &refund.trade_no) else { continue };
        // If this is one of our refund numbers, the message is about another trade and proves nothing.
        if refunds::by_refund_no(&mut *tx, &named.number).await?.is_some() {
            continue;
        }
        let Some(trade) = Trade::read(tx, refund.order_id, &refund.trade_no).await? else { return Ok(()) };
        book_one(tx, &trade, &named, clock).await?;
    }
    Ok(())
}

/// Records a payment that we first learn of when some of it is already refunded. We deliver for it only if people
/// decide so. `Some`: there is no payment that we can book the refund against, and this is the message's verdict.
async fn first_sight(
    tx: &mut PgConnection,
    order: &Order,
    notification: &Notification,
    trade: &ReturnedTrade,
    clock: &Clock,
) -> Result<Option<Verdict>, DbError> {
    let kind = if order.status.was_paid() { CaseKind::DoublePayment } else { CaseKind::RefundedElsewhere };
    let mismatch = Ruling { verdict: Verdict::AmountMismatch, kind: CaseKind::AmountMismatch };
    match trade.paid {
        Some(paid) if paid == order.amount => {}
        Some(_) => {
            return open(tx, mismatch, notification, order.id, clock).await.map(Some);
        }
        None if order.status.was_paid() => {
            return open(tx, UNKNOWN_REFUND, notification, order.id, clock).await.map(Some);
        }
        None => {
            return open(tx, Ruling { verdict: Verdict::NotPending, kind }, notification, order.id, clock)
                .await
                .map(Some);
        }
    }
    let extra = ExtraPayment {
        id: TransactionId::from_u128(clock.fresh_bits()),
        order_id: order.id,
        payment_method: order.payment_method,
        gateway_no: trade.trade_no.clone(),
        amount: order.amount,
        paid_at: trade.paid_at.unwrap_or_else(|| clock.now()),
        account: None,
    };
    transactions::note_extra(tx, &[extra], clock.now()).await?;
    extra::follow(tx, &[order.id], clock.now()).await?;
    let mut case = new_case(kind, Some(order.id), notification, clock);
    case.subject_ref = trade.trade_no.to_string();
    case.evidence["amount"] = order.amount.to_string().into();
    case.evidence[RETURNED] = trade.returned.map_or_else(|| NOT_STATED.to_owned(), |sum| sum.to_string()).into();
    opening::open(tx, &case, clock.now()).await?;
    Ok(None)
}

/// Books what was refunded beyond our books, once we know that none of our refunds explains it.
async fn compare(
    tx: &mut PgConnection,
    trade: &Trade,
    number: Option<&str>,
    failed: Failed,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let booked = trade.booked();
    let Ok(amount) = Money::from_fen(trade.payment.returned.fen() - booked.fen()) else {
        return Ok(Verdict::Duplicate);
    };
    if !amount.is_positive() || trade.waits() {
        return Ok(Verdict::Duplicate);
    }
    if trade.payment.returned > trade.payment.amount {
        return contradiction(tx, trade, trade.trade_no.as_str(), trade.payment.returned, clock).await;
    }
    let gone = trade.failed().map(|refund| refund.id);
    let first = match failed {
        Failed::MayExplain => gone.collect(),
        Failed::WasQueried(one) => {
            let others: Vec<RefundId> = gone.filter(|id| *id != one).collect();
            outside::to_be_queried(tx, &others).await?
        }
    };
    if !first.is_empty() {
        query_soon(tx, &first).await?;
        return Ok(Verdict::UnknownRefund);
    }
    let method = trade.payment.payment_method;
    let key = format!("{method}:sum:{}:{}", trade.trade_no, trade.payment.returned);
    let named = number.map(str::to_owned);
    book(tx, trade, Entry { amount, key, number: named, at: None }, clock).await?;
    Ok(Verdict::Settled)
}

/// Books one refund that the message names with its amount, or opens a case while one of our refunds is in flight.
async fn one(
    tx: &mut PgConnection,
    trade: &Trade,
    named: &Named,
    notification: &Notification,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    if outside::is_booked(tx, &named.key(trade)).await? {
        return Ok(Verdict::Duplicate);
    }
    if trade.waits() {
        // We book it when our refund is final. Until then the open case blocks further refunds.
        return open(tx, UNKNOWN_REFUND, notification, trade.order.id, clock).await;
    }
    book_one(tx, trade, named, clock).await
}

/// Books one named refund, once.
pub(super) async fn book_one(
    tx: &mut PgConnection,
    trade: &Trade,
    named: &Named,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let key = named.key(trade);
    // At Alipay, an earlier notice may already have named the number that people found.
    let known = trade.refunds.iter().any(|refund| refund.gateway_refund_no.as_deref() == Some(named.number.as_str()));
    if known || outside::is_booked(tx, &key).await? {
        return Ok(Verdict::Duplicate);
    }
    // An earlier booking by sum, without a number, may be this refund.
    if let Some(unnamed) = trade.unnamed().find(|refund| refund.amount == named.amount) {
        outside::note_number(tx, unnamed.id, &named.number).await?;
        explain(tx, trade.order.id, &named.number, clock).await?;
        return Ok(Verdict::Duplicate);
    }
    if trade.booked().fen() + named.amount.fen() > trade.payment.amount.fen() {
        return contradiction(tx, trade, &named.number, named.amount, clock).await;
    }
    let number = named.gateway_refund_no.clone().or_else(|| Some(named.number.clone()));
    book(tx, trade, Entry { amount: named.amount, key, number, at: named.at }, clock).await?;
    explain(tx, trade.order.id, &named.number, clock).await?;
    Ok(Verdict::Settled)
}

/// Something was refunded, and the gateway does not state how much. If a refund in our books that has not failed
/// explains it, nothing happens. Otherwise we query failed refunds again, and people book it by its refund number.
async fn unstated(
    tx: &mut PgConnection,
    trade: &Trade,
    notification: &Notification,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let explains = |refund: &Refund| refund.status.reserves();
    if trade.refunds.iter().any(explains) {
        return Ok(Verdict::Ignored);
    }
    let gone: Vec<RefundId> = trade.failed().map(|refund| refund.id).collect();
    query_soon(tx, &gone).await?;
    if trade.is_own() {
        return open(tx, UNKNOWN_REFUND, notification, trade.order.id, clock).await;
    }
    note(tx, trade, NOT_STATED, clock).await?;
    Ok(Verdict::NotPending)
}

/// What is booked of a refund from outside.
struct Entry {
    amount: Money,
    /// By which it is booked once.
    key: String,
    /// The gateway's number, if it has one.
    number: Option<String>,
    /// When it was returned, by the gateway's clock.
    at: Option<OffsetDateTime>,
}

async fn book(tx: &mut PgConnection, trade: &Trade, entry: Entry, clock: &Clock) -> Result<(), DbError> {
    let (now, order) = (clock.now(), &trade.order);
    let id = RefundId::from_u128(clock.fresh_bits());
    let fits = |number: &String| number.len() <= 64 && number.bytes().all(|byte| byte.is_ascii_graphic());
    let new = OutsideRefund {
        id,
        order_id: order.id,
        transaction_id: trade.payment.id,
        refund_no: RefundNo::parse(format!("O{id}"))
            .unwrap_or_else(|_| unreachable!("33 letters and digits are a refund number")),
        amount: entry.amount,
        key: entry.key,
        gateway_refund_no: entry.number.filter(fits),
        succeeded_at: entry.at.unwrap_or(now),
    };
    outside::book(tx, &new, now).await?;
    metrics::counter!("outside_refunds_total", "gateway" => trade.payment.payment_method.as_str()).increment(1);
    let refund = refunds::get(&mut *tx, id).await?.ok_or(DbError::Moved)?;
    if trade.is_own() {
        let after = follow(tx, order, now).await?;
        let mut news = vec![events::refund_succeeded(&after, &refund, new.succeeded_at)];
        if after.status == OrderStatus::Refunded && order.status != OrderStatus::Refunded {
            news.push(events::order_refunded(&after, &refund));
        }
        outbox::append(tx, &news, now).await?;
    } else {
        let outside = trade.outside().fen() + new.amount.fen();
        note(tx, trade, &Money::from_fen(outside).unwrap_or(Money::MAX).to_string(), clock).await?;
        extra::follow(tx, &[order.id], now).await?;
    }
    explain(tx, order.id, trade.trade_no.as_str(), clock).await
}

/// Resolves the unknown-refund case of a refund that is now booked.
async fn explain(tx: &mut PgConnection, order_id: OrderId, number: &str, clock: &Clock) -> Result<(), DbError> {
    for case in cases::of_order(&mut *tx, order_id).await? {
        let about = case.kind == CaseKind::UnknownRefund && case.subject_ref == number;
        if about && case.status != CaseStatus::Resolved {
            outside::resolve(tx, &case, "the refund is booked as one from outside", SERVICE, clock.now()).await?;
        }
    }
    Ok(())
}

/// Writes how much was refunded into the case of a payment that was not owed.
async fn note(tx: &mut PgConnection, trade: &Trade, returned: &str, clock: &Clock) -> Result<(), DbError> {
    let kinds = [CaseKind::LatePayment, CaseKind::DoublePayment, CaseKind::RefundedElsewhere];
    for case in cases::of_order(&mut *tx, trade.order.id).await? {
        if kinds.contains(&case.kind) && case.subject_ref == trade.trade_no.as_str() {
            let mut fact = opening::case(clock, case.kind, trade.order.id, json!({ RETURNED: returned }));
            fact.subject_ref = case.subject_ref;
            opening::open(tx, &fact, clock.now()).await?;
        }
    }
    Ok(())
}

/// More was refunded than was paid: nothing is booked, and a case asks a person to check.
async fn contradiction(
    tx: &mut PgConnection,
    trade: &Trade,
    number: &str,
    returned: Money,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let mut evidence = json!({
        "trade_no": trade.trade_no, "amount": trade.payment.amount, cases::BOOKED: trade.booked(), RETURNED: returned,
    });
    if number != trade.trade_no.as_str() {
        // The case is about a refund. It does not mean that a payment of this amount is held beside the order's own.
        evidence["refund_no"] = number.into();
    }
    let mut case = opening::case(clock, CaseKind::AmountMismatch, trade.order.id, evidence);
    case.subject_ref = number.to_owned();
    opening::open(tx, &case, clock.now()).await?;
    Ok(Verdict::AmountMismatch)
}

/// The verdict of a message, and the case that it opens.
#[derive(Clone, Copy)]
struct Ruling {
    verdict: Verdict,
    kind: CaseKind,
}

/// A refund that we do not know and cannot book.
const UNKNOWN_REFUND: Ruling = Ruling { verdict: Verdict::UnknownRefund, kind: CaseKind::UnknownRefund };

/// Opens the case of a message. A repeat opens no second case.
async fn open(
    tx: &mut PgConnection,
    ruling: Ruling,
    notification: &Notification,
    order_id: OrderId,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    opening::open(tx, &new_case(ruling.kind, Some(order_id), notification, clock), clock.now()).await?;
    if ruling.kind.is_of_money_held() {
        extra::follow(tx, &[order_id], clock.now()).await?;
    }
    Ok(ruling.verdict)
}

/// Makes queries of failed refunds due now: one of them may be the money that was refunded.
async fn query_soon(tx: &mut PgConnection, refunds: &[RefundId]) -> Result<(), DbError> {
    for id in refunds {
        jobs::request(&mut *tx, &JobRequest::Refund(*id, RefundRequest::default()), Duration::ZERO).await?;
    }
    Ok(())
}
