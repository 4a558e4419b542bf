//! Begins a refund by the rules for its caller: at once, or as a request that waits for a person.

use domain::{Money, RefundRules, RefundStatus};
use runtime::beijing;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::request::{RequestedRefund, begin};
use super::room::{RefundRefusal, Room};
use crate::error::{DbError, NotDone};
use crate::settle::events;
use crate::tables::refunds::Refund;
use crate::tables::{events as outbox, refund_requests, refund_rules, refunds};

/// How many refunds of an order that were never sent a buyer can leave behind. Otherwise a buyer who requests and
/// withdraws in a loop fills the database.
const UNSENT: usize = 20;

/// The kind of caller who requests a refund. The rules of each kind differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// The buyer of the order.
    Buyer,
    /// A backend of the merchant, by an API key or a token of a service.
    Backend,
    /// A person who works for the merchant.
    Staff,
}

/// Begins a refund of an order's own payment, if the order and the rules allow it. A request that waits for a person
/// reserves nothing and leaves the order as it is.
///
/// # Errors
/// [`NotDone`], with the reason if the order or the rules do not allow it.
pub async fn request_by_rule(
    tx: &mut PgConnection,
    request: &RequestedRefund,
    requester: Requester,
    now: OffsetDateTime,
) -> Result<Refund, NotDone<RefundRefusal>> {
    let room = Room::read(tx, request.order_id, None, now).await?;
    let amount = room.amount(request.amount).map_err(NotDone::Refused)?;
    let rules = refund_rules::of(&mut *tx, room.payment.payment_method).await?;
    let new = request.row(&room, amount);
    match how_it_begins(&rules, requester, &room, amount, now).map_err(NotDone::Refused)? {
        RefundStatus::Requested => wait_for_a_person(tx, &room, &new, now).await,
        _ => {
            // The last lock: the refunds of one caller wait here for each other.
            let counted = match requester {
                Requester::Backend => count(tx, &rules, request, amount, now).await?,
                Requester::Buyer | Requester::Staff => true,
            };
            if !counted {
                return Err(NotDone::Refused(RefundRefusal::DailyLimit));
            }
            begin(tx, &room, &new, now).await.map_err(NotDone::Db)
        }
    }
}

fn how_it_begins(
    rules: &RefundRules,
    requester: Requester,
    room: &Room,
    amount: Money,
    now: OffsetDateTime,
) -> Result<RefundStatus, RefundRefusal> {
    let sum = room.with(amount);
    match requester {
        Requester::Buyer if unsent_of_buyer(room) >= UNSENT => Err(RefundRefusal::TooOften),
        Requester::Buyer => Ok(rules.of_buyer(sum, now - room.payment.paid_at)?),
        Requester::Staff if rules.needs_second_person(sum) => Ok(RefundStatus::Requested),
        Requester::Staff | Requester::Backend => Ok(RefundStatus::Pending),
    }
}

fn unsent_of_buyer(room: &Room) -> usize {
    let of_buyer = |refund: &&Refund| refund.requested_by == room.order.user_id.as_str();
    room.refunds.iter().filter(of_buyer).filter(|refund| refund.was_never_sent()).count()
}

/// Counts the amount for the caller's day. Each caller is counted, so that a limit that comes later knows the day.
async fn count(
    tx: &mut PgConnection,
    rules: &RefundRules,
    request: &RequestedRefund,
    amount: Money,
    now: OffsetDateTime,
) -> Result<bool, DbError> {
    refund_rules::count(tx, &request.requested_by, beijing::day(now), amount, rules.service_daily_limit).await
}

async fn wait_for_a_person(
    tx: &mut PgConnection,
    room: &Room,
    new: &refunds::NewRefund,
    now: OffsetDateTime,
) -> Result<Refund, NotDone<RefundRefusal>> {
    if room.refunds.iter().any(|refund| refund.status == RefundStatus::Requested) {
        return Err(NotDone::Refused(RefundRefusal::RequestOpen));
    }
    refund_requests::create(tx, new, now).await?;
    let refund = refunds::get(&mut *tx, new.id).await?.ok_or(DbError::Moved)?;
    outbox::append(tx, &[events::refund_requested(&room.order, &refund)], now).await?;
    Ok(refund)
}
