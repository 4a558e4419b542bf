//! Carries a refund one step further: requests it at the gateway, or queries its state. The outcome of a call may be
//! unknown. Then the worker queries before it repeats the call, and the repeat carries the same number and amount.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use domain::message::job::RefundRequest;
use domain::message::schedule::{LATE_EFFECT, REFUND_QUERIES, RETRY, SHORTAGE, UNDELIVERABLE};
use domain::{AccountName, CaseKind, Money, PaymentMethod, RefundId, RefundReport, RefundState, RefundStatus};
use gateway::{Gateway, GatewayError, Gateways, RefundOrder, RefundTarget, limits};
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::service::Service;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use store::cache::{Changed, Renewer};
use store::connect::in_time;
use store::retry::retry;
use store::settle::accounts::{self, Misconfigured};
use store::settle::opening;
use store::settle::refunds as settling;
use store::tables::jobs::Taken;
use store::tables::orders::{self, Order};
use store::tables::refunds::{self, Refund};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::jobs::job::{End, Job, JobError, Recorded, planted};
use crate::jobs::wait::{pause, spread};

/// A query earlier than this after the request proves nothing. Source: Alipay, refund query (P:02ekft).
const SETTLE_IN: time::Duration = time::Duration::seconds(10);
/// The retries when the gateway cannot be reached, before the job is postponed.
const CONNECTING: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(200))
    .with_max_delay(Duration::from_secs(2))
    .with_max_times(3)
    .with_jitter();
/// How long a refund waits for its turn to be sent before its job is postponed.
const TURN: Duration = Duration::from_secs(5);

/// Works on refunds.
pub struct RefundWorker {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// The gateways to call.
    pub gateways: Gateways,
    /// The base of the callback routes, as the gateways see them.
    pub public_url: String,
    /// The clock.
    pub clock: Clock,
    /// How many requests may be under way.
    pub budget: Budget,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}

