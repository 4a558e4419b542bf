//! Carries a refund a step further: asks for it, or asks how it went. The outcome of a call may be unknown, and then the
//! question comes before any repeat, and a repeat carries the same number and amount.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use shared::clock::Clock;
use shared::db::jobs::{self, Cost, Taken};
use shared::db::orders::{self, Order};
use shared::db::refunds::{self, Refund};
use shared::domain::{CaseKind, PaymentMethod, RefundId, RefundStatus};
use shared::gateway::{Gateway, GatewayError, Gateways, RefundOrder, RefundState, RefundTarget};
use shared::settle::refunds::{self as settling, RefundFact};
use sqlx::PgPool;
use time::OffsetDateTime;
use tracing::{error, info, warn};

use crate::jobs::{Job, JobError};

/// A question earlier than this after the request says nothing. Source: Alipay, refund query (P:02ekft).
const SETTLE_IN: time::Duration = time::Duration::seconds(10);
/// How often a refund on its way is asked about: up to this age, every so often; then the last, for ever. It is never
/// declared failed by its age.
const ASK: [(time::Duration, time::Duration); 5] = [
    (time::Duration::minutes(1), time::Duration::seconds(10)),
    (time::Duration::minutes(10), time::Duration::minutes(1)),
    (time::Duration::hours(1), time::Duration::minutes(5)),
    (time::Duration::days(1), time::Duration::minutes(30)),
    (time::Duration::MAX, time::Duration::hours(2)),
];
/// How long a refund waits for the merchant's balance.
const SHORTAGE: time::Duration = time::Duration::minutes(10);
/// How often an undeliverable refund is asked about.
const ABNORMAL: time::Duration = time::Duration::days(1);
/// Failing calls that WeChat Pay takes in a second are 6; a few processes share them.
const FAILURES_PER_SECOND: usize = 2;

/// Works on refunds.
pub struct RefundWorker {
    /// Where the truth is.
    pub db: PgPool,
    /// Whom to ask.
    pub gateways: Gateways,
    /// The base of the callback routes, as the gateways see them.
    pub public_url: String,
    /// The clock.
    pub clock: Clock,
    /// The calls that failed in the last second.
    pub failures: Failures,
}

/// What a step came to.
enum Step {
    /// The gateway said how it is.
    Fact(RefundFact),
    /// Nothing yet: go on then.
    Wait { until: OffsetDateTime, cost: Cost, reason: String },
    /// Refused for good, for all we hear; only a later question makes it a failure.
    Refused { code: String, message: String },
    /// The merchant's balance is short.
    Short { message: String },
}

impl Job for RefundWorker {
    async fn run(&self, job: &Taken) -> Result<(), JobError> {
        let id = RefundId::parse(&job.ref_id).map_err(|error| JobError::Missing(error.to_string()))?;
        let missing = |what: &str| JobError::Missing(format!("{what} of refund {id}"));
        let refund = refunds::get(&self.db, id).await?.ok_or_else(|| missing("the row"))?;
        let order = orders::get(&self.db, refund.order_id).await?.ok_or_else(|| missing("the order"))?;
        let gateway = self.gateways.get(order.payment_method, &order.account).ok_or_else(|| missing("the account"))?;
        let step = match refund.status {
            RefundStatus::Succeeded | RefundStatus::Failed => return self.finish(job).await,
            RefundStatus::Pending => match self.too_soon(&refund, &order).await? {
                Some(until) => Step::wait(until, "the gateway wants time between the refunds of an order"),
                None => self.send(gateway.as_ref(), &refund, &order).await?,
            },
            RefundStatus::Processing => self.ask(gateway.as_ref(), &refund, &order).await?,
            RefundStatus::Abnormal if job.payload["redirect"] == "merchant" => {
                self.redirect(gateway.as_ref(), &refund, &order).await
            }
            RefundStatus::Abnormal => self.ask(gateway.as_ref(), &refund, &order).await?,
        };
        self.record(job, &refund, &order, step).await
    }

