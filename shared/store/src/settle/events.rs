//! The content of each event, built from the rows as they are at the end of a transaction.

use domain::message::event::{Event, kind};
use domain::{CaseKind, LatePaymentPolicy, OrderStatus, TradeNo, VouchedBy};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::tables::case_facts::Opened;
use crate::tables::orders::Order;
use crate::tables::refunds::Refund;
use crate::tables::transactions::ExtraPayment;

/// An order was paid.
pub fn order_paid(order: &Order, trade_no: &TradeNo, paid_at: OffsetDateTime) -> Event {
    let mut data = order_data(order, OrderStatus::Paid);
    data["trade_no"] = trade_no.as_str().into();
    data["paid_at"] = rfc3339(paid_at).into();
    Event {
        event_id: format!("{}:{}", kind::ORDER_PAID, order.id),
        kind: kind::ORDER_PAID,
        order_id: Some(order.id),
        data,
    }
}

/// An order was closed without a payment.
pub fn order_closed(order: &Order, closed_at: OffsetDateTime) -> Event {
    let mut data = order_data(order, OrderStatus::Closed);
    data["closed_at"] = rfc3339(closed_at).into();
    Event {
        event_id: format!("{}:{}", kind::ORDER_CLOSED, order.id),
        kind: kind::ORDER_CLOSED,
        order_id: Some(order.id),
        data,
    }
}

/// A refund was requested and waits for a person. The order stays as it is.
pub fn refund_requested(order: &Order, refund: &Refund) -> Event {
    refund_event(kind::REFUND_REQUESTED, order, refund, refund_data(order, refund))
}

/// A request for a refund was declined. The order stays as it is.
pub fn refund_declined(order: &Order, refund: &Refund, why: &str) -> Event {
    let mut data = refund_data(order, refund);
    data["why"] = why.into();
    refund_event(kind::REFUND_DECLINED, order, refund, data)
}

/// A refund was withdrawn before the gateway had it. `order` is in the state after that.
pub fn refund_withdrawn(order: &Order, refund: &Refund) -> Event {
    refund_event(kind::REFUND_WITHDRAWN, order, refund, refund_data(order, refund))
}

/// The gateway accepted a refund and could not deliver the money. `order` is in the state after that.
pub fn refund_abnormal(order: &Order, refund: &Refund, why: &str) -> Event {
    let mut data = refund_data(order, refund);
    data["why"] = why.into();
    refund_event(kind::REFUND_ABNORMAL, order, refund, data)
}

/// A refund succeeded. `order` is in the state after the refund. The refund of a payment that was not owed has an event of
/// its own, so that no consumer rolls back an order for it.
pub fn refund_succeeded(order: &Order, refund: &Refund, succeeded_at: OffsetDateTime) -> Event {
    let mut data = refund_data(order, refund);
    data["succeeded_at"] = rfc3339(succeeded_at).into();
    let kind = if is_own(order, refund) { kind::REFUND_SUCCEEDED } else { kind::EXTRA_PAYMENT_REFUNDED };
    refund_event(kind, order, refund, data)
}

/// A refund will not succeed under its number. `order` is in the state after the refund. The refund of a payment that was
/// not owed has an event of its own.
pub fn refund_failed(order: &Order, refund: &Refund, why: &str) -> Event {
    let mut data = refund_data(order, refund);
    data["why"] = why.into();
    let kind = if is_own(order, refund) { kind::REFUND_FAILED } else { kind::EXTRA_PAYMENT_REFUND_FAILED };
    refund_event(kind, order, refund, data)
}

/// Whether a refund returns the order's own payment.
pub(super) fn is_own(order: &Order, refund: &Refund) -> bool {
    order.trade_no.as_ref() == Some(&refund.trade_no)
}

/// A payment arrived that its order was not owed, and the policy for it.
pub(super) fn extra_payment_received(
    order: &Order,
    payment: &ExtraPayment,
    case: CaseKind,
    policy: LatePaymentPolicy,
) -> Event {
    let mut data = order_data(order, order.status);
    data["order_version"] = order.version.into();
    data["payment_id"] = payment.id.to_string().into();
    data["trade_no"] = payment.gateway_no.as_str().into();
    data["payment_amount"] = payment.amount.to_string().into();
    data["paid_at"] = rfc3339(payment.paid_at).into();
    data["kind"] = case.as_str().into();
    data["policy"] = policy.as_str().into();
    let kind = kind::EXTRA_PAYMENT_RECEIVED;
    Event { event_id: format!("{kind}:{}", payment.id), kind, order_id: Some(order.id), data }
}

