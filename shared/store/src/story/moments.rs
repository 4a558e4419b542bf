//! What each row of an order tells, as moments.

use domain::CaseStatus;
use runtime::beijing;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Moment;
use crate::tables::callbacks::Seen;
use crate::tables::cases::Case;
use crate::tables::events::{Republished, Trace};
use crate::tables::idempotency_keys::Request;
use crate::tables::jobs::Standing;
use crate::tables::outline::Outline;
use crate::tables::refunds::Refund;
use crate::tables::transactions::Movement;

pub(super) fn of_order(order: &Outline) -> Vec<Moment> {
    let mut all = vec![Moment::new(order.created_at, "order", format!("created for user {}", order.user_id))];
    all.extend(order.paid_at.map(|at| {
        let trade = order.trade_no.as_ref().map(|no| format!(" by trade {}", no.as_str())).unwrap_or_default();
        Moment::new(at, "order", format!("paid{trade}, by the gateway's clock")).after(order.created_at)
    }));
    all.extend(order.close_requested_at.map(|at| Moment::new(at, "order", "a close was requested")));
    all.extend(order.closed_at.map(|at| Moment::new(at, "order", "closed")));
    all.extend(order.checked_at.map(|at| {
        let said = order.gateway_state.as_deref().unwrap_or("nothing");
        Moment::new(at, "order", format!("the gateway was last queried and answered {said}"))
    }));
    all
}

pub(super) fn request(request: &Request) -> Moment {
    let refused = request.refused_with.map(|status| format!(", refused permanently with {status}")).unwrap_or_default();
    let held = request.held_until.map(|until| format!(", worked on until {}", beijing::moment(until)));
    let by = if request.caller == "buyer" { String::new() } else { format!(" by a caller of kind {}", request.caller) };
    let until = beijing::moment(request.expires_at);
    let what = format!("{}{by} under an Idempotency-Key stored until {until}", request.route);
    Moment::new(request.created_at, "request", format!("{what}{refused}{}", held.unwrap_or_default()))
}

pub(super) fn movement(movement: &Movement) -> Vec<Moment> {
    let name = format!("{} {} of {} yuan", movement.action_type, movement.transaction_no, movement.amount);
    let mut all = vec![Moment::new(movement.created_at, "transaction", format!("{name} begun"))];
    if movement.status != "pending" {
        let no = movement.gateway_no.as_ref().map(|no| format!(", at the gateway {no}")).unwrap_or_default();
        all.push(Moment::new(movement.updated_at, "transaction", format!("{name} {}{no}", movement.status)));
    }
    all
}

pub(super) fn refund(refund: &Refund) -> Vec<Moment> {
    let name = format!("refund {}", refund.refund_no);
    let approved = refund.approved_by.as_ref().map(|who| format!(", approved by {who}")).unwrap_or_default();
    let by = format!("{name} of {} yuan requested by {}{approved}", refund.amount, refund.requested_by);
    let mut all = vec![Moment::new(refund.created_at, "refund", by)];
    all.extend(
        refund.sent_at.map(|at| {
            Moment::new(at, "refund", format!("{name} last sent to the gateway, attempt {}", refund.attempts))
        }),
    );
    all.extend(refund.succeeded_at.map(|at| {
        let cause = refund.sent_at.unwrap_or(refund.created_at);
        Moment::new(at, "refund", format!("{name} succeeded")).after(cause)
    }));
    if refund.succeeded_at.is_none() {
        let why = refund.decline_reason.as_ref().or(refund.last_error.as_ref());
        let last_error = why.map(|why| format!(": {why}")).unwrap_or_default();
        let by = refund.ended_by.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
        all.push(Moment::new(refund.updated_at, "refund", format!("{name} is {}{by}{last_error}", refund.status)));
    }
    all
}

pub(super) fn callback(seen: &Seen) -> Vec<Moment> {
    let name = format!("{} at account {}", seen.notice_id, seen.account);
    let note = seen.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    let first = Moment::new(seen.received_at, "callback", format!("{name}: {}{note}", seen.verdict));
    let again = (seen.times_seen > 1)
        .then(|| Moment::new(seen.last_seen_at, "callback", format!("{name} seen {} times by now", seen.times_seen)));
    std::iter::once(first).chain(again).collect()
}

pub(super) fn job(job: &Standing) -> Moment {
    let last_error = job.last_error.as_ref().map(|error| format!(", last: {error}")).unwrap_or_default();
    let what = format!("{} created as job {}, tried {} times{last_error}", job.kind, job.id, job.attempts);
    Moment::new(job.created_at, "job", what)
}

pub(super) fn event(event: &Trace) -> Vec<Moment> {
    let happened = Moment::new(event.occurred_at, "event", format!("{} written", event.event_id));
    let published = event.published_at.map(|at| Moment::new(at, "event", format!("{} published", event.event_id)));
    std::iter::once(happened).chain(published).collect()
}

/// Marking the event for republishing erased the time at which it was published before. This table holds that time.
pub(super) fn republished(once: &Republished) -> [Moment; 2] {
    let Republished { event_id, published_at, republished_by, republished_at, .. } = once;
    let before = Moment::new(*published_at, "event", format!("{event_id} published"));
    [before, Moment::new(*republished_at, "event", format!("{event_id} to be published again, by {republished_by}"))]
}

pub(super) fn case(case: &Case) -> Vec<Moment> {
    let name = format!("case {} ({})", case.id, case.kind);
    let opened = Moment::new(case.created_at, "case", format!("{name} opened, number {}", case.subject_ref));
    let steps = steps(case);
    // A rule resolves a case without a history entry.
    let by_rule = steps.is_empty() || case.resolved_by.as_deref().is_some_and(|by| ["service", "policy"].contains(&by));
    let ended = (case.status == CaseStatus::Resolved && by_rule).then(|| {
        let how = case.resolution.as_deref().unwrap_or_default();
        let by = case.resolved_by.as_deref().unwrap_or("unknown");
        Moment::new(case.updated_at, "case", format!("{name} resolved by {by}: {how}"))
    });
    let steps = steps.into_iter().map(|step| Moment::new(step.at, "case", format!("{name}: {}", step.what)));
    std::iter::once(opened).chain(steps).chain(ended).collect()
}

/// One entry of a case's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When it was done, by the clock of who wrote it.
    pub at: OffsetDateTime,
    /// Who did what.
    pub what: String,
}

/// Who did what about a case, and when, oldest first.
pub fn steps(case: &Case) -> Vec<Step> {
    let entries = case.history.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("?").to_owned();
    let step = |entry: &Value| {
        let action = if entry["action"].is_null() { String::new() } else { format!(": {}", entry["action"]) };
        let ended =
            entry["ended"]["resolution"].as_str().map(|how| format!("; it had ended: {how}")).unwrap_or_default();
        // Only the API, the workers and the operators' tool write this value, all in this form.
        let at = OffsetDateTime::parse(&text(entry, "at"), &Rfc3339).unwrap_or(case.updated_at);
        Step { at, what: format!("{} {}{action}{ended}", text(entry, "who"), text(entry, "what")) }
    };
    entries.iter().map(step).collect()
}