/// The result of a step.
enum Step {
    /// The gateway stated that the refund is final, or that it could not be delivered.
    Fact(RefundReport),
    /// No result yet: continue after `pause`.
    Wait { pause: time::Duration, reason: String },
    /// The outcome of the call is unknown: query after `pause`.
    Unknown { pause: time::Duration, error: String },
    /// The gateway refused. The refund becomes `failed` only after a query confirms it.
    Refused { code: String, message: String },
    /// The merchant's balance is too low.
    Short { message: String },
    /// The gateway refused our account and did not judge the refund. The outcome is unknown until a person corrects
    /// that.
    Misconfigured { code: String, message: String },
    /// The answer breaks the protocol: a case asks a person to look at it, and the worker queries the refund.
    Strange { what: String },
    /// A person's request did not reach the gateway: the job's payload still holds it, and it is tried again.
    NotYet { reason: String },
    /// There is nothing to do.
    Done,
}

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
            RefundStatus::Succeeded => Step::Done,
            RefundStatus::Failed => self.look_back(gateway.as_ref(), (&refund, &order), job.now()).await,
            RefundStatus::Pending => match self.too_soon(job, &refund, &order).await? {
                Some(pause) => Step::wait(pause, "the gateway wants time between the refunds of an order"),
                None => self.send(gateway.as_ref(), job, &refund, &order).await?,
            },
            RefundStatus::Processing => self.ask(gateway.as_ref(), job, &refund, &order).await?,
            RefundStatus::Abnormal if RefundRequest::read(&job.payload).redirect => {
                self.redirect(gateway.as_ref(), (&refund, &order), job.now()).await
            }
            RefundStatus::Abnormal => self.ask(gateway.as_ref(), job, &refund, &order).await?,
        };
        Ok(Learnt { refund, order, step })
    }

    /// A fact counts even if this worker has lost the job; any other result counts only from the worker that still holds it.
    async fn record(&self, tx: &mut PgConnection, job: &Taken, learnt: &Learnt) -> Result<Recorded<()>, JobError> {
        let Learnt { refund, order, step } = learnt;
        let request = match step {
            Step::Fact(_) => Some(RefundRequest::default()),
            Step::NotYet { .. } | Step::Done => None,
            // An amount that people have accepted stays in the payload until the gateway states the amount once more.
            _ => Some(RefundRequest { redirect: false, accept: accepted(job) }),
        };
        Ok(Recorded {
            end: self.end(tx, job, (refund, order), step).await?,
            asking: request.map(|request| request.payload()),
            stands: matches!(step, Step::Fact(_) | Step::Done),
            subject: Some(order.order_no.to_string()),
            outcome: (),
        })
    }

    async fn report(&self, learnt: &Learnt, (): ()) {
        if matches!(learnt.step, Step::Fact(_)) {
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
    /// How long the gateway accepts no further refund of this order. We count from the last moment at which another
    /// refund may have reached it: when we sent that refund, or when its record last changed, whichever is later.
    async fn too_soon(&self, job: &Taken, refund: &Refund, order: &Order) -> Result<Option<time::Duration>, JobError> {
        let gap = limits(refund.payment_method).between_refunds;
        let others = in_time(refunds::of_order(&self.db, order.id)).await?;
        let sent = others.iter().filter(|other| other.id != refund.id && other.sent_at.is_some());
        // `sent_at` is the database's time; `updated_at` may come from a clock that is behind.
        let last = sent.filter_map(|other| other.sent_at.max(Some(other.updated_at))).max();
        Ok(last.map(|last| left(gap, last, job.now())).filter(|left| left.is_positive()))
    }

    /// Commits that we are about to send the request, then sends it.
    async fn send(&self, gateway: &dyn Gateway, job: &Taken, refund: &Refund, order: &Order) -> Result<Step, JobError> {
        let Some(turn) = self.budget.turn(refund.payment_method).await else {
            return Ok(Step::wait(time::Duration::seconds(2), "too many calls fail just now"));
        };
        retry(|| self.mark_sent(refund, job.now())).await?;
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
        Ok(self.judge(answer, refund, job.now()))
    }

    async fn mark_sent(&self, refund: &Refund, now: OffsetDateTime) -> Result<(), JobError> {
        let mut tx = self.db.begin().await?;
        refunds::mark_sent(&mut tx, refund.id, now).await?;
        Ok(tx.commit().await?)
    }

    /// Queries the refund. If the gateway knows no such refund, the worker may send the same request again. If the
    /// gateway has also refused the request before, the refund has failed.
    async fn ask(&self, gateway: &dyn Gateway, job: &Taken, refund: &Refund, order: &Order) -> Result<Step, JobError> {
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

    /// Queries a failed refund once more: an earlier request may have taken effect after all.
    async fn look_back(&self, gateway: &dyn Gateway, (refund, order): (&Refund, &Order), now: OffsetDateTime) -> Step {
        match gateway.query_refund(&self.request(refund, order), now).await {
            Ok(report) if matches!(report.state, RefundState::Absent | RefundState::Closed) => Step::Done,
            Err(GatewayError::Refused { code, message }) => self.unknown(refund, now, &format!("{code}: {message}")),
            answer => self.judge(answer, refund, now),
        }
    }

    /// Redirects an undeliverable refund to the merchant's own account, as two people have decided.
    async fn redirect(&self, gateway: &dyn Gateway, (refund, order): (&Refund, &Order), now: OffsetDateTime) -> Step {
        let request = self.request(refund, order);
        let known = match &refund.gateway_refund_no {
            Some(number) => {
                let gateway_refund_no = Some(number.clone());
                Ok(RefundReport { gateway_refund_no, ..RefundReport::of(RefundState::Abnormal) })
            }
            None => gateway.query_refund(&request, now).await,
        };
        let answer = match known {
            Ok(RefundReport { state: RefundState::Abnormal, gateway_refund_no: Some(number), .. }) => {
                gateway.redirect_refund(&request, &number, &RefundTarget::MerchantAccount, now).await
            }
            known => known,
        };
        match answer {
            // An earlier attempt may have succeeded and caused this refusal: the worker queries soon.
            Err(GatewayError::Refused { code, message }) => {
                let reason = format!("not sent another way: {code}: {message}");
                Step::Unknown { pause: SETTLE_IN, error: reason }
            }
            Err(trouble) => Step::NotYet { reason: format!("not sent another way yet: {trouble}") },
            answer => self.judge(answer, refund, now),
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
            notify_url: format!(
                "{}/v1/callbacks/{}/{}",
                self.public_url,
                refund.payment_method,
                account(refund, order)
            ),
        }
    }

    fn judge(&self, answer: Result<RefundReport, GatewayError>, refund: &Refund, now: OffsetDateTime) -> Step {
        match answer {
            Ok(report) => match report.state {
                RefundState::Succeeded | RefundState::Closed | RefundState::Abnormal => Step::Fact(report),
                RefundState::Processing | RefundState::Absent => {
                    Step::wait(self.next_question(refund, now), "accepted, not done yet")
                }
            },
            Err(GatewayError::Refused { code, message }) => Step::Refused { code, message },
            Err(GatewayError::Misconfigured { code, message }) => Step::Misconfigured { code, message },
            Err(GatewayError::NotNow { code, message }) => Step::Short { message: format!("{code}: {message}") },
            Err(GatewayError::Protocol(what)) => Step::Strange { what },
            Err(error @ (GatewayError::Unavailable(_) | GatewayError::Unknown(_))) => {
                self.unknown(refund, now, &error.to_string())
            }
        }
    }

    fn unknown(&self, refund: &Refund, now: OffsetDateTime, reason: &str) -> Step {
        Step::Unknown { pause: self.next_question(refund, now), error: reason.to_owned() }
    }

    fn next_question(&self, refund: &Refund, now: OffsetDateTime) -> time::Duration {
        let age = now - refund.created_at;
        let every = REFUND_QUERIES
            .iter()
            .find(|(up_to, _)| age < *up_to)
            .map_or(REFUND_QUERIES[REFUND_QUERIES.len() - 1].1, |(_, every)| *every);
        spread(&self.clock, every)
    }

    /// Records the result of a step; says how the job goes on.
    async fn end(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        (refund, order): (&Refund, &Order),
        step: &Step,
    ) -> Result<End, JobError> {
        let now = job.now();
        let refund_no = &refund.refund_no;
        Ok(match step {
            Step::Fact(report) => {
                self.settle(tx, job, (refund, order), report).await?;
                // Settling has already deleted or rescheduled the job of a refund that ended; we query the others daily.
                End::Snooze(UNDELIVERABLE, settling::named(report.state).to_owned())
            }
            Step::Wait { pause, reason } => End::Snooze(*pause, reason.clone()),
            Step::Unknown { pause, error } => {
                warn!(%refund_no, error, "Refund {refund_no}: outcome unknown, a query will follow");
                refunds::note_trouble(tx, refund.id, None, error, now).await?;
                End::Retry(*pause, error.clone())
            }
            Step::Refused { code, message } => {
                warn!(%refund_no, code, detail = message, "Refund {refund_no} was refused; a query will confirm it");
                refunds::note_trouble(tx, refund.id, Some(code), message, now).await?;
                End::Snooze(SETTLE_IN, code.clone())
            }
            Step::Short { message } => {
                warn!(%refund_no, detail = message, "Refund {refund_no} waits for the merchant's balance");
                self.trouble(tx, refund, CaseKind::RefundShortage, message).await?;
                End::Snooze(SHORTAGE, message.clone())
            }
            Step::Misconfigured { code, message } => {
                let reason = self.misconfigured(tx, (refund, order), (code, message)).await?;
                End::Retry(self.next_question(refund, now), reason)
            }
            Step::Strange { what } => {
                error!(%refund_no, error = what, "The gateway's answer to refund {refund_no} breaks the protocol");
                self.trouble(tx, refund, CaseKind::GatewayProtocol, what).await?;
                End::Retry(self.next_question(refund, now), what.clone())
            }
            Step::NotYet { reason } => {
                warn!(%refund_no, error = reason, "The request for refund {refund_no} did not succeed; it will be tried again");
                refunds::note_trouble(tx, refund.id, None, reason, now).await?;
                End::Retry(pause(&self.clock, &RETRY, job.attempts), reason.clone())
            }
            Step::Done => {
                if refund.status == RefundStatus::Failed {
                    settling::looked_back(tx, refund, &self.clock).await?;
                }
                End::Done
            }
        })
    }

    /// Settles the fact that the gateway stated. An amount that two people have accepted counts if the gateway states
    /// it.
    async fn settle(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        (refund, order): (&Refund, &Order),
        report: &RefundReport,
    ) -> Result<(), JobError> {
        if report.state == RefundState::Succeeded
            && let Some(amount) = report.amount
            && accepted(job) == Some(amount)
        {
            settling::accept_amount(tx, refund, amount, job.now()).await?;
        }
        let verdict = settling::settle(tx, refund, report, &self.gateways.policies(), &self.clock).await?;
        crash::at(Point::RefundSettled);
        store::connect::met(tx, Point::RefundSettled, order.order_no.as_str()).await?;
        let refund_no = &refund.refund_no;
        info!(%refund_no, order_id = %order.id, ?verdict, "Refund {refund_no}: {}", settling::named(report.state));
        Ok(())
    }

    /// Opens a case for the account, and stores the error with the refund; returns the error in words.
    async fn misconfigured(
        &self,
        tx: &mut PgConnection,
        (refund, order): (&Refund, &Order),
        (code, message): (&str, &str),
    ) -> Result<String, JobError> {
        let (refund_no, account) = (&refund.refund_no, account(refund, order));
        error!(%refund_no, code, detail = message, "The gateway refuses the account of refund {refund_no}");
        let reason = format!("{code}: {message}");
        refunds::note_trouble(tx, refund.id, None, &reason, self.clock.now()).await?;
        let refusal =
            Misconfigured { method: refund.payment_method, account, code, message, order_no: &order.order_no };
        accounts::misconfigured(tx, &refusal, &self.clock).await?;
        Ok(reason)
    }

    /// Opens a case, and stores the error with the refund.
    async fn trouble(
        &self,
        tx: &mut PgConnection,
        refund: &Refund,
        kind: CaseKind,
        message: &str,
    ) -> Result<(), JobError> {
        // Locks the refund's row before the case, as the settling of a notification does.
        refunds::note_trouble(tx, refund.id, None, message, self.clock.now()).await?;
        let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "message": message });
        let case = opening::case_of(&self.clock, kind, refund, evidence);
        Ok(opening::open(tx, &case, self.clock.now()).await?)
    }
}

