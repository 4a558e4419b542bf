//! What a batch writes.

use std::collections::HashSet;

use domain::message::event::Event;
use domain::message::job::{CheckRequest, Decision, JobRequest};
use domain::{CaseId, OrderId};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::late::{self, Return};
use super::opening::open_cases;
use crate::error::DbError;
use crate::tables::cases::NewCase;
use crate::tables::orders::Paid;
use crate::tables::transactions::ExtraPayment;
use crate::tables::{cases, events as outbox, extra, jobs, orders, transactions};

/// What a batch writes. Each kind takes one statement.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) paid: Vec<Paid>,
    pub(super) closed: Vec<OrderId>,
    pub(super) extra: Vec<ExtraPayment>,
    pub(super) events: Vec<Event>,
    pub(super) cases: Vec<NewCase>,
    /// Orders that become paid by a late payment. Their cases, already resolved, are in `decided`.
    pub(super) honoured: Vec<Paid>,
    /// Late payments that the policy will fulfil after a query to the gateway: the order and the case.
    pub(super) fulfil: Vec<(OrderId, CaseId)>,
    pub(super) decided: Vec<NewCase>,
    /// Each with the index of its case in `cases`.
    pub(super) returns: Vec<(Return, usize)>,
}

impl Effects {
    /// The orders for which an extra payment may have arrived, or whose extra payment may now have become their own.
    fn with_extra_money(&self) -> Vec<OrderId> {
        let noted = self.extra.iter().map(|extra| extra.order_id);
        let honoured = self.honoured.iter().map(|paid| paid.id);
        let of_cases = self.cases.iter().filter(|case| case.kind.is_of_money_held()).filter_map(|case| case.order_id);
        let orders: HashSet<OrderId> = noted.chain(honoured).chain(of_cases).collect();
        orders.into_iter().collect()
    }

    /// Writes everything that was decided, one statement for each kind. A move that no longer fits its order is an error,
    /// and the caller rolls everything back.
    pub(super) async fn write(mut self, tx: &mut PgConnection, now: OffsetDateTime) -> Result<(), DbError> {
        if !self.paid.is_empty() {
            orders::mark_paid(tx, &self.paid, now).await?;
            let ids: Vec<OrderId> = self.paid.iter().map(|paid| paid.id).collect();
            jobs::end_checks(tx, &ids).await?;
        }
        if !self.closed.is_empty() {
            orders::mark_closed(tx, &self.closed, now).await?;
        }
        if !self.extra.is_empty() {
            transactions::note_extra(tx, &self.extra, now).await?;
        }
        if !self.honoured.is_empty() {
            orders::mark_honoured(tx, &self.honoured, now).await?;
            let ids: Vec<OrderId> = self.honoured.iter().map(|paid| paid.id).collect();
            jobs::end_checks(tx, &ids).await?;
            cases::record_resolved(tx, &self.decided, late::BY_POLICY, late::POLICY, now).await?;
        }
        for (back, case) in &self.returns {
            late::give_back(tx, back, &mut self.cases[*case].evidence, now).await?;
        }
        if !self.cases.is_empty() {
            self.events.extend(open_cases(tx, &self.cases, now).await?);
        }
        for (order_id, case_id) in &self.fulfil {
            let check = JobRequest::Check(*order_id, CheckRequest::of_case(*case_id, Decision::Fulfil));
            jobs::request(&mut *tx, &check, Duration::ZERO).await?;
        }
        // Updates what the buyer reads about payments that were not owed.
        extra::follow(tx, &self.with_extra_money(), now).await?;
        if !self.events.is_empty() {
            outbox::append(tx, &self.events, now).await?;
        }
        Ok(())
    }
}
