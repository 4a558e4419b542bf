//! `paymentctl cases replay`: the callback of a dead letter becomes a job, and its case is resolved in the same transaction.
//!
//! It decides nothing: the worker verifies the bytes again and settles what they tell, as if they had just come. So no
//! replay can move more money than the gateway's own word does.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use shared::db::cases::{self, Case, End};
use shared::db::{DbError, jobs, outline};
use shared::domain::{CaseId, CaseKind, Fact, Notification, RefundOutcome};
use shared::gateway::{CallbackError, Gateway, Gateways};
use shared::job::Callback;
use shared::mq::{callback_of, topology};
use time::{Duration, OffsetDateTime};

use super::discard::may_end;
use super::{Found, List, Which, found, get};
use crate::answer::{Answer, Problem, count, instant, with_more};
use crate::place::{Place, signature};
use crate::when::span;

/// Which dead letters.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "kind"])))]
pub struct Replay {
    /// The cases' ids.
    #[arg(value_name = "ID", value_parser = CaseId::parse)]
    pub ids: Vec<CaseId>,
    /// The open ones of this kind, the oldest first; see --limit.
    #[arg(long, value_parser = ["dead_letter"])]
    pub kind: Option<String>,
    /// With --kind: only those opened longer ago than this: 90s 30m 2h 7d.
    #[arg(long, value_name = "AGE", value_parser = span, requires = "kind", conflicts_with = "ids")]
    pub older_than: Option<Duration>,
    /// With --kind: at most so many, the newest of them.
    #[arg(long, default_value_t = 100, conflicts_with = "ids", value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub limit: i64,
    /// Do it. Without this it is only said what would be done.
    #[arg(long)]
    pub yes: bool,
}

/// What a replay is given beside its arguments.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// Whose keys say what would come of it, if `GATEWAYS_FILE` is set.
    pub gateways: Option<&'a Gateways>,
    /// Who does it.
    pub operator: Option<&'a str>,
}

/// What today's keys make of the bytes.
enum Outlook {
    /// There are no keys here to ask.
    NotVerified,
    /// Authentic, and this is what it tells.
    Told(String),
    /// A worker would keep it and try again: the key is not known yet.
    Waits(String),
    /// It would be a dead letter again.
    DeadAgain(String),
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outlook::NotVerified => f.write_str("not verified here: GATEWAYS_FILE is not set"),
            Outlook::Told(tells) => write!(f, "verified: {tells}"),
            Outlook::Waits(why) => write!(f, "a worker would keep it and try again: {why}"),
            Outlook::DeadAgain(why) => write!(f, "would be a dead letter again: {why}"),
        }
    }
}

