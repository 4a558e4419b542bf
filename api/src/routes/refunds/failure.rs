//! Why a refund has not reached the buyer, as its reader may see it.

use std::collections::HashMap;

use domain::{RefundFailure, RefundId, RefundStatus};
use serde::Serialize;
use store::tables::refunds::{self, Refund};
use utoipa::ToSchema;

use crate::access::tokens::Viewer;
use crate::answer::problem::ApiError;
use crate::state::App;

/// Why a refund has failed, or what it waits for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FailureView {
    /// A stable code. Of a failed refund: `refused` `closed` `unknown_to_gateway`; of an abnormal one `undeliverable`; of
    /// one that waits: `waiting_for_balance` `waiting_for_turn` `our_account`.
    #[schema(example = "waiting_for_balance")]
    pub code: &'static str,
    /// In words, for a person. Of a failed refund the `why` of its event `refund.failed`. Only the merchant reads the
    /// gateway's own words about the merchant's account.
    pub message: String,
}

impl FailureView {
    /// What this reader sees. `note` is what the refund's job says of its wait.
    fn of(refund: &Refund, note: Option<&str>, viewer: &Viewer) -> Option<FailureView> {
        let view = |why: RefundFailure, message: String| Some(FailureView { code: why.as_str(), message });
        match refund.status {
            RefundStatus::Requested | RefundStatus::Succeeded | RefundStatus::Declined | RefundStatus::Withdrawn => {
                None
            }
            RefundStatus::Abnormal => {
                let why = RefundFailure::Undeliverable;
                view(why, why.words().to_owned())
            }
            RefundStatus::Failed => {
                let words = refund.last_error.as_deref().unwrap_or(RefundFailure::Unknown.words());
                view(RefundFailure::of_failed(words), words.to_owned())
            }
            RefundStatus::Pending | RefundStatus::Processing => {
                let (why, detail) = RefundFailure::read(note?)?;
                // It was sent after this was stored.
                if why == RefundFailure::Turn && refund.status == RefundStatus::Processing {
                    return None;
                }
                let detail = detail.filter(|_| matches!(viewer, Viewer::Merchant));
                view(why, detail.map_or_else(|| why.words().to_owned(), |detail| format!("{}: {detail}", why.words())))
            }
        }
    }
}

/// What each of these refunds lacks, for this reader: one query for all that are in flight, and none without one.
///
/// # Errors
/// [`ApiError::Db`].
pub(super) async fn failures(
    app: &App,
    shown: &[Refund],
    viewer: &Viewer,
) -> Result<HashMap<RefundId, FailureView>, ApiError> {
    let in_flight: Vec<RefundId> =
        shown.iter().filter(|refund| refund.status.in_flight()).map(|refund| refund.id).collect();
    let waits = if in_flight.is_empty() { Vec::new() } else { refunds::waits(&app.db, &in_flight).await? };
    let notes: HashMap<RefundId, &str> = waits.iter().map(|wait| (wait.id, wait.note.as_str())).collect();
    let failure = |refund: &Refund| {
        let failure = FailureView::of(refund, notes.get(&refund.id).copied(), viewer)?;
        Some((refund.id, failure))
    };
    Ok(shown.iter().filter_map(failure).collect())
}
