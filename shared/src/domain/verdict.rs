//! What became of a callback, and what a person must look at.

use super::payment_method::named_enum;

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
    }
}

impl CaseKind {
    /// Whether money is free again when such a case ends: what was reserved for a refund that is not ours. That takes two
    /// people, like everything that moves money.
    pub const fn end_frees_money(self) -> bool {
        matches!(self, CaseKind::UnknownRefund)
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
            // A fault that is met again later is worth a new case.
            CaseKind::GatewayProtocol => false,
        }
    }
}