/// Replays what is asked for, or says what would come of it. Each case stands for itself: one that cannot be replayed stops no
/// other.
///
/// # Errors
/// [`Problem`] when nothing could be tried at all.
pub async fn run(place: &Place, replay: &Replay, with: With<'_>) -> Result<Answer, Problem> {
    let by = signature(replay.yes, with.operator)?;
    let Found { cases, more } = chosen(place, replay).await?;
    let (mut lines, mut told, mut good) = (Vec::new(), Vec::new(), 0);
    for case in &cases {
        let outcome = match look(place, case, with.gateways).await {
            Ok((callback, outlook)) => match &by {
                Some(by) => put_back(place, case, &callback, by).await,
                None => Ok(format!("would be replayed; {outlook}")),
            },
            Err(problem) => Err(problem),
        };
        good += usize::from(outcome.is_ok());
        told.push(json!({
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
    let json = json!({ "dry_run": !replay.yes, "cases": told, "more": more.is_some() });
    let done = good == cases.len() && more.is_none();
    Ok(Answer { text: with_more(lines.join("\n"), more.as_deref()), json, done })
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

/// Whether a case can be replayed, and what would come of it.
async fn look(place: &Place, case: &Case, gateways: Option<&Gateways>) -> Result<(Callback, Outlook), Problem> {
    may_end(case)?;
    let callback = kept(case)?;
    let outlook = match gateways {
        None => Outlook::NotVerified,
        Some(gateways) => outlook(place, gateways, &callback).await?,
    };
    match outlook {
        Outlook::DeadAgain(why) => Err(Problem::failed(
            format!("with the keys of GATEWAYS_FILE it would be a dead letter again: {why}"),
            "mend the keys first; where the workers have others, unset GATEWAYS_FILE to replay it unseen",
        )),
        outlook => Ok((callback, outlook)),
    }
}

/// The callback that a dead letter's case holds.
fn kept(case: &Case) -> Result<Callback, Problem> {
    let no_callback = |why: &str| {
        let hint = format!("`paymentctl cases show {0}`, then `paymentctl cases discard {0} --reason …`", case.id);
        Problem::failed(why, hint)
    };
    if case.kind != CaseKind::DeadLetter {
        return Err(Problem::failed(
            format!("a case of kind {} holds no message to replay", case.kind),
            format!("`paymentctl cases show {0}`, then POST /v1/admin/cases/{0}/propose", case.id),
        ));
    }
    if matches!(case.evidence["queue"].as_str(), Some(topology::CHECKS | topology::REFUNDS)) {
        return Err(no_callback("it is the nudge of a check or a refund, whose job goes on by itself"));
    }
    let body = case.evidence["body"].as_str().and_then(|text| STANDARD.decode(text).ok());
    let callback = callback_of(&body.ok_or_else(|| no_callback("its bytes were not kept"))?);
    // The row that it came as is gone; it becomes a new one.
    callback.map(|callback| Callback { job_id: None, ..callback }).map_err(|error| no_callback(&error.to_string()))
}

/// What a worker with these keys would find.
async fn outlook(place: &Place, gateways: &Gateways, callback: &Callback) -> Result<Outlook, Problem> {
    let Some(gateway) = gateways.get(callback.method, &callback.account) else {
        return Ok(Outlook::Waits(format!("GATEWAYS_FILE has no account {} at {}", callback.account, callback.method)));
    };
    let now = place.clock.now();
    let mut told = tell(gateway.as_ref(), callback, now);
    if let Err(CallbackError::UnknownKey { serial }) = &told
        && gateway.look_for_key(serial, now).await
    {
        told = tell(gateway.as_ref(), callback, now);
    }
    Ok(match told {
        Ok(notification) => Outlook::Told(says(place, &notification).await?),
        Err(
            error @ (CallbackError::UnknownKey { .. }
            | CallbackError::KeyNotInForce { .. }
            | CallbackError::Unopened(_)),
        ) => Outlook::Waits(error.to_string()),
        Err(error) => Outlook::DeadAgain(error.to_string()),
    })
}

fn tell(gateway: &dyn Gateway, callback: &Callback, now: OffsetDateTime) -> Result<Notification, CallbackError> {
    let verified = gateway.verify(callback.clone(), None)?;
    Ok(gateway.read(&verified, now)?.into_inner())
}

/// What a message tells, and of which order.
async fn says(place: &Place, told: &Notification) -> Result<String, Problem> {
    let order = outline::of(&place.db, &told.order_no).await?.filter(|order| order.order_no.as_str() == told.order_no);
    let order = order.map_or_else(
        || format!("order {}, which is none of ours", told.order_no),
        |order| format!("order {} of {} yuan, which is {}", order.order_no, order.amount, order.status),
    );
    let fact = match &told.fact {
        Fact::Paid { amount: Some(amount), .. } => format!("a payment of {amount} yuan"),
        Fact::Paid { amount: None, .. } => "a payment of no amount that an order of ours has".to_owned(),
        Fact::ClosedUnpaid => "the end without a payment".to_owned(),
        Fact::PaidAndReturned(_) => "a payment that was returned since".to_owned(),
        Fact::Refund { refund_no, outcome, .. } => format!("refund {refund_no}, {}", end_of(*outcome)),
        Fact::Nothing => "nothing that changes anything".to_owned(),
    };
    Ok(format!("it tells of {fact}, for {order}"))
}

fn end_of(outcome: RefundOutcome) -> &'static str {
    match outcome {
        RefundOutcome::Succeeded => "succeeded",
        RefundOutcome::Closed => "closed",
        RefundOutcome::Abnormal => "abnormal",
        RefundOutcome::Hint => "which is then asked about",
    }
}

/// Job and end of the case in one transaction; whoever is second gets neither.
async fn put_back(place: &Place, case: &Case, callback: &Callback, by: &str) -> Result<String, Problem> {
    let now = place.clock.now();
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let job = jobs::insert_callback(&mut *tx, callback, time::Duration::ZERO).await?;
    let resolution = format!("replayed as job {job}");
    let entry: Value = json!({ "at": instant(now), "who": by, "what": "replayed", "action": { "job": job } });
    cases::end(&mut tx, case, &End { resolution: &resolution, by, entry: &entry }, now).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(resolution)
}
