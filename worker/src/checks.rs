//! Asks the gateway about orders: finds payments whose callback was lost, ends orders that expired or were given up, and
//! looks back after the end for a payment that slipped through.
//!
//! The gateway goes first: an order ends here only once nobody can pay it there. A close that meets a payment settles it.

use domain::message::job::{AT_LEAST_APART, CHECKS, CheckRequest, JobKind};
use domain::{CaseId, CaseKind, Fact, Notification, OrderId, OrderStatus, PaymentMethod, Verdict};
use gateway::{CloseOutcome, Gateway, GatewayError, Gateways, TradeAnswer, Verified};
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::service::Service;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::cache::{Changed, Renewer};
use store::connect::in_time;
use store::retry::anew;
use store::settle;
use store::settle::accounts::Misconfigured;
use store::tables::cases::NewCase;
use store::tables::jobs::{self, Cost, Taken};
use store::tables::orders::{self, Order};
use store::tables::{events, transactions};
use time::{Duration, OffsetDateTime};
use tracing::{error, info, warn};

use crate::jobs::{Job, JobError, pause, planted};
use crate::people::{self, Wanted};

/// When a closed order is asked about once more, counted from its last moment to pay: a payment begun in time may end
/// late, and a gateway's books may be behind.
const AFTER_END: [Duration; 2] = [Duration::minutes(5), Duration::minutes(5 + 24 * 60)];
/// When a paid order is looked at for the last time, counted from its payment. The first look is a day after settling.
const LAST_LOOK: Duration = Duration::days(8);
/// How often an order is asked about that nothing can be done with but by a person.
const DAILY: Duration = Duration::days(1);
/// When a question without an answer is asked again.
const TROUBLE: [std::time::Duration; 6] = [
    std::time::Duration::from_secs(3),
    std::time::Duration::from_secs(5),
    std::time::Duration::from_secs(15),
    std::time::Duration::from_secs(60),
    std::time::Duration::from_secs(300),
    std::time::Duration::from_secs(900),
];

/// Works on checks.
pub struct CheckWorker {
    /// Where the truth is.
    pub db: PgPool,
    /// Whom to ask.
    pub gateways: Gateways,
    /// The clock.
    pub clock: Clock,
    /// Passes on which orders have changed.
    pub copies: Renewer,
}

/// What the gateway was heard to say.
struct Heard {
    /// Its own word for the state.
    state: String,
    /// What it proved; `None`: it knows no such order, and nobody signs that.
    told: Option<Verified<Notification>>,
    /// It has closed the order, or knows none and nobody can make one any more.
    ended: bool,
}

impl Job for CheckWorker {
    const WORKER: Service = Service::CheckWorker;