    fn db(&self) -> &PgPool {
        &self.db
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl RefundWorker {
    async fn finish(&self, job: &Taken) -> Result<(), JobError> {
        let mut tx = self.db.begin().await?;
        jobs::finish(&mut tx, job).await?;
        Ok(tx.commit().await?)
    }

    /// Until when the gateway wants no other refund of this order.
    async fn too_soon(&self, refund: &Refund, order: &Order) -> Result<Option<OffsetDateTime>, JobError> {
        let gap = match order.payment_method {
            PaymentMethod::Alipay => time::Duration::seconds(3),
            PaymentMethod::Wechat => time::Duration::minutes(1),
        };
        let others = refunds::of_order(&self.db, order.id).await?;
        let last = others.iter().filter(|other| other.id != refund.id).filter_map(|other| other.sent_at).max();
        Ok(last.map(|last| last + gap).filter(|until| *until > self.clock.now()))
    }

    /// Commits that the request is about to leave, then lets it leave.
    async fn send(&self, gateway: &dyn Gateway, refund: &Refund, order: &Order) -> Result<Step, JobError> {
        if !self.failures.allow() {
            return Ok(Step::wait(self.clock.now() + time::Duration::seconds(1), "too many calls fail just now"));
        }
        let mut tx = self.db.begin().await?;
        refunds::mark_sent(&mut tx, refund.id, self.clock.now()).await?;
        tx.commit().await?;
        let answer = gateway.refund(&self.request(refund, order), self.clock.now()).await;
        Ok(self.judge(answer, refund))
    }

    /// Asks how it went. Only when the gateway knows no such refund may the same request leave again; and only when it had
    /// refused before, the refund has failed.
    async fn ask(&self, gateway: &dyn Gateway, refund: &Refund, order: &Order) -> Result<Step, JobError> {
        let now = self.clock.now();
        let heard = refund.sent_at.unwrap_or(refund.updated_at) + SETTLE_IN;
        if heard > now {
            return Ok(Step::wait(heard, "asked too early a gateway knows nothing yet"));
        }
        match gateway.query_refund(&self.request(refund, order), now).await {
            Ok(RefundState::Absent) => match &refund.refused_code {
                Some(code) => {
                    let why = format!("the gateway refused it ({code}) and knows no such refund");
                    Ok(Step::Fact(RefundFact::Failed { why, closed: false }))
                }
                None if refund.status == RefundStatus::Processing => self.send(gateway, refund, order).await,
                None => Ok(Step::wait(now + ABNORMAL, "an undeliverable refund is not known any more")),
            },
            // A refused question is no word about the refund.
            Err(GatewayError::Refused { code, message }) => {
                self.failures.note();
                Ok(self.unknown(refund, &format!("{code}: {message}")))
            }
            answer => Ok(self.judge(answer, refund)),
        }
    }

    async fn redirect(&self, gateway: &dyn Gateway, refund: &Refund, order: &Order) -> Step {
        let number = refund.gateway_refund_no.as_deref().unwrap_or_default();
        let request = self.request(refund, order);
        let target = RefundTarget::MerchantAccount;
        let answer = gateway.redirect_refund(&request, number, &target, self.clock.now()).await;
        match answer {
            Err(GatewayError::Refused { code, message }) => {
                Step::wait(self.clock.now() + ABNORMAL, &format!("not redirected: {code}: {message}"))
            }
            answer => self.judge(answer, refund),
        }
    }

    fn request(&self, refund: &Refund, order: &Order) -> RefundOrder {
        RefundOrder {
            order_no: order.order_no.clone(),
            trade_no: refund.trade_no.clone(),
            refund_no: refund.refund_no.clone(),
            amount: refund.amount,
            total: refund.payment_amount,
            reason: refund.reason.clone(),
            notify_url: format!("{}/v1/callbacks/{}/{}", self.public_url, order.payment_method, order.account),
        }
    }

    fn judge(&self, answer: Result<RefundState, GatewayError>, refund: &Refund) -> Step {
        if answer.is_err() {
            self.failures.note();
        }
        match answer {
            Ok(RefundState::Succeeded { amount, gateway_refund_no, at }) => {
                Step::Fact(RefundFact::Returned { amount, gateway_refund_no, at })
            }
            Ok(RefundState::Closed { .. }) => {
                Step::Fact(RefundFact::Failed { why: "the gateway closed it".to_owned(), closed: true })
            }
            Ok(RefundState::Abnormal { gateway_refund_no }) => {
                Step::Fact(RefundFact::Undeliverable { gateway_refund_no })
            }
            Ok(RefundState::Processing { .. } | RefundState::Absent) => {
                Step::wait(self.next_question(refund), "accepted, not done yet")
            }
            Err(GatewayError::Refused { code, message }) => Step::Refused { code, message },
            Err(GatewayError::NotNow { code, message }) => Step::Short { message: format!("{code}: {message}") },
            Err(GatewayError::Protocol(what)) => {
                error!(refund_no = %refund.refund_no, what, "The gateway's answer to a refund breaks the protocol");
                self.unknown(refund, &what)
            }
            Err(error @ (GatewayError::Unavailable(_) | GatewayError::Unknown(_))) => {
                self.unknown(refund, &error.to_string())
            }
        }
    }

    fn unknown(&self, refund: &Refund, reason: &str) -> Step {
        Step::Wait { until: self.next_question(refund), cost: Cost::Attempt, reason: reason.to_owned() }
    }

    fn next_question(&self, refund: &Refund) -> OffsetDateTime {
        let age = self.clock.now() - refund.created_at;
        let every = ASK.iter().find(|(up_to, _)| age < *up_to).map_or(ASK[ASK.len() - 1].1, |(_, every)| *every);
        self.clock.now() + every
    }

    /// One transaction: what was learnt, and when the job goes on.
    async fn record(&self, job: &Taken, refund: &Refund, order: &Order, step: Step) -> Result<(), JobError> {
        let now = self.clock.now();
        let refund_no = &refund.refund_no;
        let mut tx = self.db.begin().await?;
        match step {
            Step::Fact(fact) => {
                let verdict = settling::settle(&mut tx, refund, &fact, &self.clock).await?;
                // Ended ones have dropped their job already; the others are asked about daily.
                jobs::again(&mut tx, job, now + ABNORMAL, Cost::Nothing, "undeliverable").await?;
                tx.commit().await?;
                self.report(refund, order, &fact);
                info!(%refund_no, orderId = %order.id, ?verdict, "Refund {refund_no}: {}", name(&fact));
                return Ok(());
            }
            Step::Wait { until, cost, reason } => {
                if cost == Cost::Attempt {
                    refunds::note_trouble(&mut tx, refund.id, None, &reason, now).await?;
                    warn!(%refund_no, reason, "Refund {refund_no}: outcome unknown, it will be asked about");
                }
                jobs::again(&mut tx, job, until, cost, &reason).await?;
            }
            Step::Refused { code, message } => {
                warn!(%refund_no, code, message, "Refund {refund_no} was refused; a question will confirm it");
                refunds::note_trouble(&mut tx, refund.id, Some(&code), &message, now).await?;
                jobs::again(&mut tx, job, now + SETTLE_IN, Cost::Nothing, &code).await?;
            }
            Step::Short { message } => {
                warn!(%refund_no, message, "Refund {refund_no} waits for the merchant's balance");
                let evidence = json!({ "refund_no": refund_no, "amount": refund.amount, "message": message });
                let case = settling::case(&self.clock, CaseKind::RefundShortage, refund, evidence);
                settling::open(&mut tx, &case, now).await?;
                refunds::note_trouble(&mut tx, refund.id, None, &message, now).await?;
                jobs::again(&mut tx, job, now + SHORTAGE, Cost::Nothing, &message).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    fn report(&self, refund: &Refund, order: &Order, fact: &RefundFact) {
        let labels = [("gateway", order.payment_method.as_str()), ("outcome", name(fact))];
        metrics::counter!("refunds_total", &labels).increment(1);
        let took = (self.clock.now() - refund.created_at).as_seconds_f64();
        metrics::histogram!("refund_duration_seconds", &labels).record(took.max(0.0));
    }
}

impl Step {
    fn wait(until: OffsetDateTime, reason: &str) -> Step {
        Step::Wait { until, cost: Cost::Nothing, reason: reason.to_owned() }
    }
}

fn name(fact: &RefundFact) -> &'static str {
    match fact {
        RefundFact::Returned { .. } => "succeeded",
        RefundFact::Failed { .. } => "failed",
        RefundFact::Undeliverable { .. } => "abnormal",
    }
}

/// Holds failing calls below what the gateway takes in a second.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Instant>>);

impl Failures {
    /// Whether another call may be tried now.
    fn allow(&self) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|first| first.elapsed() > Duration::from_secs(1)) {
            recent.pop_front();
        }
        recent.len() < FAILURES_PER_SECOND
    }

    fn note(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(Instant::now());
    }
}
