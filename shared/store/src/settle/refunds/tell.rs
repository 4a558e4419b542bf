//! Writes the events, cases and jobs that follow from a report about a refund.

use domain::message::event::Event;
use domain::message::job::{CheckRequest, JobRequest, RefundRequest};
use domain::{CaseKind, Money, RefundFailure, RefundReport, RefundState, RefundStatus};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;
use time::Duration;

use super::named;
use crate::error::DbError;
use crate::settle::opening::{case_of, open};
use crate::settle::{events, outside};
use crate::tables::orders::Order;
use crate::tables::refunds::{self, Refund};
use crate::tables::{cases, events as outbox, jobs};

/// How long after a refund fails we query it once more.
pub const LOOK_BACK: Duration = Duration::days(1);

/// Writes the events and cases of a move; `order` is as the move leaves it, and `refund` as it was before.
pub(super) async fn tell(
    tx: &mut PgConnection,
    order: &Order,
    refund: &Refund,
    report: &RefundReport,
    clock: &Clock,
) -> Result<(), DbError> {
    let now = clock.now();
    let mut new_events: Vec<Event> = Vec::new();
    let why = failure(refund, report.state);
    match report.state {
        RefundState::Succeeded => {
            new_events.push(events::refund_succeeded(order, refund, report.at.unwrap_or(now)));
            cases::end_of_refund(tx, refund, "the refund has succeeded", now).await?;
            if matches!(refund.status, RefundStatus::Failed | RefundStatus::Withdrawn) {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "found": "returned" });
                open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), now).await?;
            }
        }
        RefundState::Absent | RefundState::Closed => {
            new_events.push(events::refund_failed(order, refund, why.as_deref().unwrap_or_default()));
            // A payment that was not owed must still be returned. Its case may have been resolved when this refund was
            // requested.
            if report.state == RefundState::Closed || order.trade_no.as_ref() != Some(&refund.trade_no) {
                let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "why": why });
                open(tx, &case_of(clock, CaseKind::RefundClosed, refund, evidence), now).await?;
            }
        }
        RefundState::Abnormal => {
            if events::is_own(order, refund) {
                new_events.push(events::refund_abnormal(order, refund, why.as_deref().unwrap_or_default()));
            }
            let evidence = json!({
                "refund_no": refund.refund_no, "amount": refund.amount, "gateway_refund_no": report.gateway_refund_no,
            });
            open(tx, &case_of(clock, CaseKind::RefundAbnormal, refund, evidence), now).await?;
        }
        RefundState::Processing => {}
    }
    outbox::append(tx, &new_events, now).await?;
    match report.state {
        // The schedule queries it until it is final: an undeliverable one daily.
        RefundState::Abnormal | RefundState::Processing => Ok(()),
        // An absence may be unsigned (WeChat Pay's is), so we query it once more, much later.
        RefundState::Absent => {
            jobs::request(&mut *tx, &JobRequest::Refund(refund.id, RefundRequest::default()), LOOK_BACK).await
        }
        RefundState::Succeeded | RefundState::Closed => jobs::drop_refund(tx, refund.id).await,
    }
}

/// Runs when a refund becomes final. Money that was returned outside this service can be recognised now.
pub(super) async fn ended(
    tx: &mut PgConnection,
    refund: &Refund,
    to: RefundStatus,
    stated: Option<Money>,
    clock: &Clock,
) -> Result<(), DbError> {
    outside::compare_again(tx, refund, stated, clock).await?;
    if matches!(to, RefundStatus::Failed | RefundStatus::Withdrawn) {
        // The money may have been returned in another way. A query about the whole trade shows it.
        let sync = JobRequest::Check(refund.order_id, CheckRequest::sync());
        jobs::request(&mut *tx, &sync, Duration::ZERO).await?;
    }
    Ok(())
}

/// The gateway knows a refund that we never sent: another party sent it under our number, and a person must look.
pub(super) async fn never_sent(
    tx: &mut PgConnection,
    refund: &Refund,
    report: &RefundReport,
    clock: &Clock,
) -> Result<(), DbError> {
    let found = named(report.state);
    let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "found": found });
    open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), clock.now()).await
}

/// A report that causes no move can still bring the gateway's refund number, which a person needs to send the refund
/// another way. If the gateway still holds a refund that we have recorded as failed, we open a case for a person.
pub(super) async fn no_move(
    tx: &mut PgConnection,
    refund: &Refund,
    report: &RefundReport,
    clock: &Clock,
) -> Result<(), DbError> {
    if report.state != RefundState::Abnormal {
        return Ok(());
    }
    match (refund.status, &report.gateway_refund_no) {
        (RefundStatus::Abnormal, Some(number)) if refund.gateway_refund_no.is_none() => {
            refunds::note_number(tx, refund.id, number, clock.now()).await
        }
        (RefundStatus::Failed | RefundStatus::Withdrawn, number) => {
            let evidence = json!({ "refund_no": refund.refund_no, "gateway_refund_no": number, "found": "abnormal" });
            open(tx, &case_of(clock, CaseKind::RefundAfterFailure, refund, evidence), clock.now()).await
        }
        _ => Ok(()),
    }
}

/// Why the refund did not reach the buyer, in words, for the event and for a person. The API shows the same words.
pub(super) fn failure(refund: &Refund, state: RefundState) -> Option<String> {
    match state {
        RefundState::Succeeded | RefundState::Processing => None,
        RefundState::Closed => Some(RefundFailure::Closed.words().to_owned()),
        RefundState::Abnormal => Some(RefundFailure::Undeliverable.words().to_owned()),
        RefundState::Absent => Some(RefundFailure::words_of_absence(refund.refused_code.as_deref())),
    }
}
