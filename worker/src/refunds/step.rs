//! The result of a step of a refund.

use domain::RefundReport;

/// The result of a step.
pub(super) enum Step {
    /// The gateway stated that the refund is final, or that it could not be delivered.
    Fact(RefundReport),
    /// No result yet: continue after `pause`.
    Wait { pause: time::Duration, reason: String },
    /// The gateway has the refund and has not ended it: query after `pause`.
    Accepted { pause: time::Duration },
    /// The outcome of the call is unknown: query after `pause`.
    Unknown { pause: time::Duration, error: String },
    /// The gateway refused. The refund becomes `failed` only after a query confirms it.
    Refused { code: String, message: String },
    /// The merchant's balance is too low.
    Short {
        message: String,
        /// The attempt that was refused; `None` if a query met this answer.
        attempt: Option<i32>,
    },
    /// The requester withdraws a refund that waits for the balance, and the gateway does not know it.
    Withdraw,
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

impl Step {
    pub(super) fn wait(pause: time::Duration, reason: &str) -> Step {
        Step::Wait { pause, reason: reason.to_owned() }
    }
}
