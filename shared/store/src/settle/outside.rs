//! Money that went back without us: at the gateway's console, with the merchant's keys, or before our first sight of the
//! payment.
//!
//! Each such return is booked once, as a refund record of origin `outside`. Alipay states what went back of a trade in all:
//! the part that our refunds and earlier bookings do not explain is booked. WeChat Pay names each refund with its amount.
//! While a refund of ours is on its way the two look the same, so the comparison is made again when it ends.

use domain::message::job::{JobRequest, RefundRequest};
use domain::{
    CaseKind, CaseStatus, Fact, Money, Notification, OrderId, OrderStatus, RefundId, RefundNo, RefundOrigin,
    RefundOutcome, RefundStatus, ReturnedTrade, TradeNo, TransactionId, Verdict,
};
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::events;
use crate::error::DbError;
use crate::settle::new_case;
use crate::settle::refunds as own;
use crate::settle::refunds::follow;
use crate::tables::cases::{self, Case};
use crate::tables::orders::{self, Order};
use crate::tables::outside::{self, OutsideRefund};
use crate::tables::refunds::{self, Refund};
use crate::tables::transactions::{self, ExtraPayment, Payment};
use crate::tables::{events as outbox, extra, jobs};

/// What the evidence of a case says of money that went back.
const RETURNED: &str = "returned";
/// In its place where the gateway does not tell how much.
const NOT_STATED: &str = "not stated";
/// Who ends a case about which nothing is left to decide.
const SERVICE: &str = "service";

/// A payment, and every refund of it. Read under the lock of its order.
pub(super) struct Trade {
    order: Order,
    trade_no: TradeNo,
    payment: Payment,
    refunds: Vec<Refund>,
}

/// One refund that is not ours and that has succeeded.
pub(super) struct Named {
    /// The number that its sender gave it.
    pub(super) number: String,
    pub(super) amount: Money,
    pub(super) gateway_refund_no: Option<String>,
    pub(super) at: Option<OffsetDateTime>,
}

/// What a message proves.
enum Return {
    /// What went back in all; `None`: something.
    InAll(Option<Money>),
    One(Named),
}

/// Whether the refunds of ours that have failed were asked about since.
#[derive(Clone, Copy)]
enum Failed {
    MayExplain,
    /// This one was. Each of the others is asked about first, if its question is still to come.
    WasAsked(RefundId),
}

/// Takes what a message tells of money that went back, where it names no refund of ours.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn returned(
    tx: &mut PgConnection,
    told: &Notification,
    order_id: OrderId,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    // A number of ours beside another trade or order is nothing that can be booked.
    let ours = match told.fact.number() {
        Some(number) => refunds::by_refund_no(&mut *tx, number).await?.is_some(),
        None => false,
    };
    let proved = Return::of(&told.fact).zip(told.fact.returned_trade()).filter(|_| !ours);
    let Some((proved, trade)) = proved else {
        return open(tx, (Verdict::UnknownRefund, CaseKind::UnknownRefund), told, (order_id, clock)).await;
    };
    let order = orders::lock_one(tx, order_id).await?.ok_or(DbError::Moved)?;
    let known = transactions::payment_of_trade(tx, &order, &trade.trade_no).await?;
    if known.is_none()
        && let Err(verdict) = first_sight(tx, &order, told, trade, clock).await?
    {
        return Ok(verdict);
    }
    let trade = Trade::read(tx, order_id, &trade.trade_no).await?.ok_or(DbError::Moved)?;
    let verdict = match proved {
        Return::InAll(Some(sum)) => {
            outside::note_returned(tx, trade.payment.id, sum).await?;
            let payment = Payment { returned: trade.payment.returned.max(sum), ..trade.payment };
            compare(tx, &Trade { payment, ..trade }, told.fact.number(), (Failed::MayExplain, clock)).await?
        }
        Return::InAll(None) => unstated(tx, &trade, told, clock).await?,
        Return::One(named) => one(tx, &trade, &named, (told, clock)).await?,
    };
    Ok(if known.is_none() { Verdict::NotPending } else { verdict })
}

/// A refund of ours names its trade, and the same message says what went back of it in all.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub(super) async fn beside_ours(
    tx: &mut PgConnection,
    (order_id, trade): (OrderId, &ReturnedTrade),
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let known = Trade::read(tx, order_id, &trade.trade_no).await?;
    let Some((known, sum)) = known.zip(trade.returned) else { return Ok(Verdict::Duplicate) };
    outside::note_returned(tx, known.payment.id, sum).await?;
    let payment = Payment { returned: known.payment.returned.max(sum), ..known.payment };
    compare(tx, &Trade { payment, ..known }, None, (Failed::MayExplain, clock)).await
}

