//! One order's story: every row that tells something about it, the moments in the order of time, and what is expected
//! next. `paymentctl explain` and `GET /v1/admin/orders/{number}` show it.
//!
//! The story leaves out everything that can identify the payer: the parameters of the payment, addresses, the bytes of
//! callbacks, the content of events, and the shop's metadata. A callback that could not be parsed names no order; only
//! its case shows it.

mod events;
mod moments;

use domain::message::job::JobKind;
use domain::{CaseStatus, OrderId, OrderStatus, RefundStatus};
use runtime::beijing;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::tables::callbacks::{self, Seen};
use crate::tables::cases::{self, Case};
use crate::tables::events::{self as outbox, Republished, Trace};
use crate::tables::idempotency_keys::{self, Request};
use crate::tables::jobs::{self, Standing};
use crate::tables::outline::Outline;
use crate::tables::refunds::{self, Refund};
use crate::tables::transactions::{self, Movement};

pub use events::event_ids;
pub use moments::{Step, steps};

/// Everything that is known about one order.
#[derive(Debug, Clone)]
pub struct Story {
    /// The order.
    pub order: Outline,
    /// Every movement of its money, oldest first.
    pub movements: Vec<Movement>,
    /// Its refunds, oldest first.
    pub refunds: Vec<Refund>,
    /// Every callback that named it, oldest first.
    pub callbacks: Vec<Seen>,
    /// The jobs about it and its refunds, the next one first.
    pub jobs: Vec<Standing>,
    /// Its events, in the order of publishing.
    pub events: Vec<Trace>,
    /// Which of its events were published again.
    pub republished: Vec<Republished>,
    /// Its cases, oldest first.
    pub cases: Vec<Case>,
    /// The requests with an Idempotency-Key that made it and its refunds, oldest first, while their keys are stored.
    pub requests: Vec<Request>,
}

/// One moment of the story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// When it happened.
    pub at: OffsetDateTime,
    /// The time by which moments are sorted.
    place: OffsetDateTime,
    /// What tells it: `order`, `request`, `transaction`, `refund`, `callback`, `job`, `event` or `case`.
    pub source: &'static str,
    /// What happened, in words.
    pub what: String,
}

impl Moment {
    fn new(at: OffsetDateTime, source: &'static str, what: impl Into<String>) -> Moment {
        Moment { at, place: at, source, what: what.into() }
    }

    /// A gateway reports whole seconds. A cause within the same second must come before its effect in the story.
    fn after(self, cause: OffsetDateTime) -> Moment {
        let within = cause > self.at && cause - self.at < Duration::seconds(1);
        Moment { place: if within { cause } else { self.at }, ..self }
    }
}

impl Story {
    /// Reads everything about an order. In one transaction with a snapshot, the parts agree with each other.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn read(db: &mut PgConnection, order: Outline) -> Result<Story, DbError> {
        let refunds = refunds::of_order(&mut *db, order.id).await?;
        let cases = cases::of_order(&mut *db, order.id).await?;
        let ids = ids(order.id, &refunds);
        let movements = transactions::of_order(&mut *db, order.id).await?;
        let event_ids = event_ids(order.id, &movements, &refunds, &cases);
        Ok(Story {
            events: outbox::traces(&mut *db, &event_ids).await?,
            republished: outbox::republishes(&mut *db, &event_ids).await?,
            movements,
            callbacks: callbacks::of_order(&mut *db, &order.order_no).await?,
            jobs: jobs::about(&mut *db, &ids).await?,
            requests: idempotency_keys::of_rows(&mut *db, &ids).await?,
            refunds,
            cases,
            order,
        })
    }

    /// The moments, oldest first.
    pub fn moments(&self) -> Vec<Moment> {
        let mut all = moments::of_order(&self.order);
        all.extend(self.requests.iter().map(moments::request));
        all.extend(self.movements.iter().flat_map(moments::movement));
        all.extend(self.refunds.iter().flat_map(moments::refund));
        all.extend(self.callbacks.iter().flat_map(moments::callback));
        all.extend(self.jobs.iter().map(moments::job));
        all.extend(self.events.iter().flat_map(moments::event));
        all.extend(self.republished.iter().flat_map(moments::republished));
        all.extend(self.cases.iter().flat_map(moments::case));
        // A stable sort: moments of the same time stay in the sequence in which the sources list them.
        all.sort_by_key(|moment| moment.place);
        all
    }

    /// What is expected next, in words; at least one line.
    pub fn next(&self, now: OffsetDateTime) -> Vec<String> {
        let mut next = Vec::new();
        let is_pending = self.order.status == OrderStatus::Pending;
        if is_pending {
            let word = if self.order.expires_at > now { "the buyer can pay until" } else { "the time to pay ended at" };
            next.push(format!("{word} {}", beijing::moment(self.order.expires_at)));
        }
        next.extend(self.jobs.iter().map(|job| due(job, now)));
        if is_pending && self.jobs.is_empty() {
            next.push("no check is due: only POST /v1/admin/orders/{id}/sync will query the gateway".to_owned());
        }
        for refund in self.refunds.iter().filter(|refund| refund.status == RefundStatus::Requested) {
            let whom = if refund.approved_by.is_some() { "a second person" } else { "a person" };
            next.push(format!("the request for refund {} waits for {whom} to approve it", refund.refund_no));
        }
        if self.refunds.iter().any(|refund| refund.status.in_flight())
            && !self.jobs.iter().any(|job| job.kind == JobKind::Refund)
        {
            next.push(
                "a refund is under way, and it has no job: the service will not query the gateway about it".to_owned(),
            );
        }
        for event in self.events.iter().filter(|event| event.published_at.is_none()) {
            let waits = match event.retry_at {
                Some(at) => format!("no queue received it; again at {}", beijing::moment(at)),
                None => "not yet".to_owned(),
            };
            next.push(format!("event {} goes out ({waits})", event.event_id));
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

/// The ids of the order and its refunds, as other tables name them.
fn ids(order: OrderId, refunds: &[Refund]) -> Vec<String> {
    std::iter::once(order.to_string()).chain(refunds.iter().map(|refund| refund.id.to_string())).collect()
}

fn due(job: &Standing, now: OffsetDateTime) -> String {
    let due = if job.due_at > now { "due at" } else { "due since" };
    let held = job.lease_until.filter(|until| *until > now);
    let held = held.map(|until| format!(", queued or being worked on until {}", beijing::moment(until)));
    let what = match job.kind {
        JobKind::LookBack => "another query for refunded money",
        kind => kind.as_str(),
    };
    format!("{what} {due} {}{}", beijing::moment(job.due_at), held.unwrap_or_default())
}
