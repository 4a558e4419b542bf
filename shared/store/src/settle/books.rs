//! What a batch knows, and what it will write.

use std::collections::{HashMap, HashSet};

use domain::{CaseKind, Notification, OrderId, PaymentMethod, Policies, TradeNo, Verdict};
use runtime::clock::Clock;
use time::OffsetDateTime;

use super::effects::Effects;
use super::evidence::new_case;
use crate::tables::orders::Order;

/// What we know inside the transaction, and what we will write at its end.
pub(super) struct Books<'a> {
    pub(super) orders: HashMap<String, Order>,
    pub(super) recorded: HashSet<(PaymentMethod, String)>,
    pub(super) gone: HashSet<(OrderId, String)>,
    /// Orders whose purchase has another order, one that is not closed.
    pub(super) with_another: HashSet<OrderId>,
    pub(super) effects: Effects,
    pub(super) policies: &'a Policies,
    pub(super) clock: &'a Clock,
    pub(super) now: OffsetDateTime,
}

impl Books<'_> {
    /// Whether a trade already has its row, although it is not the order's own trade.
    pub(super) fn knows(&self, method: PaymentMethod, trade_no: &TradeNo) -> bool {
        self.recorded.contains(&(method, trade_no.as_str().to_owned()))
    }

    /// Collects a case for the message, and returns the verdict.
    pub(super) fn case(
        &mut self,
        verdict: Verdict,
        kind: CaseKind,
        order_id: Option<OrderId>,
        notification: &Notification,
    ) -> Verdict {
        let case = new_case(kind, order_id, notification, self.clock);
        self.effects.cases.push(case);
        verdict
    }
}
