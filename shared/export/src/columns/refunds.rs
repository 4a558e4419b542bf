//! The columns of a file of refunds.

use store::tables::refund_list::ListedRefund;

use super::{Column, column};
use crate::cell::Cell;
use crate::sums::Sum;
use crate::words;

/// The columns.
pub const COLUMNS: &[Column] = &[
    column("退款单号", 34),
    column("通道退款单号", 34),
    column("订单号", 34),
    column("通道交易号", 34),
    column("支付方式", 10),
    column("账户", 14),
    column("状态", 12),
    column("退款金额（元）", 14),
    column("退款原因", 24),
    column("来源", 10),
    column("申请人", 20),
    column("发送次数", 10),
    column("最近错误", 24),
    column("申请时间（北京时间 UTC+8）", 26),
    column("进入当前状态（北京时间 UTC+8）", 30),
    column("退款 ID", 34),
    column("订单 ID", 34),
];

/// The cells of a refund, in the order of [`COLUMNS`].
pub fn cells(refund: &ListedRefund) -> [Cell; COLUMNS.len()] {
    [
        Cell::text(&refund.refund_no),
        Cell::optional(refund.gateway_refund_no.as_ref()),
        Cell::text(&refund.order_no),
        Cell::text(&refund.trade_no),
        Cell::Word(words::payment_method(refund.payment_method)),
        Cell::text(&refund.account),
        Cell::Word(words::refund_status(refund.status)),
        Cell::money(refund.amount),
        Cell::optional(refund.reason.as_ref()),
        Cell::Word(words::origin(refund.origin)),
        Cell::text(&refund.requested_by),
        Cell::Count(refund.attempts.into()),
        Cell::optional(refund.last_error.as_ref()),
        Cell::Time(refund.created_at),
        Cell::Time(refund.since),
        Cell::text(refund.id),
        Cell::text(refund.order_id),
    ]
}

/// What a refund adds to the sums.
pub fn sum(refund: &ListedRefund) -> Sum {
    Sum { count: 1, amount: refund.amount.fen(), refunded: 0 }
}
