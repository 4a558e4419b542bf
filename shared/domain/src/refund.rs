//! The states of a refund, and how refunds determine the state of their order.

use crate::money::Money;
use crate::named_enum;
use crate::order::OrderStatus;

named_enum! {
    /// The state of a refund.
    RefundStatus {
        /// A buyer or a person has requested it, and a person must approve it. It reserves nothing.
        Requested = "requested",
        /// Not sent yet.
        Pending = "pending",
        /// The gateway may have received it: query before sending again.
        Processing = "processing",
        /// The money was returned to the buyer.
        Succeeded = "succeeded",
        /// The gateway refused it, and a later query showed no such refund; or the gateway closed it.
        Failed = "failed",
        /// The gateway accepted it but could not deliver it: a person must act.
        Abnormal = "abnormal",
        /// A person declined the request, or approving it found that it no longer fits.
        Declined = "declined",
        /// The requester took it back before the gateway had it.
        Withdrawn = "withdrawn",
    }
}

named_enum! {
    /// Who sent a refund to the gateway.
    RefundOrigin {
        /// This service.
        Service = "service",
        /// Another party, in the gateway's console or with the merchant's keys. We only book it.
        Outside = "outside",
    }
}

named_enum! {
    /// What can happen to a refund.
    RefundEvent {
        /// A person agrees to the request.
        Approved = "approved",
        /// A person refuses the request, or it no longer fits.
        Declined = "declined",
        /// The requester takes it back.
        Withdrawn = "withdrawn",
        /// The first request is about to be sent.
        Sent = "sent",
        /// The gateway states that the money was returned.
        Returned = "returned",
        /// The gateway will not return the money under this number.
        Failed = "failed",
        /// The gateway could not deliver it.
        Undeliverable = "undeliverable",
    }
}

/// Every move of a refund. Every pair that is not listed is refused everywhere.
pub const REFUND_TRANSITIONS: &[(RefundStatus, RefundEvent, RefundStatus)] = &[
    (RefundStatus::Requested, RefundEvent::Approved, RefundStatus::Pending),
    (RefundStatus::Requested, RefundEvent::Declined, RefundStatus::Declined),
    (RefundStatus::Requested, RefundEvent::Withdrawn, RefundStatus::Withdrawn),
    (RefundStatus::Pending, RefundEvent::Sent, RefundStatus::Processing),
    (RefundStatus::Pending, RefundEvent::Withdrawn, RefundStatus::Withdrawn),
    (RefundStatus::Processing, RefundEvent::Returned, RefundStatus::Succeeded),
    (RefundStatus::Processing, RefundEvent::Failed, RefundStatus::Failed),
    (RefundStatus::Processing, RefundEvent::Undeliverable, RefundStatus::Abnormal),
    // Only by the refund worker: the gateway refused for the merchant's balance, and knows no such refund.
    (RefundStatus::Processing, RefundEvent::Withdrawn, RefundStatus::Withdrawn),
    (RefundStatus::Abnormal, RefundEvent::Returned, RefundStatus::Succeeded),
    (RefundStatus::Abnormal, RefundEvent::Failed, RefundStatus::Failed),
    // A success that is found later is a fact, and it opens a case.
    (RefundStatus::Failed, RefundEvent::Returned, RefundStatus::Succeeded),
    (RefundStatus::Withdrawn, RefundEvent::Returned, RefundStatus::Succeeded),
];

impl RefundStatus {
    /// The state after `event`; `None` when [`REFUND_TRANSITIONS`] has no such move.
    pub fn next(self, event: RefundEvent) -> Option<RefundStatus> {
        REFUND_TRANSITIONS.iter().find(|(from, on, _)| (*from, *on) == (self, event)).map(|(_, _, to)| *to)
    }

    /// Whether the refund is in flight, so that the order's next refund must wait.
    pub const fn in_flight(self) -> bool {
        matches!(self, RefundStatus::Pending | RefundStatus::Processing)
    }

    /// Whether its amount is reserved: returned, in flight, or stuck. A request reserves nothing.
    pub const fn reserves(self) -> bool {
        self.in_flight() || matches!(self, RefundStatus::Succeeded | RefundStatus::Abnormal)
    }

    /// Whether the gateway's word on it is still due: it is in flight, or stuck.
    pub const fn awaits_the_gateway(self) -> bool {
        self.in_flight() || matches!(self, RefundStatus::Abnormal)
    }

    /// Whether no more work on it is needed.
    pub const fn is_final(self) -> bool {
        !matches!(self, RefundStatus::Requested) && !self.awaits_the_gateway()
    }
}

/// The state of a paid order: whether a refund is in flight, how much was returned, and how much was paid.
pub fn status_by_refunds(in_flight: bool, returned: Money, paid: Money) -> OrderStatus {
    if in_flight {
        OrderStatus::Refunding
    } else if returned == paid {
        OrderStatus::Refunded
    } else if returned.is_positive() {
        OrderStatus::PartiallyRefunded
    } else {
        OrderStatus::Paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_as_designed() {
        let mut grid = String::new();
        for from in RefundStatus::ALL {
            for event in RefundEvent::ALL {
                let to = from.next(*event).map_or("-", RefundStatus::as_str);
                grid.push_str(&format!("{from:12} {event:14} {to}\n"));
            }
        }
        insta::assert_snapshot!(grid);
    }

    #[test]
    fn a_request_reserves_nothing_and_no_state_ends_while_its_money_may_move() {
        use RefundStatus::{Abnormal, Declined, Failed, Pending, Processing, Requested, Succeeded, Withdrawn};
        let reserving = [Pending, Processing, Succeeded, Abnormal];
        let ended = [Succeeded, Failed, Declined, Withdrawn];
        for status in RefundStatus::ALL {
            assert_eq!(status.reserves(), reserving.contains(status), "{status}");
            assert_eq!(status.is_final(), ended.contains(status), "{status}");
            assert_eq!(status.awaits_the_gateway(), [Pending, Processing, Abnormal].contains(status), "{status}");
        }
        // Money moves only after `pending`, which a declined or withdrawn refund never reaches again.
        for from in [Requested, Declined, Withdrawn] {
            assert_eq!(from.next(RefundEvent::Sent), None, "{from}");
        }
        for from in RefundStatus::ALL.iter().filter(|from| **from != Requested) {
            assert_eq!((from.next(RefundEvent::Approved), from.next(RefundEvent::Declined)), (None, None), "{from}");
        }
    }

    #[test]
    fn an_order_follows_its_refunds() {
        let yuan = |fen| Money::from_fen(fen).unwrap();
        for (in_flight, returned, status) in [
            (true, 0, OrderStatus::Refunding),
            (true, 50, OrderStatus::Refunding),
            (false, 0, OrderStatus::Paid),
            (false, 50, OrderStatus::PartiallyRefunded),
            (false, 100, OrderStatus::Refunded),
        ] {
            assert_eq!(status_by_refunds(in_flight, yuan(returned), yuan(100)), status);
        }
    }
}
