//! Finds cases: one by its id, or those that a filter selects.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use domain::{CaseId, CaseKind, CaseStatus, first_id_at};
use store::tables::cases::{self, Case};
use time::Duration;

use crate::answer::Problem;
use crate::place::Place;
use crate::when::span;

/// Which cases to list.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// Only this kind.
    #[arg(long, value_parser = kinds())]
    pub kind: Option<CaseKind>,
    /// Only this status; `waiting` is open or proposed.
    #[arg(long, value_enum, default_value_t)]
    pub status: Which,
    /// Only cases that were reopened, by a person or by a new fact.
    #[arg(long)]
    pub reopened: bool,
    /// Only cases opened longer ago than this: 90s 30m 2h 7d.
    #[arg(long, value_name = "AGE", value_parser = span)]
    pub older_than: Option<Duration>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub limit: i64,
}

/// Groups of case states to list together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Which {
    /// Not resolved: open or proposed.
    #[default]
    Waiting,
    /// No person has proposed anything.
    Open,
    /// One person has made a proposal, which another person must confirm.
    Proposed,
    /// Resolved.
    Resolved,
    /// Every state.
    All,
}

impl Which {
    fn states(self) -> &'static [Option<CaseStatus>] {
        match self {
            Which::Waiting => &[Some(CaseStatus::Open), Some(CaseStatus::Proposed)],
            Which::Open => &[Some(CaseStatus::Open)],
            Which::Proposed => &[Some(CaseStatus::Proposed)],
            Which::Resolved => &[Some(CaseStatus::Resolved)],
            Which::All => &[None],
        }
    }
}

/// The kinds of case on a command line.
fn kinds() -> impl TypedValueParser<Value = CaseKind> {
    let names = CaseKind::ALL.iter().map(|kind| kind.as_str());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<CaseKind>())
}

/// The cases that the filter selects.
pub(crate) struct Found {
    /// At most as many as the limit allows.
    pub cases: Vec<Case>,
    /// The note to print if there are more.
    pub more: Option<String>,
}

/// The newest of the selected cases, sorted with the oldest first.
pub(crate) async fn found(place: &Place, list: &List) -> Result<Found, Problem> {
    let before = list.older_than.map(|age| CaseId::from_u128(first_id_at(place.clock.now() - age)));
    let mut found = Vec::new();
    for status in list.status.states() {
        let filter = cases::Filter { status: *status, kind: list.kind, reopened: list.reopened };
        found.extend(cases::list(&place.db, filter, before, list.limit + 1).await?);
    }
    found.sort_by_key(|case| case.id);
    let beyond = found.len().saturating_sub(usize::try_from(list.limit).unwrap_or_default());
    let more = (beyond > 0).then(|| format!("there are older ones than these {}: --limit, --older-than", list.limit));
    Ok(Found { cases: found.split_off(beyond), more })
}

/// One case by its id.
pub(crate) async fn get(place: &Place, id: CaseId) -> Result<Case, Problem> {
    let unknown =
        || Problem::failed(format!("there is no case {id}"), "`paymentctl cases list --status all` lists them");
    cases::get(&place.db, id).await?.ok_or_else(unknown)
}
