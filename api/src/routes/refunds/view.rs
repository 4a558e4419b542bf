//! What a client sends for a refund, and what it sees of one.

use domain::RefundStatus;
use serde::Serialize;
use store::tables::refunds::Refund;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::failure::FailureView;

/// A request for a refund.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreateRefund {
    /// In yuan; the whole remaining amount when absent.
    #[schema(example = "12.34")]
    pub amount: Option<String>,
    /// The reason that the buyer reads, at most 200 characters.
    pub reason: Option<String>,
}

/// A refund.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RefundView {
    /// 32 hex digits.
    pub id: String,
    /// The id of its order.
    pub order_id: String,
    /// The number that both gateways use for it.
    pub refund_no: String,
    /// In yuan.
    #[schema(example = "12.34")]
    pub amount: String,
    /// `requested` `pending` `processing` `succeeded` `failed` `abnormal` `declined` `withdrawn`.
    #[schema(example = "pending")]
    pub status: String,
    /// As requested.
    pub reason: Option<String>,
    /// Why it has failed or could not be delivered, or what it waits for; null otherwise.
    pub failure: Option<FailureView>,
    /// Whether one person has approved a request that takes two.
    pub approved_once: bool,
    /// Why the request was declined; null otherwise.
    pub decline_reason: Option<String>,
    /// The gateway's number of the refund, where it has one.
    pub gateway_refund_no: Option<String>,
    /// When the money was returned.
    #[serde(with = "time::serde::rfc3339::option")]
    pub succeeded_at: Option<OffsetDateTime>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl RefundView {
    /// The refund as its reader sees it, with what keeps it from the buyer.
    pub fn of(refund: &Refund, failure: Option<FailureView>) -> RefundView {
        RefundView {
            id: refund.id.to_string(),
            order_id: refund.order_id.to_string(),
            refund_no: refund.refund_no.to_string(),
            amount: refund.amount.to_string(),
            status: refund.status.to_string(),
            reason: refund.reason.clone(),
            failure,
            approved_once: refund.status == RefundStatus::Requested && refund.approved_by.is_some(),
            decline_reason: refund.decline_reason.clone(),
            gateway_refund_no: refund.gateway_refund_no.clone(),
            succeeded_at: refund.succeeded_at,
            created_at: refund.created_at,
            updated_at: refund.updated_at,
        }
    }
}

/// Refunds, newest first.
#[derive(Serialize, ToSchema)]
pub struct RefundPage {
    /// This page.
    pub refunds: Vec<RefundView>,
    /// The cursor of the next page; null on the last page.
    pub next_cursor: Option<String>,
}
