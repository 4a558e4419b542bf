//! The verdicts on callbacks, and the cases that a person must decide.

use serde_json::Value;

use crate::named_enum;

named_enum! {
    /// The worker's verdict on a callback.
    Verdict {
        /// The fact changed our books.
        Settled = "settled",
        /// The fact was already recorded.
        Duplicate = "duplicate",
        /// A payment arrived for an order that is closed, or that another trade has paid.
        NotPending = "not_pending",
        /// The amount is not the order's.
        AmountMismatch = "amount_mismatch",
        /// The merchant, the app or the account is not the order's.
        WrongMerchant = "wrong_merchant",
        /// The order must be paid at the other gateway.
        WrongMethod = "wrong_method",
        /// No order has this number.
        UnknownOrder = "unknown_order",
        /// No refund has this number.
        UnknownRefund = "unknown_refund",
        /// A state that changes nothing.
        Ignored = "ignored",
        /// The named key is loaded, and it did not sign these bytes.
        BadSignature = "bad_signature",
        /// The bytes cannot be parsed, whether they are authentic or not.
        Undecodable = "undecodable",
    }
}

impl Verdict {
    /// Whether money arrived, or was returned, that the books do not expect: a case records it.
    pub const fn opens_case(self) -> bool {
        use Verdict::{AmountMismatch, NotPending, UnknownOrder, UnknownRefund, WrongMerchant, WrongMethod};
        matches!(self, AmountMismatch | NotPending | UnknownOrder | UnknownRefund | WrongMerchant | WrongMethod)
    }

    /// Whether the data that an order shows may have changed.
    pub const fn changes_order(self) -> bool {
        matches!(self, Verdict::Settled | Verdict::NotPending | Verdict::AmountMismatch | Verdict::WrongMethod)
    }
}

named_enum! {
    /// How far people are with a case.
    CaseStatus {
        /// No person has decided yet.
        Open = "open",
        /// One person has proposed an action that another person must confirm.
        Proposed = "proposed",
        /// Resolved.
        Resolved = "resolved",
    }
}

named_enum! {
    /// The reason why a person must check something.
    CaseKind {
        /// A payment of a closed order.
        LatePayment = "late_payment",
        /// A second payment of a paid order.
        DoublePayment = "double_payment",
        /// A pending order turned out to be paid and refunded at the gateway.
        RefundedElsewhere = "refunded_elsewhere",
        /// See [`Verdict::AmountMismatch`].
        AmountMismatch = "amount_mismatch",
        /// See [`Verdict::WrongMerchant`].
        WrongMerchant = "wrong_merchant",
        /// See [`Verdict::WrongMethod`].
        WrongMethod = "wrong_method",
        /// See [`Verdict::UnknownOrder`].
        UnknownOrder = "unknown_order",
        /// See [`Verdict::UnknownRefund`].
        UnknownRefund = "unknown_refund",
        /// A message that reached the dead letter queue.
        DeadLetter = "dead_letter",
        /// A refund that the gateway accepted but could not deliver.
        RefundAbnormal = "refund_abnormal",
        /// A refund that waits because the merchant's balance is short.
        RefundShortage = "refund_shortage",
        /// A refund that the gateway closed: a retry needs another number.
        RefundClosed = "refund_closed",
        /// A refund that had failed turned out to be returned, or still in progress at the gateway.
        RefundAfterFailure = "refund_after_failure",
        /// A signed answer of a gateway that violates the protocol.
        GatewayProtocol = "gateway_protocol",
        /// One of our accounts that its gateway refuses: because of its contract, its configuration or its keys.
        Misconfigured = "misconfigured",
    }
}

named_enum! {
    /// The actions that people can choose for a case.
    CaseAction {
        /// Return the payment, or a part of it.
        Refund = "refund",
        /// Accept the late payment for its closed order.
        Fulfil = "fulfil",
        /// Book a refund that was made at the gateway.
        BookRefund = "book_refund",
        /// Refund again, under a new number, what the gateway closed.
        RefundAgain = "refund_again",
        /// Send a refund that cannot be delivered to the merchant's own account.
        AbnormalRefund = "abnormal_refund",
        /// Accept the amount that the gateway states for a refund as the refunded amount.
        AcceptAmount = "accept_amount",
        /// Resolve the case with a note.
        Note = "note",
        /// Reopen a resolved case, with a reason.
        Reopen = "reopen",
    }
}

