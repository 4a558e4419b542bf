//! Judges what the gateway answered to a request or a query.

use domain::message::schedule::REFUND_QUERIES;
use domain::{RefundReport, RefundState};
use gateway::GatewayError;
use store::tables::refunds::Refund;
use time::{Duration, OffsetDateTime};

use crate::jobs::wait::spread;
use crate::refunds::step::Step;
use crate::refunds::worker::RefundWorker;

impl RefundWorker {
    /// Turns an answer into the result of a step. A state that is final or undeliverable is a fact; after any other
    /// answer the refund is queried again.
    pub(super) fn judge(
        &self,
        answer: Result<RefundReport, GatewayError>,
        refund: &Refund,
        now: OffsetDateTime,
    ) -> Step {
        match answer {
            Ok(report) => match report.state {
                RefundState::Succeeded | RefundState::Closed | RefundState::Abnormal => Step::Fact(report),
                RefundState::Processing => Step::Accepted { pause: self.next_question(refund, now) },
                RefundState::Absent => Step::wait(self.next_question(refund, now), "not known yet"),
            },
            Err(GatewayError::Refused { code, message }) => Step::Refused { code, message },
            Err(GatewayError::Misconfigured { code, message }) => Step::Misconfigured { code, message },
            Err(GatewayError::NotNow { code, message }) => {
                Step::Short { message: format!("{code}: {message}"), attempt: None }
            }
            Err(GatewayError::Protocol(what)) => Step::Strange { what },
            Err(error @ (GatewayError::Unavailable(_) | GatewayError::Unknown(_))) => {
                self.unknown(refund, now, &error.to_string())
            }
        }
    }

    pub(super) fn unknown(&self, refund: &Refund, now: OffsetDateTime, reason: &str) -> Step {
        Step::Unknown { pause: self.next_question(refund, now), error: reason.to_owned() }
    }

    /// How long to wait before the next query: the older the refund, the longer.
    pub(super) fn next_question(&self, refund: &Refund, now: OffsetDateTime) -> Duration {
        let age = now - refund.created_at;
        let every = REFUND_QUERIES
            .iter()
            .find(|(up_to, _)| age < *up_to)
            .map_or(REFUND_QUERIES[REFUND_QUERIES.len() - 1].1, |(_, every)| *every);
        spread(&self.clock, every)
    }
}
