//! What became of a callback, and what a person must look at.

use serde_json::Value;

use crate::named_enum;

named_enum! {
    /// What the worker made of a callback.
    Verdict {
        /// The fact changed our books.
        Settled = "settled",
        /// The fact was already recorded.
        Duplicate = "duplicate",
        /// Money came for an order that is closed, or was paid by another trade.
        NotPending = "not_pending",
        /// The amount is not the order's.
        AmountMismatch = "amount_mismatch",
        /// The merchant, the app or the account is not the order's.
        WrongMerchant = "wrong_merchant",
        /// The order is to be paid at the other gateway.
        WrongMethod = "wrong_method",
        /// No order has this number.
        UnknownOrder = "unknown_order",
        /// No refund has this number.
        UnknownRefund = "unknown_refund",
        /// A state that changes nothing.
        Ignored = "ignored",
        /// The named key is loaded and did not sign these bytes.
        BadSignature = "bad_signature",
        /// Authentic or not, the bytes cannot be read.
        Undecodable = "undecodable",
    }
}

impl Verdict {
    /// Whether what an order shows may be another after it.
    pub const fn changes_order(self) -> bool {
        matches!(self, Verdict::Settled | Verdict::NotPending | Verdict::AmountMismatch | Verdict::WrongMethod)
    }
}

named_enum! {
    /// How far people are with a case.
    CaseStatus {
        /// Nobody has decided.
        Open = "open",
        /// One person has proposed what another must confirm.
        Proposed = "proposed",
        /// Done.
        Resolved = "resolved",
    }
}

named_enum! {
    /// Why a person must look.
    CaseKind {
        /// A payment of a closed order.
        LatePayment = "late_payment",
        /// A second payment of a paid order.
        DoublePayment = "double_payment",
        /// A pending order was found paid and returned at the gateway.
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
        /// A message that ended in the dead letter queue.
        DeadLetter = "dead_letter",
        /// A refund that the gateway accepted and could not deliver.
        RefundAbnormal = "refund_abnormal",
        /// A refund that waits because the merchant's balance is short.
        RefundShortage = "refund_shortage",
        /// A refund that the gateway closed: it needs another number.
        RefundClosed = "refund_closed",
        /// A refund that had failed was found returned, or still in the gateway's hands.
        RefundAfterFailure = "refund_after_failure",
        /// A signed answer of a gateway that breaks the protocol.
        GatewayProtocol = "gateway_protocol",
        /// An account of ours that its gateway refuses: its contract, its configuration or its keys.
        Misconfigured = "misconfigured",
    }
}

named_enum! {
    /// What people can choose about a case.
    CaseAction {
        /// Return the payment, or a part of it.
        Refund = "refund",
        /// Take the late payment for its closed order.
        Fulfil = "fulfil",
        /// Book a refund that was made at the gateway.
        BookRefund = "book_refund",
        /// Return under a new number what the gateway closed.
        RefundAgain = "refund_again",
        /// Send a refund that cannot be delivered to the merchant's own account.
        AbnormalRefund = "abnormal_refund",
        /// Take the amount that the gateway states for a refund as the one that went back.
        AcceptAmount = "accept_amount",
        /// Resolve the case with a note.
        Note = "note",
        /// Open a resolved case again, with a reason.
        Reopen = "reopen",
    }
}

/// Which facts of a case's key are new.
enum NewFacts {
    /// The service meets this state only by a step of its own (one more request, one more message, a move of the refund), so
    /// each meeting is a new fact once the case is resolved. An open case says it already.
    EachMeeting,
    /// The gateway repeats what it says. A fact is new when one of these members of the evidence has a value that no earlier
    /// fact of the case had. A member that is absent or null says nothing.
    Members(&'static [&'static str]),
}

