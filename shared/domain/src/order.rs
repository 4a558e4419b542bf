//! The states of an order and every move between them.

use crate::named_enum;

named_enum! {
    /// Where an order stands. The order of values is the order in which a buyer meets them.
    OrderStatus {
        /// Waiting for the buyer.
        Pending = "pending",
        /// Paid in full; what was bought is owed.
        Paid = "paid",
        /// Given up or expired without a payment.
        Closed = "closed",
        /// Paid, and a refund is in flight.
        Refunding = "refunding",
        /// Paid, and some of it was returned.
        PartiallyRefunded = "partially_refunded",
        /// Paid, and all of it was returned.
        Refunded = "refunded",
    }
}

named_enum! {
    /// What became of money that an order was not owed: a late payment, a second one, one of another amount.
    ExtraState {
        /// We hold it; people have not decided yet.
        Held = "held",
        /// It is on its way back to the buyer.
        Returning = "returning",
        /// The buyer has it back.
        Returned = "returned",
    }
}

impl ExtraState {
    /// Whether something still has to happen.
    pub const fn is_open(self) -> bool {
        !matches!(self, ExtraState::Returned)
    }
}

named_enum! {
    /// What can happen to an order.
    OrderEvent {
        /// The gateway took the buyer's money.
        PaymentSucceeded = "payment_succeeded",
        /// The gateway closed the trade and nobody had paid.
        ClosedUnpaid = "closed_unpaid",
        /// Money that came after the end, or of which a part went back before we knew of it, is taken for the order all the
        /// same: by the account's policy, or by people.
        PaymentHonoured = "payment_honoured",
    }
}

/// Every move an order can make. A pair that is absent is refused everywhere.
pub const TRANSITIONS: &[(OrderStatus, OrderEvent, OrderStatus)] = &[
    (OrderStatus::Pending, OrderEvent::PaymentSucceeded, OrderStatus::Paid),
    (OrderStatus::Pending, OrderEvent::ClosedUnpaid, OrderStatus::Closed),
    (OrderStatus::Pending, OrderEvent::PaymentHonoured, OrderStatus::Paid),
    (OrderStatus::Closed, OrderEvent::PaymentHonoured, OrderStatus::Paid),
];

/// The table has no such move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an order that is {from} cannot take {event}")]
pub struct InvalidTransition {
    /// The state that was to be left.
    pub from: OrderStatus,
    /// What was to happen.
    pub event: OrderEvent,
}

impl OrderStatus {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`InvalidTransition`] when [`TRANSITIONS`] has no such move.
    pub fn next(self, event: OrderEvent) -> Result<OrderStatus, InvalidTransition> {
        TRANSITIONS
            .iter()
            .find(|(from, on, _)| (*from, *on) == (self, event))
            .map(|(_, _, to)| *to)
            .ok_or(InvalidTransition { from: self, event })
    }

    /// Whether the buyer's money was taken for this order, returned since or not.
    pub const fn was_paid(self) -> bool {
        !matches!(self, OrderStatus::Pending | OrderStatus::Closed)
    }

    /// Whether the status stays for ever. That of a closed order does not: money that comes late can still be taken for it.
    pub const fn is_final(self) -> bool {
        matches!(self, OrderStatus::Refunded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_as_designed() {
        let mut grid = String::new();
        for from in OrderStatus::ALL {
            for event in OrderEvent::ALL {
                let to = from.next(*event).map_or("-", OrderStatus::as_str);
                grid.push_str(&format!("{from:18} {event:18} {to}\n"));
            }
        }
        insta::assert_snapshot!(grid);
    }

    #[test]
    fn nothing_leaves_a_final_state() {
        for status in OrderStatus::ALL.iter().filter(|status| status.is_final()) {
            assert!(OrderEvent::ALL.iter().all(|event| status.next(*event).is_err()), "{status}");
        }
    }

    #[test]
    fn no_move_has_two_ends() {
        for (i, (from, event, _)) in TRANSITIONS.iter().enumerate() {
            assert!(!TRANSITIONS[..i].iter().any(|(f, e, _)| (f, e) == (from, event)), "{from} {event}");
        }
    }
}
