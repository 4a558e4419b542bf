//! `paymentctl cases replay`: the callback of a dead letter becomes a job, and its case is resolved in the same
//! transaction.
//!
//! A replay decides nothing: a worker verifies the bytes again and settles the callback as if it had just arrived.
//! So a replay moves no more money than the gateway's own signed callback does. The bytes name the payer: the
//! database creates the job from them, and paymentctl never receives them.

use clap::{ArgGroup, Args};
use domain::message::job::JobKind;
use domain::{CaseId, CaseKind};
use serde_json::{Value, json};
use store::DbError;
use store::tables::cases::{self, Case, End};
use store::tables::dead_letters;
use time::Duration;

use super::discard::may_end;
use super::find::{Found, List, Which, found, get};
use crate::answer::{Answer, Problem, count, lines as shown, stored, with_more};
use crate::place::{Place, signature};
use crate::when::span;

/// Which dead letters to replay.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "kind"])))]
pub struct Replay {
    /// The ids of the cases.
    #[arg(value_name = "ID", value_parser = CaseId::parse)]
    pub ids: Vec<CaseId>,
    /// The open cases of this kind, the oldest first; see --limit.
    #[arg(long, value_parser = ["dead_letter"])]
    pub kind: Option<String>,
    /// With --kind: only cases opened longer ago than this: 90s 30m 2h 7d.
    #[arg(long, value_name = "AGE", value_parser = span, requires = "kind", conflicts_with = "ids")]
    pub older_than: Option<Duration>,
    /// With --kind: at most this many, the newest.
    #[arg(long, default_value_t = 100, conflicts_with = "ids", value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub limit: i64,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

/// Replays the selected cases, or shows what would happen. Cases are independent: one that cannot be replayed stops
/// no other.
///
/// # Errors
/// [`Problem`] when the command could not try any case.
pub async fn run(place: &Place, replay: &Replay, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(replay.yes, operator)?;
    let Found { cases, more } = chosen(place, replay).await?;
    let (mut lines, mut listed, mut good) = (Vec::new(), Vec::new(), 0);
    for case in &cases {
        let outcome = match look(place, case).await {
            Ok(what) => match &by {
                Some(by) => put_back(place, case, by).await,
                None => Ok(format!("would be replayed: {what}")),
            },
            Err(problem) => Err(problem),
        };
        good += usize::from(outcome.is_ok());
        listed.push(json!({
            "case": case.id.to_string(),
            "ok": outcome.is_ok(),
            "said": outcome.as_ref().map_or_else(|problem| problem.said.clone(), Clone::clone),
        }));
        lines.push(match outcome {
            Ok(said) => format!("{}  {said}", case.id),
            Err(problem) => format!("{}  stays: {} ({})", case.id, problem.said, problem.hint),
        });
    }
    lines.push(match (cases.is_empty(), replay.yes) {
        (true, _) => "there is no open dead letter".to_owned(),
        (_, true) => format!("{} of {} replayed", good, count(cases.len(), "case")),
        (_, false) => {
            format!("{} of {} would be replayed; nothing was changed, --yes does it", good, count(cases.len(), "case"))
        }
    });
    let json = json!({ "dry_run": !replay.yes, "cases": listed, "more": more.is_some() });
    let done = good == cases.len() && more.is_none();
    Ok(Answer::new(with_more(shown(&lines), more.as_deref()), json, done))
}

async fn chosen(place: &Place, replay: &Replay) -> Result<Found, Problem> {
    if replay.kind.is_some() {
        let list = List {
            kind: Some(CaseKind::DeadLetter),
            status: Which::Open,
            reopened: false,
            older_than: replay.older_than,
            limit: replay.limit,
        };
        return found(place, &list).await;
    }
    let mut ids = replay.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let mut cases = Vec::with_capacity(ids.len());
    for id in ids {
        cases.push(get(place, id).await?);
    }
    Ok(Found { cases, more: None })
}

/// Whether a case can be replayed, and a description of its callback that names no payer.
async fn look(place: &Place, case: &Case) -> Result<String, Problem> {
    may_end(case)?;
    if case.kind != CaseKind::DeadLetter {
        return Err(Problem::failed(
            format!("a case of kind {} holds no message to replay", case.kind),
            format!("`paymentctl cases show {0}`, then POST /v1/admin/cases/{0}/propose", case.id),
        ));
    }
    let kind = case.evidence["queue"].as_str().and_then(JobKind::of_queue);
    if kind.is_some_and(|kind| kind.spec().is_nudged) {
        return Err(no_callback(case, "it is the nudge of a check or a refund, whose job goes on by itself"));
    }
    let callback = &case.evidence["callback"];
    let (Some(method), Some(account)) = (callback["method"].as_str(), callback["account"].as_str()) else {
        return Err(no_callback(case, "its message is no callback that can be read"));
    };
    if !dead_letters::are_stored(&place.db, case.id).await? {
        return Err(no_bytes(case));
    }
    let received = callback["received_at"].as_str().unwrap_or("an unknown time");
    Ok(format!("a callback of {method} for account {account}, received at {received}; a worker checks its signature"))
}

fn no_callback(case: &Case, why: &str) -> Problem {
    Problem::failed(
        why,
        format!("`paymentctl cases show {0}`, then `paymentctl cases discard {0} --reason …`", case.id),
    )
}

fn no_bytes(case: &Case) -> Problem {
    // An older release stored the bytes in the case; the relay moves them.
    match case.evidence.get("body") {
        Some(_) => {
            Problem::failed("its bytes are still in the case", "wait for the relay to move them: ten minutes at most")
        }
        None => no_callback(case, "its bytes are no longer kept (KEEP_CALLBACKS_DAYS)"),
    }
}

/// Creates the job and resolves the case in one transaction. A concurrent second call does neither.
async fn put_back(place: &Place, case: &Case, by: &str) -> Result<String, Problem> {
    let now = place.clock.now();
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let Some(job) = dead_letters::replay(&mut *tx, case.id).await? else { return Err(no_bytes(case)) };
    let resolution = format!("replayed as job {job}");
    let entry: Value = json!({ "at": stored(now), "who": by, "what": "replayed", "action": { "job": job } });
    cases::end(&mut tx, case, &End { resolution: &resolution, by, entry: &entry }).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(resolution)
}
