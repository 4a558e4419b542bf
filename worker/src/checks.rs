//! Queries the gateway about orders. A check finds payments whose callback was lost, and closes orders that have
//! expired or whose close was requested. After the close it queries again, for a payment that slipped through.
//!
//! The gateway comes first: we close an order only once it can no longer be paid at the gateway. If the check finds a
//! payment while it closes the order, it settles the payment.

use domain::message::job::{CheckRequest, JobKind};
use domain::message::schedule::{AFTER_CLOSE, AT_LEAST_APART, CHECKS, DAILY, LAST_LOOK, UNANSWERED};
use domain::{CaseId, CaseKind, Fact, Notification, OrderId, OrderStatus, Verdict};
use gateway::{CloseOutcome, Gateway, GatewayError, Gateways, TradeAnswer, Verified};
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::service::Service;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::cache::{Changed, Renewer};
use store::connect::in_time;
use store::settle;
use store::settle::accounts::Misconfigured;
use store::tables::cases::NewCase;
use store::tables::jobs::Taken;
use store::tables::orders::{self, Order};
use store::tables::{events as outbox, transactions};
use time::{Duration, OffsetDateTime};
use tracing::{error, info, warn};

use crate::jobs::job::{End, Job, JobError, Recorded};
use crate::jobs::wait::pause;
use crate::people::{self, QueryError, Wanted};

/// Works on checks.
pub struct CheckWorker {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// The gateways to query.
    pub gateways: Gateways,
    /// The clock.
    pub clock: Clock,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}

/// What the gateway answered about an order.
struct GatewayAnswer {
    /// The state in the gateway's own words.
    state: String,
    /// The verified facts. `None`: the gateway knows no such order, and this answer may be unsigned.
    notification: Option<Verified<Notification>>,
    /// The gateway has closed the order, or knows none and a trade can no longer be created for it.
    ended: bool,
}

/// What a step has learnt.
pub enum Learnt {
    /// The order is paid, and nothing is asked about it.
    Over,
    /// The gateway answered.
    Answered(Box<Answered>),
    /// It gave no answer that we can act on.
    Unanswered(Box<Order>, GatewayError),
}

/// An answer about an order, with what people have asked for.
pub struct Answered {
    order: Order,
    answer: GatewayAnswer,
    wanted: Wanted,
}

impl Job for CheckWorker {
    const WORKER: Service = Service::CheckWorker;
    const POINTS: (Point, Point) = (Point::CheckRecorded, Point::CheckCommitted);
    type Learnt = Learnt;
    type Outcome = Option<(Order, Verdict)>;

    async fn learn(&self, job: &Taken) -> Result<Learnt, JobError> {
        let id = OrderId::parse(&job.ref_id).map_err(|error| JobError::Missing(error.to_string()))?;
        let missing = |what: &str| JobError::Missing(format!("{what} of order {id}"));
        let order = in_time(orders::get(&self.db, id)).await?.ok_or_else(|| missing("the row"))?;
        let request = CheckRequest::read(&job.payload);
        let looks_back = job.kind == JobKind::LookBack && order.status != OrderStatus::Refunded;
        if order.status.was_paid() && !request.sync && !looks_back && request.of_cases.is_empty() {
            return Ok(Learnt::Over);
        }
        let gateway = self.gateways.get(order.payment_method, &order.account).ok_or_else(|| missing("the account"))?;
        match self.query_all(gateway.as_ref(), &order, &request, job).await {
            Ok((answer, wanted)) => Ok(Learnt::Answered(Box::new(Answered { order, answer, wanted }))),
            Err(QueryError::Gateway(error)) => Ok(Learnt::Unanswered(Box::new(order), error)),
            Err(QueryError::Job(error)) => Err(error),
        }
    }

    async fn record(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        learnt: &Learnt,
    ) -> Result<Recorded<Option<(Order, Verdict)>>, JobError> {
        match learnt {
            Learnt::Over => Ok(Recorded::new(End::Done, None)),
            Learnt::Answered(answered) => self.settle(tx, job, answered).await,
            Learnt::Unanswered(order, error) => {
                let end = self.put_off(tx, job, order, error).await?;
                Ok(Recorded::new(end, None))
            }
        }
    }

    /// Updates the metrics and the log, and notifies the relay, once everything is committed.
    async fn report(&self, learnt: &Learnt, outcome: Option<(Order, Verdict)>) {
        let (Learnt::Answered(answered), Some((order, verdict))) = (learnt, outcome) else { return };
        count(&order, verdict.as_str());
        if matches!(verdict, Verdict::Ignored | Verdict::Duplicate) {
            return;
        }
        self.copies.renew(&self.db, Changed::Ids(vec![order.id]));
        let (order_no, state) = (&order.order_no, &answered.answer.state);
        info!(%order_no, order_id = %order.id, state, %verdict, "Check of order {order_no}: {verdict}");
        if let Err(error) = outbox::nudge(&self.db).await {
            warn!(error = chain(&error), "The relay was not nudged; it will poll");
        }
    }

