//! Builds the case of a message, with its evidence.

use domain::{CaseId, CaseKind, Fact, Merchant, Money, Notification, OrderId, RefundState};
use runtime::clock::Clock;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::tables::cases::NewCase;

/// The case of a message. The caller opens it.
pub(super) fn new_case(
    kind: CaseKind,
    order_id: Option<OrderId>,
    notification: &Notification,
    clock: &Clock,
) -> NewCase {
    NewCase {
        id: CaseId::from_u128(clock.fresh_bits()),
        kind,
        order_id,
        subject_ref: case_number(notification),
        evidence: evidence(notification),
    }
}

/// The number that identifies a case among those of its kind: the refund's, the trade's, or else the message's.
fn case_number(notification: &Notification) -> String {
    match &notification.fact {
        Fact::Refund { refund_no, .. } => refund_no.clone(),
        Fact::Paid { trade_no, .. } => trade_no.to_string(),
        Fact::PaidAndReturned(trade) => trade.trade_no.to_string(),
        Fact::ClosedUnpaid | Fact::Nothing => notification.notice_id.clone(),
    }
}

/// What a person needs to judge the case, without the payer's identity. The original bytes are in `callbacks`.
fn evidence(notification: &Notification) -> Value {
    let mut evidence = json!({
        "payment_method": notification.method,
        "account": notification.account,
        "notice_id": notification.notice_id,
        "order_no": notification.order_no,
    });
    if let Merchant::Other(ids) | Merchant::OtherApp { ids, .. } = &notification.merchant {
        evidence["merchant"] = ids.as_str().into();
    }
    if let Some(doubt) = &notification.doubt {
        evidence["doubt"] = doubt.as_str().into();
    }
    let money = |amount: &Option<Money>| amount.map(|amount| amount.to_string());
    match &notification.fact {
        Fact::Paid { trade_no, amount, paid_at } => {
            evidence["trade_no"] = trade_no.as_str().into();
            evidence["paid_at"] = json!(paid_at.format(&Rfc3339).ok());
            evidence["amount"] = json!(money(amount));
        }
        Fact::PaidAndReturned(trade) => evidence["trade_no"] = trade.trade_no.as_str().into(),
        Fact::Refund { trade, refund_no, report } => {
            evidence["trade_no"] = trade.trade_no.as_str().into();
            evidence["refund_no"] = refund_no.as_str().into();
            evidence["amount"] = json!(money(&report.amount));
            evidence["outcome"] = outcome(report.state).into();
            evidence["gateway_refund_no"] = json!(report.gateway_refund_no);
            evidence["succeeded_at"] = json!(report.at.and_then(|at| at.format(&Rfc3339).ok()));
        }
        Fact::ClosedUnpaid | Fact::Nothing => {}
    }
    evidence
}

/// The state of a refund in the evidence of a case. Statements in `tables` and older cases have these words.
const fn outcome(state: RefundState) -> &'static str {
    match state {
        RefundState::Succeeded => "succeeded",
        RefundState::Closed => "closed",
        RefundState::Abnormal => "abnormal",
        RefundState::Processing | RefundState::Absent => "hint",
    }
}
