//! `paymentctl cases discard`.

use clap::Args;
use domain::{CaseId, CaseStatus, steers};
use serde_json::json;
use store::DbError;
use store::tables::cases::{self, Case, End};
use store::tables::extra;

use super::find::get;
use crate::answer::{Answer, Problem, lines, stored};
use crate::place::{Place, signature};

/// The longest reason, in characters. The API has the same limit for a note.
const REASON: usize = 2000;

/// Which case to discard, and the reason.
#[derive(Debug, Clone, Args)]
pub struct Discard {
    /// The case's id.
    #[arg(value_parser = CaseId::parse)]
    pub id: CaseId,
    /// What was found, and why no action is needed.
    #[arg(long, value_parser = reason)]
    pub reason: String,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

/// Accepts a reason that is not empty.
fn reason(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c == '\n' || !steers(c));
    let fits = text.chars().count() <= REASON && !text.trim().is_empty() && plain;
    if fits { Ok(text.to_owned()) } else { Err(format!("text of 1 to {REASON} characters without control characters")) }
}

/// Resolves the case with the reason, or shows that it would.
///
/// # Errors
/// [`Problem`] when there is no such case, or it cannot be resolved this way.
pub async fn run(place: &Place, discard: &Discard, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(discard.yes, operator)?;
    let case = get(place, discard.id).await?;
    may_end(&case)?;
    let what = format!("case {} ({}, number {})", case.id, case.kind, case.subject_ref);
    let json = json!({ "case": case.id.to_string(), "reason": discard.reason, "dry_run": !discard.yes });
    let Some(by) = by else {
        let text =
            [format!("would resolve {what}: {}", discard.reason), "nothing was changed; --yes does it".to_owned()];
        return Ok(Answer::done(lines(&text), json));
    };
    let now = place.clock.now();
    let entry = json!({ "at": stored(now), "who": by, "what": "discarded", "action": { "reason": discard.reason } });
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let of_money = case.order_id.filter(|_| case.kind.is_of_money_held());
    if let Some(order_id) = of_money {
        extra::lock(&mut tx, order_id).await?;
    }
    cases::end(&mut tx, &case, &End { resolution: &discard.reason, by: &by, entry: &entry }).await?;
    // Updates what the buyer sees of this money.
    extra::follow(&mut tx, of_money.as_slice(), now).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(Answer::done(lines(&[format!("resolved {what}: {}", discard.reason)]), json))
}

/// Whether one person may resolve a case here.
pub(super) fn may_end(case: &Case) -> Result<(), Problem> {
    let id = case.id;
    match case.status {
        CaseStatus::Open if case.end_moves_money() => Err(Problem::failed(
            format!("case {id} ({}) holds money until two people have agreed", case.kind),
            format!("POST /v1/admin/cases/{id}/propose with a note, and another person confirms it"),
        )),
        CaseStatus::Open => Ok(()),
        CaseStatus::Proposed => Err(Problem::failed(
            format!("about case {id} {} has proposed something", case.proposed_by.as_deref().unwrap_or("a person")),
            format!("another person confirms it: POST /v1/admin/cases/{id}/confirm; or a new proposal replaces it"),
        )),
        CaseStatus::Resolved => Err(Problem::failed(
            format!("case {id} is resolved already, by {}", case.resolved_by.as_deref().unwrap_or("unknown")),
            format!("`paymentctl cases show {id}` shows how"),
        )),
    }
}