/// The whole amount of an order was refunded; `refund` was the last part.
pub fn order_refunded(order: &Order, refund: &Refund) -> Event {
    refund_event(kind::ORDER_REFUNDED, order, refund, refund_data(order, refund))
}

fn refund_event(kind: &'static str, order: &Order, refund: &Refund, data: Value) -> Event {
    Event { event_id: format!("{kind}:{}", refund.id), kind, order_id: Some(order.id), data }
}

fn refund_data(order: &Order, refund: &Refund) -> Value {
    let mut data = order_data(order, order.status);
    data["order_version"] = order.version.into();
    data["refund_id"] = refund.id.to_string().into();
    data["refund_no"] = refund.refund_no.as_str().into();
    data["refund_amount"] = refund.amount.to_string().into();
    data["refunded_amount"] = order.refunded_amount.to_string().into();
    data["trade_no"] = refund.trade_no.as_str().into();
    data["reason"] = json!(refund.reason);
    data["origin"] = refund.origin.as_str().into();
    data
}

/// A case was opened or reopened. The evidence stays in the case.
pub fn case_opened(case: &Opened) -> Event {
    let data = json!({ "case_id": case.id.to_string(), "kind": case.kind.as_str() });
    match case.reopened_as {
        None => Event {
            event_id: format!("{}:{}", kind::CASE_OPENED, case.id),
            kind: kind::CASE_OPENED,
            order_id: case.order_id,
            data,
        },
        Some(version) => case_reopened(case, version, data),
    }
}

/// Each version reopens a case at most once, so the version is part of the event's id.
fn case_reopened(case: &Opened, version: i64, mut data: Value) -> Event {
    data["version"] = version.into();
    Event {
        event_id: format!("{}:{}:{version}", kind::CASE_REOPENED, case.id),
        kind: kind::CASE_REOPENED,
        order_id: case.order_id,
        data,
    }
}

/// The members that every event about an order has. `version` is the order's after the change.
fn order_data(order: &Order, status: OrderStatus) -> Value {
    json!({
        "order_id": order.id.to_string(),
        "order_no": order.order_no.as_str(),
        "merchant_order_no": order.merchant_order_no,
        "vouched_by": order.vouched_by.map(VouchedBy::as_str),
        "user_id": order.user_id.as_str(),
        "product_type": order.product_type.as_str(),
        "amount": order.amount.to_string(),
        "currency": "CNY",
        "payment_method": order.payment_method.as_str(),
        "order_version": order.version + 1,
        "order_status": status.as_str(),
        "metadata": order.metadata,
    })
}