/// Compares again, now that a refund of ours has ended or was asked about once more. `stated`: what the same answer says went
/// back of the trade in all.
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
    compare(tx, &Trade { payment, ..trade }, None, (Failed::WasAsked(refund.id), clock)).await?;
    for case in cases::of_order(&mut *tx, refund.order_id).await? {
        let Some(named) = Named::waiting(&case, &refund.trade_no) else { continue };
        // A number of ours beside another trade proves nothing.
        if refunds::by_refund_no(&mut *tx, &named.number).await?.is_some() {
            continue;
        }
        let Some(trade) = Trade::read(tx, refund.order_id, &refund.trade_no).await? else { return Ok(()) };
        book_one(tx, &trade, &named, clock).await?;
    }
    Ok(())
}

/// A payment that we hear of when some of it has gone back already. It is recorded, and only a decision of people
/// delivers for it. `Err`: there is nothing to book against.
async fn first_sight(
    tx: &mut PgConnection,
    order: &Order,
    told: &Notification,
    trade: &ReturnedTrade,
    clock: &Clock,
) -> Result<Result<(), Verdict>, DbError> {
    let place = (order.id, clock);
    let (verdict, kind) = match order.status.was_paid() {
        true => (Verdict::NotPending, CaseKind::DoublePayment),
        false => (Verdict::NotPending, CaseKind::RefundedElsewhere),
    };
    match trade.paid {
        Some(paid) if paid == order.amount => {}
        Some(_) => {
            return open(tx, (Verdict::AmountMismatch, CaseKind::AmountMismatch), told, place).await.map(Err);
        }
        None if order.status.was_paid() => {
            return open(tx, (Verdict::UnknownRefund, CaseKind::UnknownRefund), told, place).await.map(Err);
        }
        None => return open(tx, (verdict, kind), told, place).await.map(Err),
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
    let mut case = new_case((kind, Some(order.id)), told, clock);
    case.gateway_no = trade.trade_no.to_string();
    case.evidence["amount"] = order.amount.to_string().into();
    case.evidence[RETURNED] = trade.returned.map_or_else(|| NOT_STATED.to_owned(), |sum| sum.to_string()).into();
    own::open(tx, &case, clock.now()).await?;
    Ok(Ok(()))
}

/// Books what went back beyond what is booked, once no refund of ours can be the one.
async fn compare(
    tx: &mut PgConnection,
    trade: &Trade,
    number: Option<&str>,
    (failed, clock): (Failed, &Clock),
) -> Result<Verdict, DbError> {
    let booked = trade.booked();
    let Ok(amount) = Money::from_fen(trade.payment.returned.fen() - booked.fen()) else {
        return Ok(Verdict::Duplicate);
    };
    if !amount.is_positive() || trade.waits() {
        return Ok(Verdict::Duplicate);
    }
    if trade.payment.returned > trade.payment.amount {
        return contradiction(tx, trade, trade.trade_no.as_str(), (trade.payment.returned, clock)).await;
    }
    let gone = trade.failed().map(|refund| refund.id);
    let first = match failed {
        Failed::MayExplain => gone.collect(),
        Failed::WasAsked(one) => {
            let others: Vec<RefundId> = gone.filter(|id| *id != one).collect();
            outside::to_be_asked(tx, &others).await?
        }
    };
    if !first.is_empty() {
        ask(tx, &first).await?;
        return Ok(Verdict::UnknownRefund);
    }
    let method = trade.payment.payment_method;
    let key = format!("{method}:sum:{}:{}", trade.trade_no, trade.payment.returned);
    let named = number.map(str::to_owned);
    book(tx, trade, (amount, key, named, None), clock).await?;
    Ok(Verdict::Settled)
}

/// One refund that is named with its amount.
async fn one(
    tx: &mut PgConnection,
    trade: &Trade,
    named: &Named,
    (told, clock): (&Notification, &Clock),
) -> Result<Verdict, DbError> {
    if outside::is_booked(tx, &named.key(trade)).await? {
        return Ok(Verdict::Duplicate);
    }
    if trade.waits() {
        // Booked when ours has ended; until then nothing more goes back.
        return open(tx, (Verdict::UnknownRefund, CaseKind::UnknownRefund), told, (trade.order.id, clock)).await;
    }
    book_one(tx, trade, named, clock).await
}

/// Books one refund that is named, once.
pub(super) async fn book_one(
    tx: &mut PgConnection,
    trade: &Trade,
    named: &Named,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let key = named.key(trade);
    // At Alipay a notice may have named the very number that people found.
    let known = trade.refunds.iter().any(|refund| refund.gateway_refund_no.as_deref() == Some(named.number.as_str()));
    if known || outside::is_booked(tx, &key).await? {
        return Ok(Verdict::Duplicate);
    }
    // Or a sum without a number was booked, which was this refund.
    if let Some(unnamed) = trade.unnamed().find(|refund| refund.amount == named.amount) {
        outside::note_number(tx, unnamed.id, &named.number).await?;
        explain(tx, trade.order.id, &named.number, clock).await?;
        return Ok(Verdict::Duplicate);
    }
    if trade.booked().fen() + named.amount.fen() > trade.payment.amount.fen() {
        return contradiction(tx, trade, &named.number, (named.amount, clock)).await;
    }
    let number = named.gateway_refund_no.clone().or_else(|| Some(named.number.clone()));
    book(tx, trade, (named.amount, key, number, named.at), clock).await?;
    explain(tx, trade.order.id, &named.number, clock).await?;
    Ok(Verdict::Settled)
}

/// Something went back, and the gateway does not tell how much: what is booked explains it, or people book it by its number.
async fn unstated(
    tx: &mut PgConnection,
    trade: &Trade,
    told: &Notification,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let explains = |refund: &Refund| refund.status.reserves();
    if trade.refunds.iter().any(explains) {
        return Ok(Verdict::Ignored);
    }
    let gone: Vec<RefundId> = trade.failed().map(|refund| refund.id).collect();
    ask(tx, &gone).await?;
    if trade.is_own() {
        return open(tx, (Verdict::UnknownRefund, CaseKind::UnknownRefund), told, (trade.order.id, clock)).await;
    }
    note(tx, trade, NOT_STATED, clock).await?;
    Ok(Verdict::NotPending)
}

async fn book(
    tx: &mut PgConnection,
    trade: &Trade,
    (amount, key, number, at): (Money, String, Option<String>, Option<OffsetDateTime>),
    clock: &Clock,
) -> Result<(), DbError> {
    let (now, order) = (clock.now(), &trade.order);
    let id = RefundId::from_u128(clock.fresh_bits());
    let fits = |number: &String| number.len() <= 64 && number.bytes().all(|byte| byte.is_ascii_graphic());
    let new = OutsideRefund {
        id,
        order_id: order.id,
        transaction_id: trade.payment.id,
        refund_no: RefundNo::parse(format!("O{id}"))
            .unwrap_or_else(|_| unreachable!("33 letters and digits are a refund number")),
        amount,
        key,
        gateway_refund_no: number.filter(fits),
        succeeded_at: at.unwrap_or(now),
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
        let outside = trade.outside().fen() + amount.fen();
        note(tx, trade, &Money::from_fen(outside).unwrap_or(Money::MAX).to_string(), clock).await?;
        extra::follow(tx, &[order.id], now).await?;
    }
    explain(tx, order.id, trade.trade_no.as_str(), clock).await
}

/// What was not known is booked, so its case ends.
async fn explain(tx: &mut PgConnection, order_id: OrderId, number: &str, clock: &Clock) -> Result<(), DbError> {
    for case in cases::of_order(&mut *tx, order_id).await? {
        let about = case.kind == CaseKind::UnknownRefund && case.gateway_no == number;
        if about && case.status != CaseStatus::Resolved {
            let end = ("the refund is booked as one from outside", SERVICE);
            outside::resolve(tx, &case, end, clock.now()).await?;
        }
    }
    Ok(())
}

/// Says in the case of a payment that was not owed what went back of it.
async fn note(tx: &mut PgConnection, trade: &Trade, returned: &str, clock: &Clock) -> Result<(), DbError> {
    let kinds = [CaseKind::LatePayment, CaseKind::DoublePayment, CaseKind::RefundedElsewhere];
    for case in cases::of_order(&mut *tx, trade.order.id).await? {
        if kinds.contains(&case.kind) && case.gateway_no == trade.trade_no.as_str() {
            let mut fact = own::case(clock, case.kind, trade.order.id, json!({ RETURNED: returned }));
            fact.gateway_no = case.gateway_no;
            own::open(tx, &fact, clock.now()).await?;
        }
    }
    Ok(())
}

/// More went back than was paid: nothing is booked, and a person looks.
async fn contradiction(
    tx: &mut PgConnection,
    trade: &Trade,
    number: &str,
    (returned, clock): (Money, &Clock),
) -> Result<Verdict, DbError> {
    let mut evidence = json!({
        "trade_no": trade.trade_no, "amount": trade.payment.amount, cases::BOOKED: trade.booked(), RETURNED: returned,
    });
    if number != trade.trade_no.as_str() {
        // It is about a refund: no payment of this amount waits beside the order's own.
        evidence["refund_no"] = number.into();
    }
    let mut case = own::case(clock, CaseKind::AmountMismatch, trade.order.id, evidence);
    case.gateway_no = number.to_owned();
    own::open(tx, &case, clock.now()).await?;
    Ok(Verdict::AmountMismatch)
}

/// Opens the case of a message, once.
async fn open(
    tx: &mut PgConnection,
    (verdict, kind): (Verdict, CaseKind),
    told: &Notification,
    (order_id, clock): (OrderId, &Clock),
) -> Result<Verdict, DbError> {
    own::open(tx, &new_case((kind, Some(order_id)), told, clock), clock.now()).await?;
    if kind.is_of_money_held() {
        extra::follow(tx, &[order_id], clock.now()).await?;
    }
    Ok(verdict)
}

/// Has refunds that have failed asked about: one of them may be what went back.
async fn ask(tx: &mut PgConnection, refunds: &[RefundId]) -> Result<(), DbError> {
    for id in refunds {
        jobs::request(&mut *tx, &JobRequest::Refund(*id, RefundRequest::default()), Duration::ZERO).await?;
    }
    Ok(())
}

impl Trade {
    /// `None`: the trade brought the order nothing that we know of.
    pub(super) async fn read(
        tx: &mut PgConnection,
        order_id: OrderId,
        trade_no: &TradeNo,
    ) -> Result<Option<Trade>, DbError> {
        let Some(order) = orders::lock_one(tx, order_id).await? else { return Ok(None) };
        let Some(payment) = transactions::payment_of_trade(tx, &order, trade_no).await? else { return Ok(None) };
        let mut refunds = refunds::of_order(&mut *tx, order_id).await?;
        refunds.retain(|refund| refund.trade_no == *trade_no);
        Ok(Some(Trade { order, trade_no: trade_no.clone(), payment, refunds }))
    }

    /// Whether it is what paid the order.
    fn is_own(&self) -> bool {
        self.order.trade_no.as_ref() == Some(&self.trade_no)
    }

    /// What went back by our books.
    fn booked(&self) -> Money {
        sum(self.refunds.iter().filter(|refund| refund.status == RefundStatus::Succeeded))
    }

    /// Those from outside that were booked by a sum, without a number.
    fn unnamed(&self) -> impl Iterator<Item = &Refund> {
        let outside = self.refunds.iter().filter(|refund| refund.origin == RefundOrigin::Outside);
        outside.filter(|refund| refund.gateway_refund_no.is_none())
    }

    fn outside(&self) -> Money {
        sum(self.refunds.iter().filter(|refund| refund.origin == RefundOrigin::Outside))
    }

    /// Whether a refund of ours has not come to its end.
    pub(super) fn waits(&self) -> bool {
        self.refunds.iter().any(|refund| !refund.status.is_final())
    }

    fn failed(&self) -> impl Iterator<Item = &Refund> {
        self.refunds.iter().filter(|refund| refund.status == RefundStatus::Failed)
    }
}

/// What some refunds are together.
pub(super) fn sum<'a>(refunds: impl Iterator<Item = &'a Refund>) -> Money {
    Money::from_fen(refunds.map(|refund| refund.amount.fen()).sum()).unwrap_or(Money::MAX)
}

