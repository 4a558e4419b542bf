//! The states of an order, and its moves until it is paid.

use crate::named_enum;

named_enum! {
    /// The state of an order. The values are in the order in which a buyer meets them.
    OrderStatus {
        /// Waiting for the buyer.
        Pending = "pending",
        /// Paid in full; what was bought is owed.
        Paid = "paid",
        /// Closed without a payment: by request or after its expiry.
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
    /// The state of a payment that the order was not owed: a late one, a second one, or one of another amount.
    ExtraState {
        /// We hold it; people have not decided yet.
        Held = "held",
        /// It is being refunded.
        Returning = "returning",
        /// The buyer has received it.
        Returned = "returned",
    }
}

impl ExtraState {
    /// Whether an action is still needed.
    pub const fn is_open(self) -> bool {
        !matches!(self, ExtraState::Returned)
    }
}

named_enum! {
    /// What can happen to an order.
    OrderEvent {
        /// The gateway received the buyer's payment.
        PaymentSucceeded = "payment_succeeded",
        /// The gateway closed the trade without a payment.
        ClosedUnpaid = "closed_unpaid",
        /// A payment is accepted for the order although it came after the close, or was partly refunded before we knew
        /// of it. The account's policy or people decide that.
        PaymentHonoured = "payment_honoured",
    }
}

/// Every move of an order that an event makes. [`OrderStatus::next`] refuses every other pair. After payment an order also
/// moves among `paid`, `refunding`, `partially_refunded` and `refunded`, as [`crate::status_by_refunds`] says. A trigger
/// of the database refuses every other change.
pub const TRANSITIONS: &[(OrderStatus, OrderEvent, OrderStatus)] = &[
    (OrderStatus::Pending, OrderEvent::PaymentSucceeded, OrderStatus::Paid),
    (OrderStatus::Pending, OrderEvent::ClosedUnpaid, OrderStatus::Closed),
    (OrderStatus::Pending, OrderEvent::PaymentHonoured, OrderStatus::Paid),
    (OrderStatus::Closed, OrderEvent::PaymentHonoured, OrderStatus::Paid),
];

/// [`TRANSITIONS`] has no such move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an order that is {from} cannot take {event}")]
pub struct InvalidTransition {
    /// The present state.
    pub from: OrderStatus,
    /// The event that does not fit it.
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

    /// Whether the order was paid, even if the money was refunded later.
    pub const fn was_paid(self) -> bool {
        !matches!(self, OrderStatus::Pending | OrderStatus::Closed)
    }

    /// Whether the status can never change again. `closed` is not final: a late payment can still be accepted for the
    /// order.
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
