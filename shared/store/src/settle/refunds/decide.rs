//! What people do with a request: approve, decline. Everything is checked again under the lock of the order's row. A repeat finds the refund as it stands and changes nothing.

use domain::{RefundId, RefundStatus, UserId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::room::{RefundRefusal, Room};
use crate::error::{DbError, NotDone};
use crate::settle::events;
use crate::tables::orders::{self, Order};
use crate::tables::refund_requests::{self, UnsentMove};
use crate::tables::refunds::{self, Refund};
use crate::tables::{events as outbox, refund_rules};

/// Recorded as the one who declined a request that no longer fits.
const SERVICE: &str = "service";

/// A refund after a person's step.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The refund as it is now.
    pub refund: Refund,
    /// Whether this step changed it. A repeat does not.
    pub is_changed: bool,
}

/// Why a person's step is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecisionRefusal {
    /// No such refund.
    #[error("there is no such refund")]
    NoRefund,
    /// The person requested it, or has approved it before.
    #[error("a person other than the one who requested it must approve")]
    SamePerson,
    /// Another caller requested it.
    #[error("only the one who requested the refund withdraws it")]
    NotRequester,
    /// It waits for no person.
    #[error("the refund waits for no person: it is {0}")]
    NotRequested(RefundStatus),
    /// The gateway may have it.
    #[error("the refund cannot be withdrawn: it is {0}")]
    NotWithdrawable(RefundStatus),
    /// Something about the order comes first. The request stays.
    #[error(transparent)]
    NotNow(RefundRefusal),
}

/// The name of a person in `requested_by` and `approved_by`.
fn name_of(person: &UserId) -> String {
    format!("staff {person}")
}

/// Whether a recorded name is that of this person. All persons come from one issuer; it may spell them in two ways.
fn is_person(recorded: &str, person: &UserId) -> bool {
    recorded.strip_prefix("staff ").is_some_and(|subject| subject.eq_ignore_ascii_case(person.as_str()))
}

/// Locks the order of a refund, and reads the refund under the lock.
pub(super) async fn locked(tx: &mut PgConnection, id: RefundId) -> Result<(Order, Refund), NotDone<DecisionRefusal>> {
    let no_refund = || NotDone::Refused(DecisionRefusal::NoRefund);
    let refund = refunds::get(&mut *tx, id).await?.ok_or_else(no_refund)?;
    let order = orders::lock_one(tx, refund.order_id).await?.ok_or(DbError::Moved)?;
    let refund = refunds::get(&mut *tx, id).await?.ok_or_else(no_refund)?;
    Ok((order, refund))
}

pub(super) async fn changed(tx: &mut PgConnection, id: RefundId) -> Result<Decided, NotDone<DecisionRefusal>> {
    let refund = refunds::get(&mut *tx, id).await?.ok_or(DbError::Moved)?;
    Ok(Decided { refund, is_changed: true })
}

/// Approves a request: the refund begins. Above the limit of one person a second person must approve: the first approval
/// is noted, and the request stays. A request that no longer fits is declined, with the reason.
///
/// # Errors
/// [`NotDone`], with the reason if this person cannot approve it, or not now.
pub async fn approve(
    tx: &mut PgConnection,
    id: RefundId,
    person: &UserId,
    now: OffsetDateTime,
) -> Result<Decided, NotDone<DecisionRefusal>> {
    let (order, refund) = locked(tx, id).await?;
    if refund.status != RefundStatus::Requested {
        return Ok(Decided { refund, is_changed: false });
    }
    if is_person(&refund.requested_by, person) {
        return Err(NotDone::Refused(DecisionRefusal::SamePerson));
    }
    let fits = match Room::read(tx, order.id, None, now).await {
        Ok(room) => room.amount(Some(refund.amount)).map(|_| room),
        Err(not_done) => Err(not_done.refusal()?),
    };
    let room = match fits {
        Ok(room) => room,
        Err(refusal) if refusal.passes() => return Err(NotDone::Refused(DecisionRefusal::NotNow(refusal))),
        Err(refusal) => return end(tx, &order, &refund, declined(&refund, SERVICE, &refusal.to_string()), now).await,
    };
    let by = name_of(person);
    let rules = refund_rules::of(&mut *tx, room.payment.payment_method).await?;
    let to = match (&refund.approved_by, rules.needs_second_person(room.with(refund.amount))) {
        // A request of staff has its first person.
        (None, true) if !refund.requested_by.starts_with("staff ") => RefundStatus::Requested,
        (Some(first), true) if is_person(first, person) => return Ok(Decided { refund, is_changed: false }),
        _ => RefundStatus::Pending,
    };
    let step = UnsentMove { id, from: RefundStatus::Requested, to, by: &by, reason: None };
    moved(tx, step, now).await?;
    if to == RefundStatus::Pending {
        refund_requests::begin(tx, &refund, now).await?;
        room.follow(tx, now).await?;
    }
    changed(tx, id).await
}

/// Declines a request, for a reason.
///
/// # Errors
/// [`NotDone`], with the reason if it is no request any more.
pub async fn decline(
    tx: &mut PgConnection,
    id: RefundId,
    person: &UserId,
    reason: &str,
    now: OffsetDateTime,
) -> Result<Decided, NotDone<DecisionRefusal>> {
    let (order, refund) = locked(tx, id).await?;
    match refund.status {
        RefundStatus::Requested => end(tx, &order, &refund, declined(&refund, &name_of(person), reason), now).await,
        RefundStatus::Declined => Ok(Decided { refund, is_changed: false }),
        other => Err(NotDone::Refused(DecisionRefusal::NotRequested(other))),
    }
}

fn declined<'a>(refund: &Refund, by: &'a str, reason: &'a str) -> UnsentMove<'a> {
    let (from, to) = (RefundStatus::Requested, RefundStatus::Declined);
    UnsentMove { id: refund.id, from, to, by, reason: Some(reason) }
}

async fn end(
    tx: &mut PgConnection,
    order: &Order,
    refund: &Refund,
    step: UnsentMove<'_>,
    now: OffsetDateTime,
) -> Result<Decided, NotDone<DecisionRefusal>> {
    moved(tx, step, now).await?;
    outbox::append(tx, &[events::refund_declined(order, refund, step.reason.unwrap_or_default())], now).await?;
    changed(tx, refund.id).await
}

async fn moved(
    tx: &mut PgConnection,
    step: UnsentMove<'_>,
    now: OffsetDateTime,
) -> Result<(), NotDone<DecisionRefusal>> {
    if refund_requests::apply(tx, step, now).await? { Ok(()) } else { Err(NotDone::Db(DbError::Moved)) }
}
