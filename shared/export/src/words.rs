//! The Chinese words of states and of gateways.

use domain::{ExtraState, OrderStatus, PaymentMethod, RefundOrigin, RefundStatus};

use crate::task::Kind;

pub(crate) const fn order_status(status: OrderStatus) -> &'static str {
    match status {
        OrderStatus::Pending => "待支付",
        OrderStatus::Paid => "已支付",
        OrderStatus::Closed => "已关闭",
        OrderStatus::Refunding => "退款中",
        OrderStatus::PartiallyRefunded => "部分退款",
        OrderStatus::Refunded => "已全额退款",
    }
}

pub(crate) const fn refund_status(status: RefundStatus) -> &'static str {
    match status {
        RefundStatus::Requested => "待批准",
        RefundStatus::Pending => "待发送",
        RefundStatus::Processing => "处理中",
        RefundStatus::Succeeded => "已退款",
        RefundStatus::Failed => "失败",
        RefundStatus::Abnormal => "异常",
        RefundStatus::Declined => "已拒绝",
        RefundStatus::Withdrawn => "已撤回",
    }
}

/// The word for the state of an order or of a refund, by its name.
pub(crate) fn status(kind: Kind, name: &'static str) -> &'static str {
    match kind {
        Kind::Orders => name.parse().map_or(name, order_status),
        Kind::Refunds => name.parse().map_or(name, refund_status),
    }
}

pub(crate) const fn payment_method(method: PaymentMethod) -> &'static str {
    match method {
        PaymentMethod::Alipay => "支付宝",
        PaymentMethod::Wechat => "微信支付",
    }
}

pub(crate) const fn origin(origin: RefundOrigin) -> &'static str {
    match origin {
        RefundOrigin::Service => "本系统",
        RefundOrigin::Outside => "系统外",
    }
}

pub(crate) const fn extra_state(state: ExtraState) -> &'static str {
    match state {
        ExtraState::Held => "待处理",
        ExtraState::Returning => "退回中",
        ExtraState::Returned => "已退回",
    }
}

pub(crate) const fn yes_or_no(is: bool) -> &'static str {
    if is { "是" } else { "否" }
}

pub(crate) const fn sheet(kind: Kind) -> &'static str {
    match kind {
        Kind::Orders => "订单",
        Kind::Refunds => "退款",
    }
}