impl CaseKind {
    /// Which facts are new for a case of this kind: the one place that decides what reopens a case.
    const fn new_facts(self) -> NewFacts {
        match self {
            // The refund was sent again and the balance is still short; a job's message died again.
            CaseKind::RefundShortage | CaseKind::DeadLetter => NewFacts::EachMeeting,
            // The refund moved into this state, which a refund does once.
            CaseKind::RefundAbnormal | CaseKind::RefundClosed => NewFacts::EachMeeting,
            // People have said that it is mended, and it is not.
            CaseKind::Misconfigured => NewFacts::EachMeeting,
            // The payment was recorded once. What can come later is that its money was returned at the gateway.
            CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::RefundedElsewhere => {
                NewFacts::Members(&["amount", "returned", "returned_amount"])
            }
            CaseKind::AmountMismatch => NewFacts::Members(&["amount"]),
            CaseKind::WrongMerchant => NewFacts::Members(&["merchant", "account", "amount"]),
            CaseKind::WrongMethod | CaseKind::UnknownOrder => {
                NewFacts::Members(&["payment_method", "account", "amount"])
            }
            CaseKind::UnknownRefund => NewFacts::Members(&["amount", "outcome", "returned", "returned_amount"]),
            // First in the gateway's hands, later returned.
            CaseKind::RefundAfterFailure => NewFacts::Members(&["found"]),
            // Another fault. The same one is asked about again and again by the schedule.
            CaseKind::GatewayProtocol => NewFacts::Members(&["message"]),
        }
    }

    /// Whether `told` is a new fact for a case of this kind. `known` is the evidence of every fact before it.
    pub fn is_news<'a>(self, resolved: bool, mut known: impl Iterator<Item = &'a Value>, told: &Value) -> bool {
        let members = match self.new_facts() {
            NewFacts::EachMeeting => return resolved,
            NewFacts::Members(members) => members,
        };
        let stated: Vec<&str> =
            members.iter().copied().filter(|name| told.get(name).is_some_and(|value| !value.is_null())).collect();
        !stated.is_empty() && known.all(|known| stated.iter().any(|name| known.get(name) != told.get(name)))
    }

    /// What people can choose about an open case of this kind.
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

    /// Whether money is free again when such a case ends: what was reserved for a refund that is not ours. That takes two
    /// people, like everything that moves money.
    pub const fn end_frees_money(self) -> bool {
        matches!(self, CaseKind::UnknownRefund)
    }

    /// Whether such a case can tell of a buyer's money that we have and no order takes.
    pub const fn is_of_money_held(self) -> bool {
        matches!(
            self,
            CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::AmountMismatch | CaseKind::WrongMethod
        )
    }

    /// Whether nothing but the case remembers its fact, and the gateway would tell it again whenever it is asked about the
    /// order. Without the case it would be news once more, and of a trade whose money had gone back, a payment.
    pub const fn is_its_only_memory(self) -> bool {
        match self {
            CaseKind::RefundedElsewhere
            | CaseKind::AmountMismatch
            | CaseKind::WrongMerchant
            | CaseKind::UnknownRefund
            | CaseKind::RefundAfterFailure => true,
            // The trade has its transaction.
            CaseKind::LatePayment | CaseKind::DoublePayment => false,
            // The refund has come to its end.
            CaseKind::RefundAbnormal | CaseKind::RefundShortage | CaseKind::RefundClosed => false,
            // Told by messages alone, which nobody repeats after days.
            CaseKind::WrongMethod | CaseKind::UnknownOrder | CaseKind::DeadLetter => false,
            // A fault that is met again after years is worth a new case.
            CaseKind::GatewayProtocol | CaseKind::Misconfigured => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each kind: a fact, a repeat of it, and a new fact where the gateway can tell one.
    #[test]
    fn each_kind_knows_a_repeat_from_a_new_fact() {
        let payment = json!({ "account": "main", "payment_method": "wechat", "amount": "8.88", "notice_id": "n1" });
        let with = |name: &str, value: Value| {
            let mut told = payment.clone();
            (told["notice_id"], told[name]) = ("n2".into(), value);
            told
        };
        let repeat = with("trade_no", "4200000001".into());
        for kind in CaseKind::ALL {
            let is_news = |resolved, told: &Value| kind.is_news(resolved, std::iter::once(&payment), told);
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
        for told in [json!({}), json!({ "amount": null }), json!({ "amount": "8.88" })] {
            assert!(!CaseKind::AmountMismatch.is_news(true, std::iter::once(&known), &told), "{told}");
        }
    }

    /// A fact that comes and goes is new once, so two answers in turn do not reopen a case for ever.
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
