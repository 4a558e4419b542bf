//! Turns facts into state changes and events. Callbacks and answers to order queries arrive in [`settle`], our own closes
//! of unpaid orders in [`end_unpaid`], and what a gateway reports about our refunds in [`refunds::settle`].
//!
//! A batch locks its orders, decides in memory, then writes each kind of effect once. A refund takes statements of its
//! own. The decisions about payments and closes do no I/O: [`domain::TRANSITIONS`] allows each move of an unpaid order.
//! After payment the state of an order follows from its refunds ([`domain::status_by_refunds`]).

pub mod accounts;
mod booking;
mod books;
mod decide;
mod effects;
pub mod events;
mod evidence;
mod extra_payment;
mod known;
pub mod late;
pub mod opening;
mod outside;
pub mod refunds;
pub mod strays;
mod trade;
mod whose;

use std::collections::HashSet;

use domain::{Fact, Merchant, Notification, OrderId, OrderStatus, Policies, Source, Verdict};
use gateway::Verified;
use runtime::clock::Clock;
use sqlx::PgConnection;

use crate::error::DbError;
use crate::tables::orders::{self, Order};

pub use booking::{Found, RequestedBooking, book_requested, trade_of};
pub use late::{NotHonoured, can_fulfil, can_honour, fulfil};

use books::Books;
use effects::Effects;
use known::{gone_trades, recorded_trades};

/// Settles facts that the gateways state and returns one verdict for each, in the order given. All changes are in the
/// caller's transaction, so they take effect together or not at all. The facts of one order are processed in their
/// natural order (payment, close, refund), whatever order they arrived in.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn settle(
    tx: &mut PgConnection,
    notifications: &[&Verified<Notification>],
    policies: &Policies,
    clock: &Clock,
) -> Result<Vec<Verdict>, DbError> {
    let notifications: Vec<&Notification> = notifications.iter().map(|verified| verified.get()).collect();
    settle_facts(tx, &notifications, policies, clock).await
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

/// Locks the orders, decides each fact in memory, and writes the effects.
async fn settle_facts(
    tx: &mut PgConnection,
    notifications: &[&Notification],
    policies: &Policies,
    clock: &Clock,
) -> Result<Vec<Verdict>, DbError> {
    let now = clock.now();
    let order_nos: HashSet<&str> = notifications.iter().map(|n| n.order_no.as_str()).collect();
    let order_nos: Vec<&str> = order_nos.into_iter().collect();
    let locked = orders::lock(tx, &order_nos).await?;
    let closed = locked.iter().filter(|order| order.status == OrderStatus::Closed && order.has_purchase());
    let closed: Vec<OrderId> = closed.map(|order| order.id).collect();
    let mut books = Books {
        with_another: orders::with_another(tx, &closed).await?,
        recorded: recorded_trades(tx, notifications).await?,
        gone: gone_trades(tx, notifications, &locked).await?,
        orders: locked.into_iter().map(|order| (order.order_no.as_str().to_owned(), order)).collect(),
        effects: Effects::default(),
        policies,
        clock,
        now,
    };

    let mut order: Vec<usize> = (0..notifications.len()).collect();
    order.sort_by_key(|i| rank(&notifications[*i].fact));
    let mut verdicts = vec![Verdict::Ignored; notifications.len()];
    let mut of_refunds = Vec::new();
    for i in order {
        match books.decide(notifications[i]) {
            Some(verdict) => verdicts[i] = verdict,
            None => of_refunds.push(i),
        }
    }
    std::mem::take(&mut books.effects).write(tx, now).await?;
    // There are few refunds, and each needs its own lock and its own state. They come after the payments that they
    // return.
    for i in of_refunds {
        verdicts[i] = books.refund(tx, notifications[i]).await?;
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