impl Return {
    fn of(fact: &Fact) -> Option<Return> {
        match fact {
            Fact::PaidAndReturned(trade) => Some(Return::InAll(trade.returned)),
            Fact::Refund { trade, .. } if trade.returned.is_some() => Some(Return::InAll(trade.returned)),
            Fact::Refund { refund_no, amount: Some(amount), gateway_refund_no, at, outcome, .. }
                if *outcome == RefundOutcome::Succeeded =>
            {
                let (number, gateway_refund_no) = (refund_no.clone(), gateway_refund_no.clone());
                Some(Return::One(Named { number, amount: *amount, gateway_refund_no, at: *at }))
            }
            _ => None,
        }
    }
}

impl Named {
    /// A refund that was reported while one of ours was on its way.
    fn waiting(case: &Case, trade_no: &TradeNo) -> Option<Named> {
        let text = |name: &str| case.evidence.get(name).and_then(Value::as_str);
        let waits = case.kind == CaseKind::UnknownRefund && case.status != CaseStatus::Resolved;
        if !waits || text("outcome") != Some("succeeded") || text("trade_no") != Some(trade_no.as_str()) {
            return None;
        }
        Some(Named {
            number: case.gateway_no.clone(),
            amount: Money::from_yuan(text("amount")?).ok()?,
            gateway_refund_no: text("gateway_refund_no").map(str::to_owned),
            at: text("succeeded_at").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
        })
    }

    fn key(&self, trade: &Trade) -> String {
        let method = trade.payment.payment_method;
        match &self.gateway_refund_no {
            Some(number) => format!("{method}:refund:{number}"),
            None => format!("{method}:number:{}:{}", trade.order.account, self.number),
        }
    }
}