    fn db(&self) -> &PgPool {
        &self.db
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl CheckWorker {
    /// Queries the refunds that people want booked, then the order.
    async fn query_all(
        &self,
        gateway: &dyn Gateway,
        order: &Order,
        request: &CheckRequest,
        job: &Taken,
    ) -> Result<(GatewayAnswer, Wanted), QueryError> {
        let wanted = people::query(gateway, order, request, job.now(), &self.db).await?;
        Ok((self.query_and_close(gateway, order, job).await?, wanted))
    }

    /// Queries the gateway, and closes the order there if it has expired or its close was requested. Runs outside any
    /// transaction.
    async fn query_and_close(
        &self,
        gateway: &dyn Gateway,
        order: &Order,
        job: &Taken,
    ) -> Result<GatewayAnswer, GatewayError> {
        let answer = query(gateway, order, job.now()).await?;
        crash::at(Point::CheckQueried);
        met(Point::CheckQueried, order)?;
        let expired = order.expires_at <= job.now();
        if order.status != OrderStatus::Pending || !answer.unpaid() || !(expired || given_up(job)) {
            return Ok(answer);
        }
        let closed = gateway.close(&order.order_no, job.now()).await?;
        crash::at(Point::CheckClosed);
        met(Point::CheckClosed, order)?;
        match closed {
            CloseOutcome::Closed => Ok(GatewayAnswer { state: "CLOSED".to_owned(), ended: true, ..answer }),
            // The offer to the gateway named the last moment to pay: after it, no trade can be created.
            CloseOutcome::NoTradeYet => Ok(GatewayAnswer { ended: expired, ..answer }),
            CloseOutcome::NoTrade => Ok(GatewayAnswer { ended: true, ..answer }),
            // Another party was faster: most likely the buyer, who paid.
            CloseOutcome::NotClosed => match query(gateway, order, job.now()).await? {
                answer if answer.unpaid() => {
                    Err(GatewayError::Unknown(format!("not closed in state {}", answer.state)))
                }
                answer => Ok(answer),
            },
        }
    }

    /// Settles what the gateway answered; says when the job is due again.
    async fn settle(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        Answered { order, answer, wanted }: &Answered,
    ) -> Result<Recorded<Option<(Order, Verdict)>>, JobError> {
        let now = job.now();
        let notifications: Vec<&Verified<Notification>> = answer.notification.iter().collect();
        let verdicts = settle::settle(&mut *tx, &notifications, &self.gateways.policies(), &self.clock).await?;
        let mut verdict = verdicts.first().copied().unwrap_or(Verdict::Ignored);
        // Decisions of people come before the close of the order, because such a decision may make the order paid.
        let done = people::carry_out(&mut *tx, order, wanted, answer.fact(), &self.clock).await?;
        if done != Some(Verdict::Settled) && (answer.ended || is_void(&mut *tx, order, answer, now).await?) {
            verdict = settle::end_unpaid(&mut *tx, order, &self.clock).await?;
        }
        verdict = done.unwrap_or(verdict);
        crash::at(Point::CheckSettled);
        store::connect::met(&mut *tx, Point::CheckSettled, order.order_no.as_str()).await?;
        orders::note_check(&mut *tx, order.id, &answer.state, now).await?;
        let order = orders::lock_one(&mut *tx, order.id).await?.ok_or(DbError::Moved)?;
        // A request to close stays in force: an order that could not be closed yet is closed once it has a trade.
        let still_open = order.status == OrderStatus::Pending && given_up(job);
        let due_at = if job.kind == JobKind::LookBack { next_look(&order, now) } else { next(&order, answer, now) };
        Ok(Recorded {
            end: due_at.map_or(End::Done, |due_at| End::Snooze(due_at - now, answer.state.clone())),
            requests: Some(CheckRequest { close: still_open, ..CheckRequest::default() }.payload()),
            stands: true,
            subject: Some(order.order_no.to_string()),
            outcome: Some((order, verdict)),
        })
    }

    /// Postpones the job, because the gateway gave no answer that we can act on. The requests in its payload stay.
    async fn put_off(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        order: &Order,
        error: &GatewayError,
    ) -> Result<End, JobError> {
        let order_no = &order.order_no;
        if matches!(
            error,
            GatewayError::Protocol(_) | GatewayError::Refused { .. } | GatewayError::Misconfigured { .. }
        ) {
            error!(%order_no, order_id = %order.id, error = chain(&error), "Order {order_no} cannot be checked");
        } else {
            warn!(%order_no, order_id = %order.id, error = chain(&error), "Order {order_no} will be checked again later");
        }
        count(order, "trouble");
        let wait = pause(&self.clock, &UNANSWERED, job.attempts);
        if let GatewayError::Protocol(what) = error {
            let case = NewCase {
                id: CaseId::from_u128(self.clock.fresh_bits()),
                kind: CaseKind::GatewayProtocol,
                order_id: Some(order.id),
                subject_ref: order_no.to_string(),
                evidence: json!({ "order_no": order_no, "message": what }),
            };
            settle::opening::open(&mut *tx, &case, self.clock.now()).await?;
        }
        if let GatewayError::Misconfigured { code, message } = error {
            let (method, account) = (order.payment_method, &order.account);
            let misconfiguration = Misconfigured { method, account, code, message, order_no };
            settle::accounts::misconfigured(&mut *tx, &misconfiguration, &self.clock).await?;
        }
        Ok(End::Retry(wait, error.to_string()))
    }
}

impl GatewayAnswer {
    fn fact(&self) -> Option<&Fact> {
        self.notification.as_ref().map(|notification| &notification.get().fact)
    }

    /// The order is not paid and can still be paid.
    fn unpaid(&self) -> bool {
        matches!(self.fact(), None | Some(Fact::Nothing))
    }

    fn paid(&self) -> bool {
        matches!(self.fact(), Some(Fact::Paid { .. } | Fact::PaidAndReturned(_)))
    }
}

async fn query(gateway: &dyn Gateway, order: &Order, now: OffsetDateTime) -> Result<GatewayAnswer, GatewayError> {
    match gateway.query(&order.order_no, now).await? {
        TradeAnswer::Found(trade) => {
            let notice_id = format!("query:{}:{}", order.id, now.unix_timestamp());
            let notification = trade.notification(gateway, &order.order_no, notice_id);
            Ok(GatewayAnswer { state: trade.into_inner().state, notification: Some(notification), ended: false })
        }
        TradeAnswer::Absent { state } => Ok(GatewayAnswer { state, notification: None, ended: false }),
    }
}

/// Whether some or all of the order's money was returned before we saw the payment, and the order has expired. A case
/// shows the money, and the order can no longer be paid.
async fn is_void(
    tx: &mut PgConnection,
    order: &Order,
    answer: &GatewayAnswer,
    now: OffsetDateTime,
) -> Result<bool, DbError> {
    if order.status != OrderStatus::Pending || order.expires_at > now {
        return Ok(false);
    }
    match answer.fact() {
        Some(Fact::PaidAndReturned(_)) => Ok(true),
        // Alipay reports a partly refunded trade like any paid one.
        Some(Fact::Paid { trade_no, .. }) => {
            let order = orders::lock_one(tx, order.id).await?.ok_or(DbError::Moved)?;
            let noted = transactions::payment_of_trade(tx, &order, trade_no).await?.is_some();
            Ok(noted && order.status == OrderStatus::Pending)
        }
        _ => Ok(false),
    }
}

/// Triggers the fault that a test has planted at this point for this order.
fn met(point: Point, order: &Order) -> Result<(), GatewayError> {
    crash::met(point, order.order_no.as_str()).map_err(|planted| GatewayError::Unknown(planted.to_string()))
}

/// Whether this job carries a request to close the order.
fn given_up(job: &Taken) -> bool {
    CheckRequest::read(&job.payload).close
}

/// When to query again about an order in its present state; `None`: no query is needed any more.
fn next(order: &Order, answer: &GatewayAnswer, now: OffsetDateTime) -> Option<OffsetDateTime> {
    match order.status {
        OrderStatus::Closed if answer.paid() => None,
        OrderStatus::Closed => AFTER_CLOSE.iter().map(|after| order.expires_at + *after).find(|due_at| *due_at > now),
        // Its money came in a way that only a person can judge, and a case is open. It is still checked at its expiry.
        OrderStatus::Pending if answer.paid() => {
            Some(if order.expires_at > now { order.expires_at.min(now + DAILY) } else { now + DAILY })
        }
        OrderStatus::Pending => {
            let poll = CHECKS.iter().map(|age| order.created_at + *age).find(|due_at| *due_at > now);
            let poll = poll.unwrap_or(now + DAILY);
            // An expired order that is still pending was paid or closed by another party at this very moment.
            let end = if order.expires_at > now { order.expires_at } else { now + Duration::minutes(1) };
            // This query may have come from a hint, just before the scheduled one.
            Some(poll.min(end).max(now + AT_LEAST_APART))
        }
        _ => None,
    }
}

/// When to query a paid order again. A look back more than a day before [`LAST_LOOK`] is followed by one at that
/// moment, which is the last.
fn next_look(order: &Order, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let last = order.paid_at? + LAST_LOOK;
    (order.status != OrderStatus::Refunded && now + DAILY < last).then_some(last)
}

fn count(order: &Order, outcome: &'static str) {
    let labels = [("gateway", order.payment_method.as_str()), ("outcome", outcome)];
    metrics::counter!("checks_total", &labels).increment(1);
}
