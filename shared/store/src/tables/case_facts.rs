//! What a fact does to the case of its key: it opens a new case, adds to an open one, reopens a resolved one, or
//! changes nothing if it is a repeat.
//!
//! [`CaseKind::is_news`](domain::CaseKind::is_news) decides which facts are new. Every new fact increases `version` and
//! adds a history entry, so a person cannot confirm an older state of the case by mistake.

use domain::{CaseId, CaseKind, CaseStatus, OrderId};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::DbError;
use crate::tables::cases::{self, Case, NOT_REFUNDED, NewCase};

/// The history stops growing by facts at this many entries. Later facts still increase `version` and change the
/// evidence.
const HISTORY: usize = 200;

/// The author of history entries that no person writes.
const SERVICE: &str = "service";

/// A case that people must check from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Our id, for paths and events.
    pub id: CaseId,
    /// Why a person must check it.
    pub kind: CaseKind,
    /// The order, if it is known.
    pub order_id: Option<OrderId>,
    /// The version of the case if it was reopened. `None`: the case is new.
    pub reopened_as: Option<i64>,
}

/// Opens cases, and reopens cases whose fact is new. Returns the cases that people must check from now on. A repeat, or
/// a fact for a case that is open already, returns nothing.
///
/// # Errors
/// [`DbError`].
pub async fn open(tx: &mut PgConnection, new: &[NewCase], now: OffsetDateTime) -> Result<Vec<Opened>, DbError> {
    let mut opened = Vec::new();
    let mut left: Vec<&NewCase> = new.iter().collect();
    // The second round is needed only if retention deletes a resolved case between the two statements of the first
    // round.
    for _ in 0..2 {
        let inserted = cases::insert(&mut *tx, &left, now).await?;
        let (added, met): (Vec<&NewCase>, Vec<&NewCase>) = left.iter().partition(|case| inserted.contains(&case.id));
        opened.extend(added.iter().map(|case| Opened {
            id: case.id,
            kind: case.kind,
            order_id: case.order_id,
            reopened_as: None,
        }));
        if met.is_empty() {
            break;
        }
        let mut found = cases::lock_by_keys(&mut *tx, &met).await?;
        left.clear();
        for fact in met {
            let key = (fact.kind, fact.order_id, &fact.subject_ref);
            match found.iter_mut().find(|case| (case.kind, case.order_id, &case.subject_ref) == key) {
                Some(case) => opened.extend(meet(&mut *tx, case, &fact.evidence, now).await?),
                None => left.push(fact),
            }
        }
    }
    Ok(opened)
}

/// Applies one fact to the case of its key.
async fn meet(
    tx: &mut PgConnection,
    case: &mut Case,
    fact: &Value,
    now: OffsetDateTime,
) -> Result<Option<Opened>, DbError> {
    let resolved = case.status == CaseStatus::Resolved;
    let entries = case.history.as_array().map(Vec::as_slice).unwrap_or_default();
    let known = std::iter::once(&case.evidence).chain(entries.iter().filter_map(|entry| entry.get("before")));
    if !case.kind.is_news(resolved, known, fact) {
        return Ok(None);
    }
    case.version += 1;
    let what = if resolved { "reopened" } else { "noted" };
    let mut entry = json!({ "at": rfc3339(now), "who": SERVICE, "what": what, "version": case.version });
    // The evidence of a dead letter can contain the message's bytes, which may name the payer. They must not be copied
    // to the history.
    if case.kind != CaseKind::DeadLetter {
        entry["before"] = case.evidence.clone();
    }
    if resolved {
        entry["ended"] = ended(case);
        (case.status, case.proposed_by, case.proposed_action) = (CaseStatus::Open, None, None);
        (case.resolution, case.resolved_by) = (None, None);
    }
    if let (Some(known), Some(fact)) = (case.evidence.as_object_mut(), fact.as_object()) {
        // If a later message leaves out a member, the known value stays.
        let stated = fact.iter().filter(|(_, value)| !value.is_null());
        known.extend(stated.map(|(name, value)| (name.clone(), value.clone())));
    }
    if let Some(history) = case.history.as_array_mut().filter(|history| history.len() < HISTORY) {
        history.push(entry);
    }
    cases::write_fact(tx, case, now).await?;
    Ok(resolved.then_some(Opened {
        id: case.id,
        kind: case.kind,
        order_id: case.order_id,
        reopened_as: Some(case.version),
    }))
}

/// Reopens a resolved case, because a person requests it with `reason`.
///
/// Money that a policy was to return automatically now stays until people decide, because people have decided this case
/// once.
///
/// # Errors
/// [`DbError::Moved`] when the case is not resolved, or its version has changed since `case` was read.
pub async fn reopen(
    tx: &mut PgConnection,
    case: &Case,
    who: &str,
    reason: &str,
    now: OffsetDateTime,
) -> Result<Opened, DbError> {
    if case.status != CaseStatus::Resolved {
        return Err(DbError::Moved);
    }
    let mut open = case.clone();
    open.version += 1;
    let entry = json!({
        "at": rfc3339(now), "who": who, "what": "reopened", "action": { "reason": reason }, "version": open.version,
        "ended": ended(case),
    });
    if let Some(history) = open.history.as_array_mut() {
        history.push(entry);
    }
    if let Some(known) = open.evidence.as_object_mut() {
        known.remove(NOT_REFUNDED);
    }
    (open.status, open.proposed_by, open.proposed_action) = (CaseStatus::Open, None, None);
    (open.resolution, open.resolved_by) = (None, None);
    cases::write_fact(tx, &open, now).await?;
    let reopened_as = Some(open.version);
    Ok(Opened { id: open.id, kind: open.kind, order_id: open.order_id, reopened_as })
}

/// How a case was resolved before it was reopened.
fn ended(case: &Case) -> Value {
    json!({ "resolution": case.resolution, "resolved_by": case.resolved_by })
}

fn rfc3339(time: OffsetDateTime) -> String {
    // Fails only outside the years 0 to 9999, which no clock of ours shows.
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
