//! The columns of a file of orders.

use store::tables::order_list::ListedOrder;

use super::{Column, column};
use crate::cell::Cell;
use crate::sums::Sum;
use crate::words;

/// The columns.
pub const COLUMNS: &[Column] = &[
    column("订单号", 34),
    column("商户订单号", 34),
    column("通道交易号", 34),
    column("商品", 24),
    column("商品类型", 14),
    column("用户", 20),
    column("支付方式", 10),
    column("账户", 14),
    column("场景", 8),
    column("状态", 12),
    column("订单金额（元）", 14),
    column("已退金额（元）", 14),
    column("多付款状态", 12),
    column("多付款金额（元）", 16),
    column("有未结案件", 12),
    column("关闭后付款", 12),
    column("创建时间（北京时间 UTC+8）", 26),
    column("支付时间（北京时间 UTC+8）", 26),
    column("付款截止（北京时间 UTC+8）", 26),
    column("订单 ID", 34),
];

/// The cells of an order, in the order of [`COLUMNS`].
pub fn cells(order: &ListedOrder) -> [Cell; COLUMNS.len()] {
    [
        Cell::text(&order.order_no),
        Cell::optional(order.merchant_order_no.as_ref()),
        Cell::optional(order.trade_no.as_ref()),
        Cell::text(&order.subject),
        Cell::text(&order.product_type),
        Cell::text(&order.user_id),
        Cell::Word(words::payment_method(order.payment_method)),
        Cell::text(&order.account),
        Cell::Word(order.scene.as_str()),
        Cell::Word(words::order_status(order.status)),
        Cell::money(order.amount),
        Cell::money(order.refunded_amount),
        order.extra_state.map_or(Cell::Empty, |state| Cell::Word(words::extra_state(state))),
        order.extra_amount.map_or(Cell::Empty, Cell::money),
        Cell::Word(words::yes_or_no(order.case)),
        Cell::Word(words::yes_or_no(order.late)),
        Cell::Time(order.created_at),
        order.paid_at.map_or(Cell::Empty, Cell::Time),
        Cell::Time(order.expires_at),
        Cell::text(order.id),
    ]
}

/// What an order adds to the sums.
pub fn sum(order: &ListedOrder) -> Sum {
    Sum { count: 1, amount: order.amount.fen(), refunded: order.refunded_amount.fen() }
}
