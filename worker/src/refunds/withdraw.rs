//! Withdraws a refund that waits for the merchant's balance.

use domain::RefundFailure;
use domain::message::schedule::LATE_EFFECT;
use store::tables::refunds::Refund;
use time::OffsetDateTime;

use crate::refunds::pacing::{SETTLE_IN, left};
use crate::refunds::step::Step;

/// The step of a refund that its requester withdraws, that the gateway refused for the balance, and that it does not
/// know. If it was sent more than once, an earlier request may still arrive, so the withdrawal waits as a failure does.
pub(super) fn withdraw(refund: &Refund, now: OffsetDateTime) -> Step {
    let sent = refund.sent_at.unwrap_or(refund.updated_at);
    let pause = left(SETTLE_IN + LATE_EFFECT, sent, now);
    if refund.attempts > 1 && pause.is_positive() {
        return Step::wait(pause, &RefundFailure::Balance.note(Some("it will be withdrawn")));
    }
    Step::Withdraw
}
