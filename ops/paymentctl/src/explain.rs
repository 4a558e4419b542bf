//! `paymentctl explain`: one order as a timeline from every source, and what is expected next.
//!
//! The output omits everything that can identify the payer: the parameters of the payment, addresses, the bytes of
//! callbacks, and the shop's metadata. The database role of paymentctl cannot read these columns. A callback that
//! could not be parsed names no order; only its case shows it.

use domain::message::job::JobKind;
use domain::{CaseStatus, OrderStatus};
use serde_json::{Value, json};
use store::tables::callbacks::{self, Seen};
use store::tables::cases::{self, Case};
use store::tables::events::{self as outbox, Republished, StoredEvent};
use store::tables::idempotency_keys::{self, Request};
use store::tables::jobs::{self, Standing};
use store::tables::outline::Outline;
use store::tables::refunds::{self, Refund};
use store::tables::transactions::{self, Movement};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::answer::{Answer, Problem, instant, lines as shown, moment, table};
use crate::cases::steps;
use crate::events::{about, order_of, out};
use crate::place::Place;

/// Everything that is known about one order.
struct Known {
    order: Outline,
    movements: Vec<Movement>,
    refunds: Vec<Refund>,
    callbacks: Vec<Seen>,
    jobs: Vec<Standing>,
    events: Vec<StoredEvent>,
    republished: Vec<Republished>,
    cases: Vec<Case>,
    requests: Vec<Request>,
}

/// One line of the timeline.
struct Moment {
    at: OffsetDateTime,
    /// The time by which the timeline is sorted.
    place: OffsetDateTime,
    source: &'static str,
    what: String,
}

impl Moment {
    fn new(at: OffsetDateTime, source: &'static str, what: impl Into<String>) -> Moment {
        Moment { at, place: at, source, what: what.into() }
    }

    /// A gateway reports whole seconds. A cause within the same second must come before its effect in the timeline.
    fn after(self, cause: OffsetDateTime) -> Moment {
        let within = cause > self.at && cause - self.at < Duration::seconds(1);
        Moment { place: if within { cause } else { self.at }, ..self }
    }
}

/// Shows an order's timeline.
///
/// # Errors
/// [`Problem`] when there is no such order.
pub async fn run(place: &Place, id_or_number: &str) -> Result<Answer, Problem> {
    let known = Known::read(place, id_or_number).await?;
    let mut timeline = known.timeline();
    // A stable sort: entries of the same time stay in the sequence in which the sources list them.
    timeline.sort_by_key(|line| line.place);
    let next = known.next(place.clock.now());
    let order = &known.order;
    let rows: Vec<Vec<String>> =
        timeline.iter().map(|line| vec![instant(line.at), line.source.to_owned(), line.what.clone()]).collect();
    let first = format!(
        "order {}, number {}: {} yuan at {} ({}, account {}), {}",
        order.id, order.order_no, order.amount, order.payment_method, order.scene, order.account, order.status,
    );
    let expected: Vec<String> = next.iter().map(|line| format!("  {line}")).collect();
    let timeline_shown = table(&["TIME", "SOURCE", "WHAT"], &rows);
    let text = format!("{}\n\n{timeline_shown}\n\nnext\n{}", shown(&[first]), shown(&expected));
    let lines: Vec<Value> = timeline
        .iter()
        .map(|line| json!({ "at": instant(line.at), "source": line.source, "what": line.what }))
        .collect();
    Ok(Answer::done(text, json!({ "order": view(order), "timeline": lines, "next": next })))
}

fn view(order: &Outline) -> Value {
    json!({
        "id": order.id.to_string(),
        "order_no": order.order_no.as_str(),
        "user_id": order.user_id.as_str(),
        "product_type": order.product_type.as_str(),
        "subject": order.subject.as_str(),
        "amount": order.amount.to_string(),
        "refunded_amount": order.refunded_amount.to_string(),
        "payment_method": order.payment_method.as_str(),
        "scene": order.scene.as_str(),
        "account": order.account.as_str(),
        "status": order.status.as_str(),
        "trade_no": order.trade_no.as_ref().map(|no| no.as_str()),
        "expires_at": moment(order.expires_at),
        "paid_at": order.paid_at.map(moment),
        "closed_at": order.closed_at.map(moment),
        "checked_at": order.checked_at.map(moment),
        "gateway_state": order.gateway_state,
        "version": order.version,
        "created_at": moment(order.created_at),
        "updated_at": moment(order.updated_at),
    })
}

