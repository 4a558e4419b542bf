//! The request for a refund, the same each time.

use domain::AccountName;
use gateway::RefundOrder;
use store::tables::orders::Order;
use store::tables::refunds::Refund;

use crate::refunds::worker::RefundWorker;

impl RefundWorker {
    /// Builds the request from the rows, so that every repeat carries the same number and the same amount.
    pub(super) fn request(&self, refund: &Refund, order: &Order) -> RefundOrder {
        RefundOrder {
            order_no: order.order_no.clone(),
            trade_no: refund.trade_no.clone(),
            refund_no: refund.refund_no.clone(),
            amount: refund.amount,
            total: refund.payment_amount,
            reason: refund.reason.clone(),
            notify_url: format!(
                "{}/v1/callbacks/{}/{}",
                self.public_url,
                refund.payment_method,
                account(refund, order)
            ),
        }
    }
}

/// The account that received the payment.
pub(super) fn account<'a>(refund: &'a Refund, order: &'a Order) -> &'a AccountName {
    refund.account.as_ref().unwrap_or(&order.account)
}
