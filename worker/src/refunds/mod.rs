//! Carries a refund one step further: requests it at the gateway, or queries its state. The outcome of a call may be
//! unknown. Then the worker queries before it repeats the call, and the repeat carries the same number and amount.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use domain::message::job::RefundRequest;
use domain::message::schedule::{LATE_EFFECT, UNDELIVERABLE};
use domain::{RefundFailure, RefundId, RefundState, RefundStatus};
use gateway::{Gateway, GatewayError};
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::service::Service;
use sqlx::{PgConnection, PgPool};
use store::cache::Changed;
use store::connect::in_time;
use store::retry::retry;
use store::tables::jobs::Taken;
use store::tables::orders::{self, Order};
use store::tables::refunds::{self, Refund};
use time::OffsetDateTime;

mod budget;
mod judge;
mod pacing;
mod record;
mod request;
mod step;
mod unusual;
mod withdraw;
mod worker;

pub use budget::Budget;
pub use worker::RefundWorker;

use pacing::{SETTLE_IN, left};
use request::account;
use step::Step;
use withdraw::withdraw;

use crate::jobs::job::{Job, JobError, Recorded, planted};

/// The retries when the gateway cannot be reached, before the job is postponed.
const CONNECTING: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(200))
    .with_max_delay(Duration::from_secs(2))
    .with_max_times(3)
    .with_jitter();

/// What a step has learnt about a refund.
pub struct Learnt {
    refund: Refund,
    order: Order,
    step: Step,
}

impl Job for RefundWorker {
    const WORKER: Service = Service::RefundWorker;
    const POINTS: (Point, Point) = (Point::RefundRecorded, Point::RefundCommitted);
    type Learnt = Learnt;
    type Outcome = ();

    async fn learn(&self, job: &Taken) -> Result<Learnt, JobError> {
        let id = RefundId::parse(&job.ref_id).map_err(|error| JobError::Missing(error.to_string()))?;
        let missing = |what: &str| JobError::Missing(format!("{what} of refund {id}"));
        let refund = in_time(refunds::get(&self.db, id)).await?.ok_or_else(|| missing("the row"))?;
        let order = in_time(orders::get(&self.db, refund.order_id)).await?.ok_or_else(|| missing("the order"))?;
        let gateway = self.gateways.get(refund.payment_method, account(&refund, &order));
        let gateway = gateway.ok_or_else(|| missing("the account"))?;
        let step = match refund.status {
            RefundStatus::Succeeded | RefundStatus::Requested | RefundStatus::Declined => Step::Done,
            RefundStatus::Withdrawn if refund.was_never_sent() => Step::Done,
            RefundStatus::Failed | RefundStatus::Withdrawn => {
                self.look_back(gateway.as_ref(), &refund, &order, job.now()).await
            }
            RefundStatus::Pending => match self.too_soon(job, &refund, &order).await? {
                Some(pause) => Step::wait(pause, &RefundFailure::Turn.note(None)),
                None => self.send(gateway.as_ref(), job, &refund, &order).await?,
            },
            RefundStatus::Processing => self.query(gateway.as_ref(), job, &refund, &order).await?,
            RefundStatus::Abnormal if RefundRequest::read(&job.payload).redirect => {
                self.redirect(gateway.as_ref(), &refund, &order, job.now()).await
            }
            RefundStatus::Abnormal => self.query(gateway.as_ref(), job, &refund, &order).await?,
        };
        Ok(Learnt { refund, order, step })
    }

    /// A fact counts even if this worker has lost the job; any other result counts only from the worker that still holds it.
    async fn record(&self, tx: &mut PgConnection, job: &Taken, learnt: &Learnt) -> Result<Recorded<()>, JobError> {
        let Learnt { order, step, .. } = learnt;
        let request = match step {
            Step::Fact(_) => Some(RefundRequest::default()),
            Step::NotYet { .. } | Step::Done => None,
            Step::Withdraw => Some(RefundRequest::default()),
            // An amount that people have accepted stays in the payload until the gateway states the amount once more,
            // and so does a withdrawal, which takes effect after the next refusal for the balance.
            _ => Some(RefundRequest { redirect: false, ..RefundRequest::read(&job.payload) }),
        };
        Ok(Recorded {
            end: self.end(tx, job, learnt).await?,
            requests: request.map(|request| request.payload()),
            stands: matches!(step, Step::Fact(_) | Step::Done),
            subject: Some(order.order_no.to_string()),
            outcome: (),
        })
    }