impl Known {
    async fn read(place: &Place, id_or_number: &str) -> Result<Known, Problem> {
        let (db, order) = (&place.db, order_of(place, id_or_number).await?);
        let refunds = refunds::of_order(db, order.id).await?;
        let cases = cases::of_order(db, order.id).await?;
        let ids = std::iter::once(order.id.to_string()).chain(refunds.iter().map(|refund| refund.id.to_string()));
        let ids: Vec<String> = ids.collect();
        let events = about(place, &order, &refunds, &cases).await?;
        let event_ids: Vec<String> = events.iter().map(|event| event.event_id.clone()).collect();
        Ok(Known {
            republished: outbox::republishes(db, &event_ids).await?,
            movements: transactions::of_order(db, order.id).await?,
            callbacks: callbacks::of_order(db, &order.order_no).await?,
            jobs: jobs::about(db, &ids).await?,
            events,
            requests: idempotency_keys::of_rows(db, &order.user_id, &ids).await?,
            refunds,
            cases,
            order,
        })
    }

    /// The entries of the timeline, source by source.
    fn timeline(&self) -> Vec<Moment> {
        let mut lines = self.of_order();
        lines.extend(self.requests.iter().map(request));
        lines.extend(self.movements.iter().flat_map(movement));
        lines.extend(self.refunds.iter().flat_map(refund));
        lines.extend(self.callbacks.iter().flat_map(callback));
        lines.extend(self.jobs.iter().map(job));
        lines.extend(self.events.iter().flat_map(event));
        lines.extend(self.republished.iter().flat_map(republished));
        lines.extend(self.cases.iter().flat_map(case));
        lines
    }

    fn of_order(&self) -> Vec<Moment> {
        let order = &self.order;
        let mut lines = vec![Moment::new(order.created_at, "order", format!("created by user {}", order.user_id))];
        lines.extend(order.paid_at.map(|at| {
            let trade = order.trade_no.as_ref().map(|no| format!(" by trade {}", no.as_str())).unwrap_or_default();
            Moment::new(at, "order", format!("paid{trade}, by the gateway's clock")).after(order.created_at)
        }));
        lines.extend(order.closed_at.map(|at| Moment::new(at, "order", "closed")));
        lines.extend(order.checked_at.map(|at| {
            let said = order.gateway_state.as_deref().unwrap_or("nothing");
            Moment::new(at, "order", format!("the gateway was last queried and answered {said}"))
        }));
        lines
    }

    /// What is expected next, in words; at least one line.
    fn next(&self, now: OffsetDateTime) -> Vec<String> {
        let mut next = Vec::new();
        if self.order.status == OrderStatus::Pending {
            let word = if self.order.expires_at > now { "the buyer can pay until" } else { "the time to pay ended at" };
            next.push(format!("{word} {}", moment(self.order.expires_at)));
        }
        for job in &self.jobs {
            let due = if job.due_at > now { "due at" } else { "due since" };
            let held = job.lease_until.filter(|until| *until > now);
            let held = held.map(|until| format!(", queued or being worked on until {}", moment(until)));
            let what = match job.kind {
                JobKind::LookBack => "another query for refunded money",
                kind => kind.as_str(),
            };
            next.push(format!("{what} {due} {}{}", moment(job.due_at), held.unwrap_or_default()));
        }
        if self.order.status == OrderStatus::Pending && self.jobs.is_empty() {
            next.push("no check is due: only POST /v1/admin/orders/{id}/sync will query the gateway".to_owned());
        }
        if self.refunds.iter().any(|refund| refund.status.in_flight())
            && !self.jobs.iter().any(|job| job.kind == JobKind::Refund)
        {
            next.push(
                "a refund is under way, and it has no job: the service will not query the gateway about it".to_owned(),
            );
        }
        for event in self.events.iter().filter(|event| event.published_at.is_none()) {
            next.push(format!("event {} goes out ({})", event.event_id, out(event)));
        }
        for case in self.cases.iter().filter(|case| case.status != CaseStatus::Resolved) {
            let whom = if case.status == CaseStatus::Proposed { "another person to confirm" } else { "a person" };
            next.push(format!("case {} ({}) waits for {whom}", case.id, case.kind));
        }
        if next.is_empty() {
            next.push("nothing: the order is in its final state".to_owned());
        }
        next
    }
}

