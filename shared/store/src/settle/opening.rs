//! Opens cases, and publishes that they are open.

use domain::message::event::Event;
use domain::{CaseId, CaseKind, OrderId};
use runtime::clock::Clock;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::events;
use crate::error::DbError;
use crate::tables::cases::NewCase;
use crate::tables::refunds::Refund;
use crate::tables::{case_facts, events as outbox};

/// Opens or reopens cases and returns the events that announce them.
///
/// # Errors
/// [`DbError`].
pub async fn open_cases(tx: &mut PgConnection, new: &[NewCase], now: OffsetDateTime) -> Result<Vec<Event>, DbError> {
    let opened = case_facts::open(tx, new, now).await?;
    Ok(opened.iter().map(events::case_opened).collect())
}

/// Opens one case and publishes its event.
///
/// # Errors
/// [`DbError`].
pub async fn open(tx: &mut PgConnection, case: &NewCase, now: OffsetDateTime) -> Result<(), DbError> {
    let opened = open_cases(tx, std::slice::from_ref(case), now).await?;
    outbox::append(tx, &opened, now).await
}

/// A case about one of our refunds.
pub fn case_of(clock: &Clock, kind: CaseKind, refund: &Refund, evidence: serde_json::Value) -> NewCase {
    NewCase { subject_ref: refund.refund_no.to_string(), ..case(clock, kind, refund.order_id, evidence) }
}

/// A case about an order; the caller sets the case's number.
pub(super) fn case(clock: &Clock, kind: CaseKind, order_id: OrderId, evidence: serde_json::Value) -> NewCase {
    let id = CaseId::from_u128(clock.fresh_bits());
    NewCase { id, kind, order_id: Some(order_id), subject_ref: String::new(), evidence }
}