fn rfc3339(time: OffsetDateTime) -> String {
    // Fails only outside the years 0 to 9999, which no clock of ours shows.
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use domain::OrderId;
    use time::macros::datetime;

    use super::*;
    use domain::{
        AccountName, CaseId, CaseKind, MerchantOrderNo, Money, OrderNo, OrderStatus, PaymentMethod, ProductType,
        RefundId, RefundNo, RefundOrigin, RefundStatus, Scene, Subject, TransactionId, UserId,
    };

    const AT: OffsetDateTime = datetime!(2026-01-05 10:21:08.5 UTC);

    fn order() -> Order {
        Order {
            id: OrderId::from_u128(7),
            user_id: UserId::parse("u1").unwrap(),
            order_no: OrderNo::parse("ORD_0001").unwrap(),
            product_type: ProductType::parse("credits").unwrap(),
            subject: Subject::parse("十次修图").unwrap(),
            amount: Money::from_fen(8888).unwrap(),
            payment_method: PaymentMethod::Wechat,
            scene: Scene::Native,
            account: AccountName::parse("main").unwrap(),
            status: OrderStatus::Pending,
            trade_no: Some(TradeNo::parse("4200000001").unwrap()),
            refunded_amount: Money::ZERO,
            expires_at: AT,
            paid_at: None,
            closed_at: None,
            close_requested_at: None,
            extra_state: None,
            extra_amount: None,
            merchant_order_no: Some(MerchantOrderNo::parse("A1002").unwrap()),
            vouched_by: None,
            voucher: None,
            offer_id: None,
            metadata: json!({ "cart": 7 }),
            prepay: json!({ "openid": "secret" }),
            version: 1,
            created_at: AT,
            updated_at: AT,
        }
    }

    fn refund() -> Refund {
        Refund {
            id: RefundId::from_u128(8),
            order_id: order().id,
            transaction_id: TransactionId::from_u128(7),
            refund_no: RefundNo::parse("RF_1").unwrap(),
            amount: Money::from_fen(100).unwrap(),
            status: RefundStatus::Processing,
            origin: RefundOrigin::Service,
            reason: Some("不合适".to_owned()),
            gateway_refund_no: None,
            attempts: 1,
            last_error: None,
            sent_at: Some(AT),
            refused_code: None,
            requested_by: "u1".to_owned(),
            approved_by: None,
            ended_by: None,
            decline_reason: None,
            short_attempt: None,
            succeeded_at: None,
            created_at: AT,
            updated_at: AT,
            trade_no: TradeNo::parse("4200000001").unwrap(),
            payment_amount: Money::from_fen(8888).unwrap(),
            payment_method: PaymentMethod::Wechat,
            account: None,
        }
    }

    fn extra() -> Refund {
        Refund { trade_no: TradeNo::parse("4200000002").unwrap(), ..refund() }
    }

    fn extra_payment() -> ExtraPayment {
        ExtraPayment {
            id: TransactionId::from_u128(7),
            order_id: order().id,
            payment_method: PaymentMethod::Wechat,
            gateway_no: extra().trade_no,
            amount: Money::from_fen(101).unwrap(),
            paid_at: AT,
            account: None,
        }
    }

    fn all() -> [Event; 14] {
        let trade_no = TradeNo::parse("4200000001").unwrap();
        let (id, kind, order_id) = (CaseId::from_u128(9), CaseKind::LatePayment, Some(order().id));
        let case = |reopened_as| Opened { id, kind, order_id, reopened_as };
        [
            order_paid(&order(), &trade_no, AT),
            order_closed(&order(), AT),
            refund_requested(&order(), &refund()),
            refund_declined(&order(), &refund(), "the goods were used"),
            refund_withdrawn(&order(), &refund()),
            refund_abnormal(&order(), &refund(), "the gateway could not deliver it"),
            refund_succeeded(&order(), &refund(), AT),
            refund_failed(&order(), &refund(), "the gateway closed it"),
            order_refunded(&order(), &refund()),
            extra_payment_received(&order(), &extra_payment(), CaseKind::DoublePayment, LatePaymentPolicy::Hold),
            refund_succeeded(&order(), &extra(), AT),
            refund_failed(&order(), &extra(), "the gateway closed it"),
            case_opened(&case(None)),
            case_opened(&case(Some(3))),
        ]
    }

    #[test]
    fn events_tell_what_their_schemas_promise() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../domain/schemas");
        for event in all() {
            let schema = std::fs::read_to_string(folder.join(format!("{}.schema.json", event.kind))).unwrap();
            let schema: Value = serde_json::from_str(&schema).unwrap();
            let stated: Vec<&String> = event.data.as_object().unwrap().keys().collect();
            let promised: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
            assert_eq!(stated, promised, "{}", event.kind);
            for (name, value) in event.data.as_object().unwrap() {
                let promise = &schema["properties"][name];
                let fits = match promise["type"].as_str() {
                    Some("string") => value.is_string(),
                    Some("integer") => value.is_i64(),
                    Some("object") => value.is_object(),
                    None if promise["type"].is_array() => value.is_string() || value.is_null(),
                    _ => {
                        promise["const"] == *value || promise["enum"].as_array().is_some_and(|all| all.contains(value))
                    }
                };
                assert!(fits, "{} {name}: {value} against {promise}", event.kind);
            }
        }
    }

    #[test]
    fn the_kinds_of_case_in_the_schema_are_those_of_the_code() {
        let known: Vec<&str> = CaseKind::ALL.iter().map(|kind| kind.as_str()).collect();
        for schema in [
            include_str!("../../../domain/schemas/case.opened.schema.json"),
            include_str!("../../../domain/schemas/case.reopened.schema.json"),
        ] {
            let schema: Value = serde_json::from_str(schema).unwrap();
            assert_eq!(schema["properties"]["kind"]["enum"], json!(known));
        }
    }

    #[test]
    fn ids_are_the_same_each_time_and_no_event_names_the_payer() {
        for (one, two) in all().into_iter().zip(all()) {
            assert_eq!(one.event_id, two.event_id);
            assert!(one.event_id.starts_with(one.kind));
            assert!(!one.data.to_string().contains("secret"));
        }
    }
}