    async fn run(&self, job: &Taken) -> Result<(), JobError> {
        let id = OrderId::parse(&job.ref_id).map_err(|error| JobError::Missing(error.to_string()))?;
        let missing = |what: &str| JobError::Missing(format!("{what} of order {id}"));
        let order = in_time(orders::get(&self.db, id)).await?.ok_or_else(|| missing("the row"))?;
        let request = CheckRequest::read(&job.payload);
        let looks_back = job.kind == JobKind::LookBack && order.status != OrderStatus::Refunded;
        if order.status.was_paid() && !request.sync && !looks_back && request.of_cases.is_empty() {
            return anew(|| self.finish(job)).await;
        }
        let gateway = self.gateways.get(order.payment_method, &order.account).ok_or_else(|| missing("the account"))?;
        let wanted = people::ask(gateway.as_ref(), &order, (&request, job.now()), &self.db).await?;
        let heard = match wanted {
            Ok(wanted) => self.ask(gateway.as_ref(), &order, job).await.map(|heard| (heard, wanted)),
            Err(trouble) => Err(trouble),
        };
        match heard {
            Ok((heard, wanted)) => anew(|| self.record(job, &order, (&heard, &wanted))).await,
            Err(trouble) => anew(|| self.put_off(job, &order, &trouble)).await,
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
    /// Outside any transaction: the query, and where the order's time is up, the close.
    async fn ask(&self, gateway: &dyn Gateway, order: &Order, job: &Taken) -> Result<Heard, GatewayError> {
        let heard = query(gateway, order, job.now()).await?;
        crash::at(Point::CheckAsked);
        met(Point::CheckAsked, order)?;
        let expired = order.expires_at <= job.now();
        if order.status != OrderStatus::Pending || !heard.unpaid() || !(expired || given_up(job)) {
            return Ok(heard);
        }
        let closed = gateway.close(&order.order_no, job.now()).await?;
        crash::at(Point::CheckClosed);
        met(Point::CheckClosed, order)?;
        match closed {
            CloseOutcome::Closed => Ok(Heard { state: "CLOSED".to_owned(), ended: true, ..heard }),
            // The last moment to pay was sent with the offer: after it no trade comes to be. Before it a page that is
            // still open can make one at Alipay; at WeChat Pay there is nothing that could be paid.
            CloseOutcome::NoTrade => {
                Ok(Heard { ended: expired || order.payment_method == PaymentMethod::Wechat, ..heard })
            }
            // Somebody was faster: most likely the buyer.
            CloseOutcome::NotClosed => match query(gateway, order, job.now()).await? {
                heard if heard.unpaid() => Err(GatewayError::Unknown(format!("not closed in state {}", heard.state))),
                heard => Ok(heard),
            },
        }
    }

    /// One transaction: what was learnt, and when the job goes on.
    async fn record(&self, job: &Taken, order: &Order, (heard, wanted): (&Heard, &Wanted)) -> Result<(), JobError> {
        let now = job.now();
        let mut tx = self.db.begin().await?;
        let told: Vec<&Verified<Notification>> = heard.told.iter().collect();
        let verdicts = settle::settle(&mut tx, &told, &self.gateways.policies(), &self.clock).await?;
        let mut verdict = verdicts.first().copied().unwrap_or(Verdict::Ignored);
        // What people decide comes before the end of the order: it may pay it.
        let done = people::carry_out(&mut tx, order, (wanted, heard.fact()), &self.clock).await?;
        if done != Some(Verdict::Settled) && (heard.ended || is_void(&mut tx, order, heard, now).await?) {
            verdict = settle::end_unpaid(&mut tx, order, &self.clock).await?;
        }
        verdict = done.unwrap_or(verdict);
        crash::at(Point::CheckSettled);
        store::connect::met(&mut tx, Point::CheckSettled, order.order_no.as_str()).await?;
        orders::note_check(&mut tx, order.id, &heard.state, now).await?;
        let order = orders::lock_one(&mut tx, order.id).await?.ok_or(DbError::Moved)?;
        // A buyer who has given up has done so for good: what could not be closed yet is closed once there is a trade.
        let still_open = order.status == OrderStatus::Pending && given_up(job);
        let job = job.asking(CheckRequest { close: still_open, ..CheckRequest::default() }.payload());
        match if job.kind == JobKind::LookBack { next_look(&order, now) } else { next(&order, heard, now) } {
            Some(due_at) => drop(jobs::again(&mut tx, &job, due_at - now, Cost::Nothing, &heard.state).await?),
            None => jobs::finish(&mut tx, &job).await?,
        }
        crash::at(Point::CheckRecorded);
        store::connect::met(&mut tx, Point::CheckRecorded, order.order_no.as_str()).await?;
        tx.commit().await?;
        crash::at(Point::CheckCommitted);
        crash::met(Point::CheckCommitted, order.order_no.as_str()).map_err(planted)?;
        self.report(&order, heard, verdict).await;
        Ok(())
    }

    /// No answer to act on: what was asked stays asked.
    async fn put_off(&self, job: &Taken, order: &Order, trouble: &GatewayError) -> Result<(), JobError> {
        let order_no = &order.order_no;
        if matches!(
            trouble,
            GatewayError::Protocol(_) | GatewayError::Refused { .. } | GatewayError::Misconfigured { .. }
        ) {
            error!(%order_no, order_id = %order.id, %trouble, "Order {order_no} cannot be checked");
        } else {
            warn!(%order_no, order_id = %order.id, %trouble, "Order {order_no} is asked about again later");
        }
        count(order, "trouble");
        let wait = pause(&self.clock, &TROUBLE, job.attempts);
        let mut tx = self.db.begin().await?;
        if let GatewayError::Protocol(what) = trouble {
            let case = NewCase {
                id: CaseId::from_u128(self.clock.fresh_bits()),
                kind: CaseKind::GatewayProtocol,
                order_id: Some(order.id),
                gateway_no: order_no.to_string(),
                evidence: json!({ "order_no": order_no, "message": what }),
            };
            settle::refunds::open(&mut tx, &case, self.clock.now()).await?;
        }
        if let GatewayError::Misconfigured { code, message } = trouble {
            let (method, account) = (order.payment_method, &order.account);
            let told = Misconfigured { method, account, code, message, order_no };
            settle::accounts::misconfigured(&mut tx, &told, &self.clock).await?;
        }
        jobs::again(&mut tx, job, wait, Cost::Attempt, &trouble.to_string()).await?;
        Ok(tx.commit().await?)
    }

    async fn finish(&self, job: &Taken) -> Result<(), JobError> {
        let mut tx = self.db.begin().await?;
        jobs::finish(&mut tx, job).await?;
        Ok(tx.commit().await?)
    }

    /// Tells metrics, the log and the relay, once all is committed.
    async fn report(&self, order: &Order, heard: &Heard, verdict: Verdict) {
        count(order, verdict.as_str());
        if matches!(verdict, Verdict::Ignored | Verdict::Duplicate) {
            return;
        }
        self.copies.renew(&self.db, Changed::Ids(vec![order.id]));
        let (order_no, state) = (&order.order_no, &heard.state);
        info!(%order_no, order_id = %order.id, state, %verdict, "Check of order {order_no}: {verdict}");
        if let Err(error) = events::nudge(&self.db).await {
            warn!(%error, "The relay was not nudged; it will poll");
        }
    }
}

impl Heard {
    fn fact(&self) -> Option<&Fact> {
        self.told.as_ref().map(|told| &told.get().fact)
    }

    /// Nobody has paid, and somebody still could.
    fn unpaid(&self) -> bool {
        matches!(self.fact(), None | Some(Fact::Nothing))
    }

    fn paid(&self) -> bool {
        matches!(self.fact(), Some(Fact::Paid { .. } | Fact::PaidAndReturned(_)))
    }
}

async fn query(gateway: &dyn Gateway, order: &Order, now: OffsetDateTime) -> Result<Heard, GatewayError> {
    match gateway.query(&order.order_no, now).await? {
        TradeAnswer::Found(trade) => {
            let notice_id = format!("query:{}:{}", order.id, now.unix_timestamp());
            let told = trade.told_of(gateway, &order.order_no, notice_id);
            Ok(Heard { state: trade.into_inner().state, told: Some(told), ended: false })
        }
        TradeAnswer::Absent { state } => Ok(Heard { state, told: None, ended: false }),
    }
}

/// Some or all of its money went back before we ever saw it paid, and its time is up: a case shows the money, and the order
/// cannot be paid any more.
async fn is_void(tx: &mut PgConnection, order: &Order, heard: &Heard, now: OffsetDateTime) -> Result<bool, DbError> {
    if order.status != OrderStatus::Pending || order.expires_at > now {
        return Ok(false);
    }
    match heard.fact() {
        Some(Fact::PaidAndReturned(_)) => Ok(true),
        // Alipay tells of a trade that was returned in part as of any paid one.
        Some(Fact::Paid { trade_no, .. }) => {
            let order = orders::lock_one(tx, order.id).await?.ok_or(DbError::Moved)?;
            let noted = transactions::payment_of_trade(tx, &order, trade_no).await?.is_some();
            Ok(noted && order.status == OrderStatus::Pending)
        }
        _ => Ok(false),
    }
}

/// Meets what a test has planted here for this order.
fn met(point: Point, order: &Order) -> Result<(), GatewayError> {
    crash::met(point, order.order_no.as_str()).map_err(|planted| GatewayError::Unknown(planted.to_string()))
}

/// Whether the buyer has asked for the order's end.
fn given_up(job: &Taken) -> bool {
    CheckRequest::read(&job.payload).close
}

/// When to ask again about an order as it is now; `None`: there is nothing left to ask.
fn next(order: &Order, heard: &Heard, now: OffsetDateTime) -> Option<OffsetDateTime> {
    match order.status {
        OrderStatus::Closed if heard.paid() => None,
        OrderStatus::Closed => AFTER_END.iter().map(|after| order.expires_at + *after).find(|due_at| *due_at > now),
        // Its money came in a way that only a person can judge: a case is open, and its end is still an end.
        OrderStatus::Pending if heard.paid() => {
            Some(if order.expires_at > now { order.expires_at.min(now + DAILY) } else { now + DAILY })
        }
        OrderStatus::Pending => {
            let poll = CHECKS.iter().map(|age| order.created_at + *age).find(|due_at| *due_at > now);
            let poll = poll.unwrap_or(now + DAILY);
            // An order whose time is up and that is still pending was paid or closed by somebody this very moment.
            let end = if order.expires_at > now { order.expires_at } else { now + Duration::minutes(1) };
            // This question may have been a hint's, a moment before the schedule's.
            Some(poll.min(end).max(now + AT_LEAST_APART))
        }
        _ => None,
    }
}

/// When a paid order is looked at again: a look back that comes early is the first, and the second is the last.
fn next_look(order: &Order, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let last = order.paid_at? + LAST_LOOK;
    (order.status != OrderStatus::Refunded && now + DAILY < last).then_some(last)
}

fn count(order: &Order, outcome: &'static str) {
    let labels = [("gateway", order.payment_method.as_str()), ("outcome", outcome)];
    metrics::counter!("checks_total", &labels).increment(1);
}