    async fn report(&self, learnt: &Learnt, (): ()) {
        if matches!(learnt.step, Step::Fact(_) | Step::Withdraw) {
            self.copies.renew(&self.db, Changed::Ids(vec![learnt.order.id]));
        }
    }

    fn db(&self) -> &PgPool {
        &self.db
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl RefundWorker {
    /// Commits that we are about to send the request, then sends it.
    async fn send(&self, gateway: &dyn Gateway, job: &Taken, refund: &Refund, order: &Order) -> Result<Step, JobError> {
        let Some(turn) = self.budget.turn(refund.payment_method).await else {
            return Ok(Step::wait(time::Duration::seconds(2), "too many calls fail just now"));
        };
        let attempt = retry(|| self.mark_sent(refund, job.now())).await?;
        crash::at(Point::RefundMarked);
        let order_no = order.order_no.as_str();
        crash::met(Point::RefundMarked, order_no).map_err(planted)?;
        let request = self.request(refund, order);
        let call = || gateway.refund(&request, job.now());
        // Without a connection nothing was sent, so the next try needs no query before it.
        let not_sent = |error: &GatewayError| matches!(error, GatewayError::Unavailable(_));
        let answer = call.retry(CONNECTING).when(not_sent).await;
        crash::at(Point::RefundAnswered);
        crash::met(Point::RefundAnswered, order_no).map_err(planted)?;
        if answer.is_err() {
            turn.used_up();
        }
        Ok(match self.judge(answer, refund, job.now()) {
            Step::Short { message, .. } => Step::Short { message, attempt: Some(attempt) },
            step => step,
        })
    }

    /// Returns how many times the request is sent then.
    async fn mark_sent(&self, refund: &Refund, now: OffsetDateTime) -> Result<i32, JobError> {
        let mut tx = self.db.begin().await?;
        let attempt = refunds::mark_sent(&mut tx, refund.id, now).await?;
        tx.commit().await?;
        Ok(attempt)
    }

    /// Queries the refund. If the gateway knows no such refund, the worker may send the same request again. If the
    /// gateway has also refused the request before, the refund has failed.
    async fn query(
        &self,
        gateway: &dyn Gateway,
        job: &Taken,
        refund: &Refund,
        order: &Order,
    ) -> Result<Step, JobError> {
        let now = job.now();
        let sent = refund.sent_at.unwrap_or(refund.updated_at);
        let early = left(SETTLE_IN, sent, now);
        if early.is_positive() {
            return Ok(Step::wait(early, "asked too early a gateway knows nothing yet"));
        }
        let answer = gateway.query_refund(&self.request(refund, order), now).await;
        crash::at(Point::RefundQueried);
        crash::met(Point::RefundQueried, order.order_no.as_str()).map_err(planted)?;
        match answer {
            // This answer may be unsigned, so it does not end a refund that the gateway had accepted.
            Ok(report) if report.state == RefundState::Absent => match &refund.refused_code {
                _ if refund.status != RefundStatus::Processing => {
                    Ok(Step::wait(UNDELIVERABLE, "an undeliverable refund is not known any more"))
                }
                _ if refund.waits_for_balance() && RefundRequest::read(&job.payload).withdraw => {
                    Ok(withdraw(refund, now))
                }
                None => self.send(gateway, job, refund, order).await,
                Some(_) if refund.attempts > 1 && left(SETTLE_IN + LATE_EFFECT, sent, now).is_positive() => {
                    let pause = left(SETTLE_IN + LATE_EFFECT, sent, now);
                    Ok(Step::wait(pause, "refused, and an earlier request may still arrive"))
                }
                Some(_) => Ok(Step::Fact(report)),
            },
            // A refused query says nothing about the refund.
            Err(GatewayError::Refused { code, message }) => {
                Ok(self.unknown(refund, now, &format!("{code}: {message}")))
            }
            answer => Ok(self.judge(answer, refund, now)),
        }
    }
}
