//! `paymentctl audit`: what people did, and whether the log was changed afterwards.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use store::tables::audit::{self, BEGINNING, Fault, Root, Row};
use time::Duration;

use crate::answer::{Answer, Problem, count, instant, lines, moment, table, with_more};
use crate::place::Place;

/// What to do with the log of people's actions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List what people did, the newest last.
    List(List),
    /// Verify that no linked row was changed or removed, and name the first that was.
    ///
    /// The relay links each row within a second. The owner of the tables could rewrite the whole chain. To detect
    /// that, store the root that this command shows, or that the relay logs each day, in another place, and pass it
    /// with --root later.
    Verify(Verify),
}

/// Which actions to list.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// Only actions on one object, such as case:0199…, event:order.paid:0199…, payment_config:alipay or order:0199….
    #[arg(long, value_name = "OBJECT")]
    pub object: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub limit: i64,
}

/// What to verify the chain against.
#[derive(Debug, Clone, Default, Args)]
pub struct Verify {
    /// A root that was noted before: the chain must contain it. Can be given several times.
    #[arg(long = "root", value_name = "N:HASH")]
    pub roots: Vec<Root>,
}

/// How many links one query reads.
const BATCH: i64 = 1000;
/// Progress is reported after this many links.
const SAY: i64 = 100_000;
/// Every row should be linked by this age. If one is not, the relay did not receive it, or no relay runs.
const PATIENCE: Duration = Duration::minutes(1);
/// How many row numbers one query searches for rows without a link.
const SLICE: i64 = 100_000;
/// At most this many of the unlinked rows are named.
const NAMED: usize = 10;

/// Runs the command.
///
/// # Errors
/// [`Problem`].
pub async fn run(place: &Place, command: &Command) -> Result<Answer, Problem> {
    match command {
        Command::List(list) => self::list(place, list).await,
        Command::Verify(verify) => self::verify(place, verify).await,
    }
}

async fn list(place: &Place, list: &List) -> Result<Answer, Problem> {
    let mut found = audit::newest(&place.db, list.object.as_deref(), list.limit + 1).await?;
    let more = (found.len() as u64 > list.limit.unsigned_abs()).then(|| {
        found.pop();
        format!("there are older ones than these {}: --limit", list.limit)
    });
    found.reverse();
    let cells = |row: &Row| {
        vec![moment(row.at), row.subject.clone(), row.database_user.clone(), row.act.clone(), row.object.clone()]
    };
    let rows: Vec<Vec<String>> = found.iter().map(cells).collect();
    let text = table(&["AT", "WHO", "DATABASE USER", "DID", "TO"], &rows);
    let text = if found.is_empty() { "no such act".to_owned() } else { text };
    let json = json!({ "acts": found.iter().map(act).collect::<Vec<_>>(), "more": more.is_some() });
    Ok(Answer::done(with_more(text, more.as_deref()), json))
}

fn act(row: &Row) -> Value {
    json!({
        "id": row.id,
        "at": instant(row.at),
        "subject": row.subject,
        "issuer": row.issuer,
        "key_id": row.key_id,
        "session": row.session,
        "database_user": row.database_user,
        "act": row.act,
        "object": row.object,
        "detail": serde_json::from_str::<Value>(&row.detail).unwrap_or_default(),
    })
}

async fn verify(place: &Place, verify: &Verify) -> Result<Answer, Problem> {
    let (end, mut fault) = follow(place, &verify.roots).await?;
    if let (None, Some(n)) = (&fault, audit::stray_link(&place.db).await?) {
        fault = Some(Broken::Stray(n));
    }
    let unlinked = unlinked(place).await?;
    let mut said = Vec::new();
    match &fault {
        Some(fault) => said.push(format!("{fault}; up to link {} the chain holds", end.n)),
        None => said.push(format!("{} and none was changed or removed", linked(end.n))),
    }
    if let Some(text) = waiting(&unlinked) {
        said.push(text);
    }
    if end.n > 0 {
        said.push(format!("root {end}"));
    }
    let json = json!({
        "links": end.n,
        "root": (end.n > 0).then(|| end.to_string()),
        "fault": fault.as_ref().map(ToString::to_string),
        "unlinked": unlinked.len(),
        "unlinked_rows": unlinked.iter().take(NAMED).collect::<Vec<_>>(),
    });
    Ok(Answer::new(lines(&said), json, fault.is_none() && unlinked.is_empty()))
}

/// What breaks the chain.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Chain(Fault),
    #[error("at link {0} the chain does not go through the root that was noted: it was rewritten")]
    Rewritten(i64),
    #[error("the chain ends before link {0}, whose root was noted: its end was removed")]
    Shortened(i64),
    #[error("link {0} is no link of the chain, which counts from 1: it hides the row that it names")]
    Stray(i64),
}

/// How far the chain is intact, and what breaks it.
async fn follow(place: &Place, roots: &[Root]) -> Result<(Root, Option<Broken>), Problem> {
    let mut noted = roots.to_vec();
    noted.sort_unstable_by_key(|root| root.n);
    let mut noted = noted.into_iter().peekable();
    let mut end = Root { n: 0, hash: BEGINNING };
    loop {
        let limit = noted.peek().map_or(BATCH, |root| BATCH.min(root.n - end.n));
        let next = match audit::follow(&place.db, end, limit).await {
            Ok(next) => next,
            Err(not_done) => {
                let fault = not_done.refusal()?;
                // Finds the last intact link.
                let end = before(place, end, &fault).await?;
                return Ok((end, Some(Broken::Chain(fault))));
            }
        };
        if next.n / SAY > end.n / SAY {
            eprintln!("{} so far", linked(next.n));
        }
        if next == end {
            return Ok((end, noted.next().map(|root| Broken::Shortened(root.n))));
        }
        end = next;
        while let Some(root) = noted.next_if(|root| root.n == end.n) {
            if root.hash != end.hash {
                return Ok((end, Some(Broken::Rewritten(root.n))));
            }
        }
    }
}

/// The last link before a fault.
async fn before(place: &Place, end: Root, fault: &Fault) -> Result<Root, Problem> {
    let (Fault::LinkGone(n) | Fault::NotLinked(n) | Fault::RowGone { n, .. } | Fault::Changed { n, .. }) = *fault;
    let sound = n - 1 - end.n;
    if sound <= 0 {
        return Ok(end);
    }
    match audit::follow(&place.db, end, sound).await {
        Ok(end) => Ok(end),
        Err(not_done) => Ok(not_done.refusal().map(|_| end)?),
    }
}

fn linked(n: i64) -> String {
    format!("{} linked", count(usize::try_from(n).unwrap_or(usize::MAX), "row"))
}

/// The rows without a link that are old enough to have one.
async fn unlinked(place: &Place) -> Result<Vec<i64>, Problem> {
    let (end, mut found) = (audit::largest(&place.db).await?, Vec::new());
    for from in (0..=end).step_by(SLICE as usize) {
        found.extend(audit::unlinked(&place.db, from, from + SLICE, PATIENCE).await?);
    }
    Ok(found)
}

fn waiting(unlinked: &[i64]) -> Option<String> {
    let first = unlinked.iter().take(NAMED).map(i64::to_string).collect::<Vec<_>>().join(", ");
    let more = if unlinked.len() > NAMED { ", …" } else { "" };
    (!unlinked.is_empty()).then(|| {
        format!("{} in no link for a minute: {first}{more}; no relay runs, or it did not receive them", unlinked.len())
    })
}
