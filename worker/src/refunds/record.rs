//! Records the result of a step in the caller's transaction.

use domain::message::job::RefundRequest;
use domain::message::schedule::{RETRY, SHORTAGE, UNDELIVERABLE};
use domain::{CaseKind, Money, RefundFailure, RefundReport, RefundState, RefundStatus};
use runtime::crash::{self, Point};
use serde_json::json;
use sqlx::PgConnection;
use store::settle::accounts::{self, Misconfigured};
use store::settle::opening;
use store::settle::refunds as settling;
use store::tables::jobs::Taken;
use store::tables::refund_requests;
use store::tables::refunds::{self, Refund};
use tracing::{error, info, warn};

use crate::jobs::job::{End, JobError};
use crate::jobs::wait::pause;
use crate::refunds::Learnt;
use crate::refunds::pacing::SETTLE_IN;
use crate::refunds::request::account;
use crate::refunds::step::Step;
use crate::refunds::worker::RefundWorker;

impl RefundWorker {
    /// Records the result of a step; says how the job goes on.
    pub(super) async fn end(&self, tx: &mut PgConnection, job: &Taken, learnt: &Learnt) -> Result<End, JobError> {
        let Learnt { refund, step, .. } = learnt;
        let now = job.now();
        let refund_no = &refund.refund_no;
        Ok(match step {
            Step::Fact(report) => {
                self.settle_report(tx, job, learnt, report).await?;
                // Settling has already deleted or rescheduled the job of a refund that ended; we query the others daily.
                End::Snooze(UNDELIVERABLE, settling::named(report.state).to_owned())
            }
            Step::Wait { pause, reason } => End::Snooze(*pause, reason.clone()),
            Step::Accepted { pause } => {
                refund_requests::note_short(tx, refund.id, None).await?;
                End::Snooze(*pause, "accepted, not done yet".to_owned())
            }
            Step::Unknown { pause, error } => {
                warn!(%refund_no, error, "Refund {refund_no}: outcome unknown, a query will follow");
                refunds::note_error(tx, refund.id, None, error, now).await?;
                End::Retry(*pause, error.clone())
            }
            Step::Refused { code, message } => {
                warn!(%refund_no, code, detail = message, "Refund {refund_no} was refused; a query will confirm it");
                refunds::note_error(tx, refund.id, Some(code), message, now).await?;
                End::Snooze(SETTLE_IN, code.clone())
            }
            Step::Short { message, attempt } => {
                warn!(%refund_no, detail = message, "Refund {refund_no} waits for the merchant's balance");
                self.open_case(tx, refund, CaseKind::RefundShortage, message).await?;
                if attempt.is_some() {
                    refund_requests::note_short(tx, refund.id, *attempt).await?;
                }
                let is_withdrawn = RefundRequest::read(&job.payload).withdraw;
                let pause = if is_withdrawn { SETTLE_IN } else { SHORTAGE };
                End::Snooze(pause, RefundFailure::Balance.note(Some(message)))
            }
            Step::Withdraw => self.withdrawn(tx, refund).await?,
            Step::Misconfigured { code, message } => {
                let reason = self.misconfigured(tx, learnt, code, message).await?;
                End::Retry(self.next_question(refund, now), RefundFailure::OurAccount.note(Some(&reason)))
            }
            Step::Strange { what } => {
                error!(%refund_no, error = what, "The gateway's answer to refund {refund_no} breaks the protocol");
                self.open_case(tx, refund, CaseKind::GatewayProtocol, what).await?;
                End::Retry(self.next_question(refund, now), what.clone())
            }
            Step::NotYet { reason } => {
                warn!(%refund_no, error = reason, "The request for refund {refund_no} did not succeed; it will be tried again");
                refunds::note_error(tx, refund.id, None, reason, now).await?;
                End::Retry(pause(&self.clock, &RETRY, job.attempts), reason.clone())
            }
            Step::Done => {
                match refund.status {
                    RefundStatus::Failed => settling::looked_back(tx, refund, &self.clock).await?,
                    RefundStatus::Withdrawn => {
                        settling::after_withdrawal(tx, refund, &self.gateways.policies(), &self.clock).await?;
                    }
                    _ => {}
                }
                End::Done
            }
        })
    }

    /// Withdraws the refund. Its absence may be unsigned, so it is queried once more, a day later.
    async fn withdrawn(&self, tx: &mut PgConnection, refund: &Refund) -> Result<End, JobError> {
        let refund_no = &refund.refund_no;
        if settling::withdraw_unknown(tx, refund, &self.gateways.policies(), &self.clock).await? {
            info!(%refund_no, "Refund {refund_no} was withdrawn while it waited for the merchant's balance");
            return Ok(End::Snooze(settling::LOOK_BACK, "withdrawn".to_owned()));
        }
        Ok(End::Snooze(SETTLE_IN, "it changed while it was withdrawn".to_owned()))
    }

    /// Settles the fact that the gateway stated. An amount that two people have accepted counts if the gateway states
    /// it.
    async fn settle_report(
        &self,
        tx: &mut PgConnection,
        job: &Taken,
        Learnt { refund, order, .. }: &Learnt,
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
        Learnt { refund, order, .. }: &Learnt,
        code: &str,
        message: &str,
    ) -> Result<String, JobError> {
        let (refund_no, account) = (&refund.refund_no, account(refund, order));
        error!(%refund_no, code, detail = message, "The gateway refuses the account of refund {refund_no}");
        let reason = format!("{code}: {message}");
        refunds::note_error(tx, refund.id, None, &reason, self.clock.now()).await?;
        let refusal =
            Misconfigured { method: refund.payment_method, account, code, message, order_no: &order.order_no };
        accounts::misconfigured(tx, &refusal, &self.clock).await?;
        Ok(reason)
    }

    /// Opens a case, and stores the error with the refund.
    async fn open_case(
        &self,
        tx: &mut PgConnection,
        refund: &Refund,
        kind: CaseKind,
        message: &str,
    ) -> Result<(), JobError> {
        // Locks the refund's row before the case, as the settling of a notification does.
        refunds::note_error(tx, refund.id, None, message, self.clock.now()).await?;
        let evidence = json!({ "refund_no": refund.refund_no, "amount": refund.amount, "message": message });
        let case = opening::case_of(&self.clock, kind, refund, evidence);
        Ok(opening::open(tx, &case, self.clock.now()).await?)
    }
}

/// The amount that two people have accepted as the refunded one.
pub(super) fn accepted(job: &Taken) -> Option<Money> {
    RefundRequest::read(&job.payload).accept
}