/// Which facts count as new for a case.
enum NewFacts {
    /// The service meets this state only through a step of its own (one more request, one more message, a move of the
    /// refund). So each time is a new fact if the case is resolved. If the case is open, it already covers the fact.
    EachMeeting,
    /// The gateway repeats its messages. A fact is new if one of these members of the evidence has a value that no
    /// earlier fact of the case had. An absent or null member counts as no value.
    Members(&'static [&'static str]),
}

impl CaseKind {
    /// The facts that are new for a case of this kind. This is the only place that decides what reopens a case.
    const fn new_facts(self) -> NewFacts {
        match self {
            // The refund was sent again and the balance is still too low; a job's message became a dead letter again.
            CaseKind::RefundShortage | CaseKind::DeadLetter => NewFacts::EachMeeting,
            // The refund moved into this state. A refund does that only once.
            CaseKind::RefundAbnormal | CaseKind::RefundClosed => NewFacts::EachMeeting,
            // People have said that it is fixed, but it is not.
            CaseKind::Misconfigured => NewFacts::EachMeeting,
            // The payment was recorded once. The only later news is that its money was refunded at the gateway.
            CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::RefundedElsewhere => {
                NewFacts::Members(&["amount", "returned", "returned_amount"])
            }
            CaseKind::AmountMismatch => NewFacts::Members(&["amount"]),
            CaseKind::WrongMerchant => NewFacts::Members(&["merchant", "account", "amount"]),
            CaseKind::WrongMethod | CaseKind::UnknownOrder => {
                NewFacts::Members(&["payment_method", "account", "amount"])
            }
            CaseKind::UnknownRefund => NewFacts::Members(&["amount", "outcome", "returned", "returned_amount"]),
            // It may first be in progress at the gateway and later returned.
            CaseKind::RefundAfterFailure => NewFacts::Members(&["found"]),
            // A different error. The scheduled queries find the same error again and again.
            CaseKind::GatewayProtocol => NewFacts::Members(&["message"]),
        }
    }