/// The amount that two people have accepted as the refunded one.
fn accepted(job: &Taken) -> Option<Money> {
    RefundRequest::read(&job.payload).accept
}

/// The account that received the payment.
fn account<'a>(refund: &'a Refund, order: &'a Order) -> &'a AccountName {
    refund.account.as_ref().unwrap_or(&order.account)
}

impl Step {
    fn wait(pause: time::Duration, reason: &str) -> Step {
        Step::Wait { pause, reason: reason.to_owned() }
    }
}

/// The rest of `wait`, counted from `since`. A moment in the future, written by a clock ahead of ours, counts as now,
/// so nothing is postponed for longer than `wait`.
fn left(wait: time::Duration, since: OffsetDateTime, now: OffsetDateTime) -> time::Duration {
    wait - (now - since.min(now))
}

/// Limits the requests of this process, above all those that fail, to what a gateway allows in a second.
///
/// A request holds a turn while it is under way, and for one second more if it failed. So at most this many requests
/// fail in any second. Source: WeChat Pay APIv3, "申请退款", 6 failing calls a second for all processes of a merchant.
#[derive(Debug, Clone)]
pub struct Budget {
    alipay: Arc<Semaphore>,
    wechat: Arc<Semaphore>,
}

impl Budget {
    /// Creates this many turns for each gateway.
    pub fn new(turns: usize) -> Budget {
        let turns = || Arc::new(Semaphore::new(turns.max(1)));
        Budget { alipay: turns(), wechat: turns() }
    }

    /// A turn, if one is free within [`TURN`].
    async fn turn(&self, gateway: PaymentMethod) -> Option<Turn> {
        let turns = match gateway {
            PaymentMethod::Alipay => &self.alipay,
            PaymentMethod::Wechat => &self.wechat,
        };
        timeout(TURN, turns.clone().acquire_owned()).await.ok()?.ok().map(|permit| Turn { _permit: permit })
    }
}

/// The right to send one request.
struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// The request failed: no other request gets this turn for a second.
    fn used_up(self) {
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            drop(self);
        });
    }
}
