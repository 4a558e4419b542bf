//! A refund as it is requested: with a fresh number, and a reason that the buyer reads.

use domain::{Money, OrderId, RefundId, RefundNo};
use store::settle::refunds::RequestedRefund;

use crate::answer::problem::ApiError;
use crate::create::numbers::dated;
use crate::state::App;

/// The longest reason, in characters.
const REASON: usize = 200;

/// A refund request with a fresh number, for an order and by a person.
pub(in crate::routes) fn refund_request(
    app: &App,
    (order_id, requested_by): (OrderId, &str),
    amount: Option<Money>,
    reason: Option<String>,
) -> Result<RequestedRefund, ApiError> {
    let bits = app.clock.fresh_bits();
    let number = RefundNo::parse(dated(bits, app.clock.now())).map_err(|error| ApiError::Internal(error.into()))?;
    Ok(RequestedRefund {
        id: RefundId::from_u128(bits),
        order_id,
        extra_trade: None,
        refund_no: number,
        amount,
        reason,
        requested_by: requested_by.to_owned(),
    })
}

pub(in crate::routes) fn reason(text: String) -> Result<String, String> {
    short_reason(text, REASON)
}

/// A text that the buyer reads, of at most this many characters.
pub(super) fn short_reason(text: String, most: usize) -> Result<String, String> {
    let fits = text.chars().count() <= most && !text.trim().is_empty() && !text.chars().any(char::is_control);
    if fits { Ok(text) } else { Err(format!("text of 1 to {most} characters without control characters")) }
}
