//! `paymentctl cases`: lists, shows, replays and discards what a person must look at.
//!
//! What moves money is proposed and confirmed by two people through the API. No command here can replace either of
//! them.

use clap::Subcommand;
use domain::{CaseId, CaseStatus};
use serde_json::{Value, json};
use store::settle::strays;
use store::story::steps;
use store::tables::cases::Case;
use store::tables::dead_letters::without_bytes;
use store::tables::outline;

use crate::answer::{Answer, Problem, instant, lines as shown, moment, table, with_more};
use crate::place::Place;

pub mod discard;
mod find;
pub mod replay;

pub(crate) use find::{Found, found, get};
pub use find::{List, Which};

/// What to do with cases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List cases, the oldest first.
    List(List),
    /// Show one case: what is known, who did what, and its order.
    Show {
        /// The case's id.
        #[arg(value_parser = CaseId::parse)]
        id: CaseId,
    },
    /// Create jobs from the callbacks of dead letters: a worker verifies and settles them again.
    ///
    /// Each callback becomes a job and its case is resolved, both in one transaction. The bytes name the payer, so
    /// they stay inside the database. A worker verifies their signature, and a callback that fails again reopens
    /// its case. Without --yes nothing is changed.
    Replay(replay::Replay),
    /// Resolve a case that needs no action.
    ///
    /// The command refuses a case whose resolution moves money, and a case with a pending proposal. Those are
    /// resolved through the API, where two people decide.
    Discard(discard::Discard),
}

/// Runs the command on the cases of this database. `operator` is required only where the command writes.
///
/// # Errors
/// [`Problem`]; then nothing was changed.
pub async fn run(place: &Place, command: &Command, operator: Option<&str>) -> Result<Answer, Problem> {
    match command {
        Command::List(list) => self::list(place, list).await,
        Command::Show { id } => show(place, *id).await,
        Command::Replay(replay) => replay::run(place, replay, operator).await,
        Command::Discard(discard) => discard::run(place, discard, operator).await,
    }
}

async fn list(place: &Place, list: &List) -> Result<Answer, Problem> {
    let Found { cases, more } = found(place, list).await?;
    let row = |case: &Case| {
        let order = case.order_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let (kind, status) = (case.kind.to_string(), case.status.to_string());
        vec![case.id.to_string(), moment(case.created_at), kind, status, order, case.subject_ref.clone()]
    };
    let rows: Vec<Vec<String>> = cases.iter().map(row).collect();
    let text = table(&["CASE", "OPENED", "KIND", "STATUS", "ORDER", "NUMBER"], &rows);
    let text = if rows.is_empty() { "no such case".to_owned() } else { text };
    let json = json!({ "cases": cases.iter().map(view).collect::<Vec<_>>(), "more": more.is_some() });
    Ok(Answer::done(with_more(text, more.as_deref()), json))
}

async fn show(place: &Place, id: CaseId) -> Result<Answer, Problem> {
    let case = get(place, id).await?;
    let mut lines = vec![
        format!("case      {} ({}, {})", case.id, case.kind, case.status),
        format!("number    {}", case.subject_ref),
        format!("opened    {}", moment(case.created_at)),
    ];
    if let Some(order_id) = case.order_id {
        let order = outline::of(&place.db, &order_id.to_string()).await?;
        let order = order.map(|order| format!(", {} {} yuan, {}", order.order_no, order.amount, order.status));
        lines.push(format!("order     {order_id}{}", order.unwrap_or_default()));
    }
    if let (Some(by), Some(action)) = (&case.proposed_by, &case.proposed_action) {
        lines.push(format!("proposed  {action} by {by}"));
    }
    if let Some(resolution) = &case.resolution {
        lines.push(format!("resolved  {resolution} (by {})", case.resolved_by.as_deref().unwrap_or("unknown")));
    }
    lines.push(format!("version   {}", case.version));
    lines.push(format!("actions   {} (POST /v1/admin/cases/{}/{})", actions(&case).join(", "), case.id, route(&case)));
    lines.push("evidence".to_owned());
    let evidence = serde_json::to_string_pretty(&without_bytes(case.evidence.clone())).unwrap_or_default();
    lines.extend(evidence.lines().map(|line| format!("  {line}")));
    let steps = steps(&case);
    lines.push(if steps.is_empty() { "history   no action yet" } else { "history" }.to_owned());
    lines.extend(steps.iter().map(|step| format!("  {}  {}", instant(step.at), step.what)));
    Ok(Answer::done(shown(&lines), view(&case)))
}

/// The actions that people can choose for a case through the API.
fn actions(case: &Case) -> Vec<&'static str> {
    strays::actions(case).iter().map(|action| action.as_str()).collect()
}

/// The API route that accepts the chosen action.
fn route(case: &Case) -> &'static str {
    if case.status == CaseStatus::Resolved { "reopen" } else { "propose" }
}

/// A case in JSON, for scripts.
fn view(case: &Case) -> Value {
    json!({
        "id": case.id.to_string(),
        "kind": case.kind.as_str(),
        "status": case.status.as_str(),
        "order_id": case.order_id.map(|id| id.to_string()),
        "subject_ref": case.subject_ref,
        // The old name; a later release removes it.
        "number": case.subject_ref,
        "evidence": without_bytes(case.evidence.clone()),
        "version": case.version,
        "actions": actions(case),
        "proposed_by": case.proposed_by,
        "proposed_action": case.proposed_action,
        "resolution": case.resolution,
        "resolved_by": case.resolved_by,
        "history": case.history,
        "created_at": moment(case.created_at),
        "updated_at": moment(case.updated_at),
    })
}