    /// Whether `fact` is a new fact for a case of this kind. `known`: the evidence of every earlier fact.
    pub fn is_news<'a>(self, resolved: bool, mut known: impl Iterator<Item = &'a Value>, fact: &Value) -> bool {
        let members = match self.new_facts() {
            NewFacts::EachMeeting => return resolved,
            NewFacts::Members(members) => members,
        };
        let stated: Vec<&str> =
            members.iter().copied().filter(|name| fact.get(name).is_some_and(|value| !value.is_null())).collect();
        !stated.is_empty() && known.all(|known| stated.iter().any(|name| known.get(name) != fact.get(name)))
    }

    /// The actions that people can choose for an open case of this kind.
    pub const fn actions(self) -> &'static [CaseAction] {
        use CaseAction::{AbnormalRefund, BookRefund, Fulfil, Note, Refund, RefundAgain};
        match self {
            CaseKind::LatePayment | CaseKind::RefundedElsewhere => &[Refund, Fulfil, BookRefund, Note],
            CaseKind::UnknownRefund => &[BookRefund, Note],
            CaseKind::DoublePayment => &[Refund, BookRefund, Note],
            CaseKind::AmountMismatch | CaseKind::WrongMerchant | CaseKind::WrongMethod | CaseKind::UnknownOrder => {
                &[Refund, Note]
            }
            CaseKind::RefundClosed => &[RefundAgain, Note],
            CaseKind::RefundAbnormal => &[AbnormalRefund, Note],
            CaseKind::DeadLetter
            | CaseKind::RefundShortage
            | CaseKind::RefundAfterFailure
            | CaseKind::GatewayProtocol
            | CaseKind::Misconfigured => &[Note],
        }
    }

    /// Whether resolving such a case frees money that was reserved for a refund that is not ours. That takes two
    /// people, like everything that moves money.
    pub const fn end_frees_money(self) -> bool {
        matches!(self, CaseKind::UnknownRefund)
    }

    /// Whether such a case can be about a buyer's money that we hold and no order accepts.
    pub const fn is_of_money_held(self) -> bool {
        matches!(
            self,
            CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::AmountMismatch | CaseKind::WrongMethod
        )
    }

    /// Whether only the case records its fact, while the gateway would report the fact again at each query about the
    /// order. Without the case, the fact would count as new again. For a trade whose money had been refunded, it would
    /// count as a payment.
    pub const fn is_its_only_memory(self) -> bool {
        match self {
            CaseKind::RefundedElsewhere
            | CaseKind::AmountMismatch
            | CaseKind::WrongMerchant
            | CaseKind::UnknownRefund
            | CaseKind::RefundAfterFailure => true,
            // The trade has its own transaction.
            CaseKind::LatePayment | CaseKind::DoublePayment => false,
            // The refund is final.
            CaseKind::RefundAbnormal | CaseKind::RefundShortage | CaseKind::RefundClosed => false,
            // Only messages report these, and they are not repeated after days.
            CaseKind::WrongMethod | CaseKind::UnknownOrder | CaseKind::DeadLetter => false,
            // If the error is met again after years, it deserves a new case.
            CaseKind::GatewayProtocol | CaseKind::Misconfigured => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// For each kind: a fact, a repeat of it, and a new fact if the gateway can report one.
    #[test]
    fn each_kind_knows_a_repeat_from_a_new_fact() {
        let payment = json!({ "account": "main", "payment_method": "wechat", "amount": "8.88", "notice_id": "n1" });
        let with = |name: &str, value: Value| {
            let mut fact = payment.clone();
            (fact["notice_id"], fact[name]) = ("n2".into(), value);
            fact
        };
        let repeat = with("trade_no", "4200000001".into());
        for kind in CaseKind::ALL {
            let is_news = |resolved, fact: &Value| kind.is_news(resolved, std::iter::once(&payment), fact);
            let new = match kind {
                CaseKind::RefundShortage
                | CaseKind::DeadLetter
                | CaseKind::RefundAbnormal
                | CaseKind::RefundClosed
                | CaseKind::Misconfigured => {
                    assert!(is_news(true, &repeat) && !is_news(false, &repeat), "{kind}: each meeting, once resolved");
                    continue;
                }
                CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::RefundedElsewhere => {
                    with("returned_amount", "1.00".into())
                }
                CaseKind::AmountMismatch | CaseKind::UnknownOrder | CaseKind::WrongMethod => {
                    with("amount", "9.99".into())
                }
                CaseKind::WrongMerchant => with("merchant", "1900000002".into()),
                CaseKind::UnknownRefund => with("outcome", "succeeded".into()),
                CaseKind::RefundAfterFailure => with("found", "returned".into()),
                CaseKind::GatewayProtocol => with("message", "no such field".into()),
            };
            for resolved in [true, false] {
                assert!(!is_news(resolved, &repeat), "{kind}: a repeat");
                assert!(is_news(resolved, &new), "{kind}: {new}");
                assert!(!kind.is_news(resolved, [&payment, &new].into_iter(), &new), "{kind}: known by now");
            }
        }
    }

    #[test]
    fn a_member_that_is_absent_or_null_is_no_new_fact() {
        let known = json!({ "amount": "8.88" });
        for fact in [json!({}), json!({ "amount": null }), json!({ "amount": "8.88" })] {
            assert!(!CaseKind::AmountMismatch.is_news(true, std::iter::once(&known), &fact), "{fact}");
        }
    }

    /// A fact that appears again later is new only once, so two alternating answers do not reopen a case forever.
    #[test]
    fn facts_in_turn_are_each_new_once() {
        let (one, two) = (json!({ "message": "a" }), json!({ "message": "b" }));
        assert!(CaseKind::GatewayProtocol.is_news(true, [&one].into_iter(), &two));
        assert!(!CaseKind::GatewayProtocol.is_news(true, [&two, &one].into_iter(), &one));
    }

    #[test]
    fn every_open_case_can_end_with_a_note_and_none_is_reopened_while_open() {
        for kind in CaseKind::ALL {
            assert!(kind.actions().contains(&CaseAction::Note), "{kind}");
            assert!(!kind.actions().contains(&CaseAction::Reopen), "{kind}");
        }
    }
}