fn request(request: &Request) -> Moment {
    let refused = request.refused_with.map(|status| format!(", refused permanently with {status}")).unwrap_or_default();
    let held = request.held_until.map(|until| format!(", worked on until {}", moment(until))).unwrap_or_default();
    let what = format!("{} under an Idempotency-Key stored until {}", request.route, moment(request.expires_at));
    Moment::new(request.created_at, "request", format!("{what}{refused}{held}"))
}

fn movement(movement: &Movement) -> Vec<Moment> {
    let name = format!("{} {} of {} yuan", movement.action_type, movement.transaction_no, movement.amount);
    let mut lines = vec![Moment::new(movement.created_at, "transaction", format!("{name} begun"))];
    if movement.status != "pending" {
        let no = movement.gateway_no.as_ref().map(|no| format!(", at the gateway {no}")).unwrap_or_default();
        lines.push(Moment::new(movement.updated_at, "transaction", format!("{name} {}{no}", movement.status)));
    }
    lines
}

fn refund(refund: &Refund) -> Vec<Moment> {
    let name = format!("refund {}", refund.refund_no);
    let by = format!("{name} of {} yuan requested by {}", refund.amount, refund.requested_by);
    let mut lines = vec![Moment::new(refund.created_at, "refund", by)];
    lines.extend(
        refund.sent_at.map(|at| {
            Moment::new(at, "refund", format!("{name} last sent to the gateway, attempt {}", refund.attempts))
        }),
    );
    lines.extend(refund.succeeded_at.map(|at| {
        let cause = refund.sent_at.unwrap_or(refund.created_at);
        Moment::new(at, "refund", format!("{name} succeeded")).after(cause)
    }));
    if refund.succeeded_at.is_none() {
        let last_error = refund.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        lines.push(Moment::new(refund.updated_at, "refund", format!("{name} is {}{last_error}", refund.status)));
    }
    lines
}

fn callback(seen: &Seen) -> Vec<Moment> {
    let name = format!("{} at account {}", seen.notice_id, seen.account);
    let note = seen.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    let first = Moment::new(seen.received_at, "callback", format!("{name}: {}{note}", seen.verdict));
    let again = (seen.times_seen > 1)
        .then(|| Moment::new(seen.last_seen_at, "callback", format!("{name} seen {} times by now", seen.times_seen)));
    std::iter::once(first).chain(again).collect()
}

fn job(job: &Standing) -> Moment {
    let last_error = job.last_error.as_ref().map(|error| format!(", last: {error}")).unwrap_or_default();
    let what = format!("{} created as job {}, tried {} times{last_error}", job.kind, job.id, job.attempts);
    Moment::new(job.created_at, "job", what)
}

fn event(event: &StoredEvent) -> Vec<Moment> {
    let happened = Moment::new(event.occurred_at, "event", format!("{} written", event.event_id));
    let published = event.published_at.map(|at| Moment::new(at, "event", format!("{} published", event.event_id)));
    std::iter::once(happened).chain(published).collect()
}

/// Marking the event for republishing erased the time at which it was published before. This table holds that time.
fn republished(once: &Republished) -> [Moment; 2] {
    let Republished { event_id, published_at, republished_by, republished_at, .. } = once;
    let before = Moment::new(*published_at, "event", format!("{event_id} published"));
    [before, Moment::new(*republished_at, "event", format!("{event_id} to be published again, by {republished_by}"))]
}

fn case(case: &Case) -> Vec<Moment> {
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
    let steps = steps.into_iter().map(|(at, step)| {
        // Only the API and this tool write this value, both in this form.
        let at = OffsetDateTime::parse(&at, &Rfc3339).unwrap_or(case.updated_at);
        Moment::new(at, "case", format!("{name}: {step}"))
    });
    std::iter::once(opened).chain(steps).chain(ended).collect()
}
