//! Books a refund that people found in the gateway's console, after the gateway has confirmed it.

use domain::{CaseId, CaseStatus, Money, OrderId, RefundNo, TradeNo, Verdict};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::settle::outside::book_one;
use crate::settle::trade::{Named, Trade};
use crate::tables::cases::{self, Case};
use crate::tables::orders;

/// The member of a case's evidence that says why a requested booking was not made.
const NOT_BOOKED: &str = "not_booked";

/// Books the refund that people request in a case of this order. If it cannot be booked, or if the gateway did not
/// confirm it, the case states the reason.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn book_requested(
    tx: &mut PgConnection,
    order_id: OrderId,
    requested: &RequestedBooking,
    clock: &Clock,
) -> Result<Verdict, DbError> {
    let RequestedBooking { case_id, refund_no, found } = requested;
    orders::lock_one(tx, order_id).await?;
    let case = cases::get(&mut *tx, *case_id).await?.filter(|case| case.status != CaseStatus::Resolved);
    let Some(mut case) = case.filter(|case| case.order_id == Some(order_id)) else { return Ok(Verdict::Ignored) };
    let trade = match trade_of(&case) {
        Some(trade_no) => Trade::read(tx, order_id, &trade_no).await?,
        None => None,
    };
    let refusal = match (trade, found) {
        (None, _) => "the case names no payment of this order".to_owned(),
        (_, Found::Unconfirmed(refusal)) => refusal.clone(),
        (Some(trade), Found::Confirmed { .. }) if trade.waits() => {
            "one of our refunds is in flight: propose it again when that is final".to_owned()
        }
        (Some(trade), Found::Confirmed { amount, gateway_refund_no, at }) => {
            let named = Named {
                number: refund_no.to_string(),
                amount: *amount,
                gateway_refund_no: gateway_refund_no.clone(),
                at: *at,
            };
            match book_one(tx, &trade, &named, clock).await? {
                Verdict::Duplicate => "this refund is booked already".to_owned(),
                Verdict::AmountMismatch => "more would be refunded than was paid".to_owned(),
                verdict => return Ok(verdict),
            }
        }
    };
    if case.evidence[NOT_BOOKED] != *refusal {
        case.evidence[NOT_BOOKED] = refusal.into();
        cases::note_evidence(tx, case.id, &case.evidence, clock.now()).await?;
    }
    Ok(Verdict::UnknownRefund)
}

/// A refund that people found and want booked, with the gateway's answer about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedBooking {
    /// The case that requests it.
    pub case_id: CaseId,
    /// The number that people found in the gateway's console.
    pub refund_no: RefundNo,
    /// The gateway's answer.
    pub found: Found,
}

/// What the gateway answered about a refund that people found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The gateway confirms it.
    Confirmed {
        /// The amount that was returned.
        amount: Money,
        /// The gateway's number of the refund.
        gateway_refund_no: Option<String>,
        /// When it was returned, by the gateway's clock.
        at: Option<OffsetDateTime>,
    },
    /// It does not, for this reason.
    Unconfirmed(String),
}

/// The refunded trade that a case is about.
pub fn trade_of(case: &Case) -> Option<TradeNo> {
    let named = case.evidence.get("trade_no").and_then(Value::as_str);
    TradeNo::parse(named.unwrap_or(&case.subject_ref)).ok()
}
