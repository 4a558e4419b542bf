//! The ids of the events about an order. They follow from its rows: `events` has an index on ids, and none on orders.

use domain::OrderId;
use domain::message::event::kind;

use crate::tables::cases::Case;
use crate::tables::refunds::Refund;
use crate::tables::transactions::Movement;

/// The ids of every event that can exist about an order with these movements, refunds and cases.
pub fn event_ids(order: OrderId, movements: &[Movement], refunds: &[Refund], cases: &[Case]) -> Vec<String> {
    let mut ids: Vec<String> = [kind::ORDER_PAID, kind::ORDER_CLOSED].map(|kind| format!("{kind}:{order}")).into();
    ids.extend(movements.iter().map(|movement| format!("{}:{}", kind::EXTRA_PAYMENT_RECEIVED, movement.id)));
    for refund in refunds {
        let kinds = [
            kind::REFUND_REQUESTED,
            kind::REFUND_DECLINED,
            kind::REFUND_WITHDRAWN,
            kind::REFUND_SUCCEEDED,
            kind::REFUND_FAILED,
            kind::REFUND_ABNORMAL,
            kind::ORDER_REFUNDED,
            kind::EXTRA_PAYMENT_REFUNDED,
            kind::EXTRA_PAYMENT_REFUND_FAILED,
        ];
        ids.extend(kinds.map(|kind| format!("{kind}:{}", refund.id)));
    }
    ids.extend(cases.iter().map(|case| format!("{}:{}", kind::CASE_OPENED, case.id)));
    ids.extend(cases.iter().flat_map(reopenings));
    ids
}

/// The ids of the events about a case's reopenings. The case's history contains their versions.
fn reopenings(case: &Case) -> Vec<String> {
    let entries = case.history.as_array().map(Vec::as_slice).unwrap_or_default();
    let reopened = entries.iter().filter(|entry| entry["what"] == "reopened");
    reopened.map(|entry| format!("{}:{}:{}", kind::CASE_REOPENED, case.id, entry["version"])).collect()
}
