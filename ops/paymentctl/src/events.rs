//! `paymentctl events`: shows the events that were published to downstream systems, and publishes them again.

use std::ops::Range;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use store::story;
use store::tables::cases;
use store::tables::events::{self as outbox, Republished, StoredEvent};
use store::tables::outline as orders;
use store::tables::outline::Outline;
use store::tables::refunds;
use store::tables::transactions;
use time::OffsetDateTime;

use crate::answer::{Answer, Problem, count, lines as shown, moment, table, with_more};
use crate::place::{Place, signature};
use crate::when::{self, Moment};

/// What to do with events.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List events: the newest, those of one order, or those published in a range of time.
    List(List),
    /// Show one event with its data.
    Show {
        /// The event's id, such as order.paid:0199….
        id: String,
    },
    /// Publish events again, under the same ids. A consumer recognises a repeat by its id.
    ///
    /// This command marks the events as unpublished. The relay then publishes them; events of one order keep their
    /// sequence. Unpublished events are left alone. Without --yes nothing is changed, and the events are only
    /// counted. The operator's name is recorded with each event.
    Republish(Republish),
}

/// Which events to list.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// Only events of one order, by its id or order_no.
    #[arg(long, value_name = "ORDER", conflicts_with_all = ["unpublished", "since"])]
    pub order: Option<String>,
    /// Only unpublished events.
    #[arg(long, conflicts_with = "since")]
    pub unpublished: bool,
    /// Only events published at this time or later: 2026-01-05T10:00:00+08:00, 2026-01-05 (midnight in Beijing), or a
    /// time before now such as 2h.
    #[arg(long, value_name = "TIME", value_parser = when::moment)]
    pub since: Option<Moment>,
    /// Only events published before this time. The default is now.
    #[arg(long, value_name = "TIME", value_parser = when::moment, requires = "since")]
    pub until: Option<Moment>,
    /// At most this many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub limit: i64,
}

/// Which events to publish again.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "order", "since"])))]
pub struct Republish {
    /// One event by its id.
    #[arg(long, value_name = "EVENT")]
    pub id: Option<String>,
    /// All events of one order, by its id or order_no.
    #[arg(long, value_name = "ORDER")]
    pub order: Option<String>,
    /// All events published at this time or later: 2026-01-05T10:00:00+08:00, 2026-01-05 (midnight in Beijing), or a
    /// time before now such as 2h.
    #[arg(long, value_name = "TIME", value_parser = when::moment, requires = "until")]
    pub since: Option<Moment>,
    /// And published before this time.
    #[arg(long, value_name = "TIME", value_parser = when::moment, conflicts_with_all = ["id", "order"])]
    pub until: Option<Moment>,
    /// If there are more events than this, none is published. The relay publishes these events before new ones.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    pub limit: i64,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

/// Runs the command on the events of this database. `operator` is required only where the command writes.
///
/// # Errors
/// [`Problem`]; then nothing was changed.
pub async fn run(place: &Place, command: &Command, operator: Option<&str>) -> Result<Answer, Problem> {
    match command {
        Command::List(list) => self::list(place, list).await,
        Command::Show { id } => show(place, id).await,
        Command::Republish(republish) => self::republish(place, republish, operator).await,
    }
}

async fn list(place: &Place, list: &List) -> Result<Answer, Problem> {
    let one_more = list.limit + 1;
    let (mut found, left_out) = match (&list.order, list.since) {
        (Some(order), _) => (of_order(place, &order_of(place, order).await?).await?, None),
        (None, Some(since)) => {
            let until = list.until.unwrap_or(Moment::Ago(time::Duration::ZERO));
            let range = range(since, until, place.clock.now())?;
            (outbox::published_in(&place.db, range, one_more).await?, Some("later"))
        }
        (None, None) => (outbox::newest(&place.db, list.unpublished, one_more).await?, Some("older")),
    };
    let left_out = left_out.filter(|_| found.len() as u64 == one_more.unsigned_abs());
    let more = left_out.map(|which| {
        found.pop();
        format!("there are {which} ones than these {}: --limit, --since", list.limit)
    });
    found.sort_by_key(|event| event.seq);
    let row = |event: &StoredEvent| vec![moment(event.occurred_at), out(event), event.event_id.clone()];
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    let text = table(&["HAPPENED", "PUBLISHED", "EVENT"], &rows);
    let text = if found.is_empty() { "no such event".to_owned() } else { text };
    let json = json!({ "events": found.iter().map(outline).collect::<Vec<_>>(), "more": more.is_some() });
    Ok(Answer::done(with_more(text, more.as_deref()), json))
}

/// When the event was published, or why it was not.
fn out(event: &StoredEvent) -> String {
    match (event.published_at, event.retry_at) {
        (Some(at), _) => moment(at),
        (None, Some(at)) => format!("no queue received it; again at {}", moment(at)),
        (None, None) => "not yet".to_owned(),
    }
}

async fn get(place: &Place, id: &str) -> Result<StoredEvent, Problem> {
    let found = outbox::by_ids(&place.db, &[id.to_owned()]).await?;
    let unknown = || {
        let hint = "`paymentctl events list --order ORDER` lists those of an order";
        Problem::failed(format!("there is no event {id}"), hint)
    };
    found.into_iter().next().ok_or_else(unknown)
}

async fn show(place: &Place, id: &str) -> Result<Answer, Problem> {
    let event = get(place, id).await?;
    let order = event.order_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let again = outbox::republishes(&place.db, std::slice::from_ref(&event.event_id)).await?;
    let mut lines = vec![
        format!("event      {}", event.event_id),
        format!("order      {order}"),
        format!("happened   {}", moment(event.occurred_at)),
        format!("published  {}", out(&event)),
    ];
    lines.extend(again.iter().map(|once| {
        let (before, by, at) = (moment(once.published_at), &once.republished_by, moment(once.republished_at));
        let user = once.database_user.as_deref().map(|user| format!(" (database user {user})")).unwrap_or_default();
        format!("again      published at {before}, and again at the request of {by}{user} at {at}")
    }));
    let data = serde_json::to_string_pretty(&event.data).unwrap_or_default();
    lines.extend(format!("data       {data}").lines().map(str::to_owned));
    let mut json = outline(&event);
    json["data"] = event.data;
    json["republishes"] = again.iter().map(republished).collect();
    Ok(Answer::done(shown(&lines), json))
}

fn republished(once: &Republished) -> Value {
    json!({
        "published_at": moment(once.published_at),
        "republished_by": once.republished_by,
        "database_user": once.database_user,
        "republished_at": moment(once.republished_at),
    })
}

/// An event without its data, which can contain metadata of the shop.
fn outline(event: &StoredEvent) -> Value {
    json!({
        "id": event.event_id,
        "seq": event.seq,
        "type": event.kind,
        "order_id": event.order_id.map(|id| id.to_string()),
        "occurred_at": moment(event.occurred_at),
        "retry_at": event.retry_at.map(moment),
        "published_at": event.published_at.map(moment),
    })
}

async fn republish(place: &Place, republish: &Republish, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(republish.yes, operator)?;
    let found = chosen(place, republish).await?;
    let (out, waiting): (Vec<&StoredEvent>, Vec<&StoredEvent>) =
        found.iter().partition(|event| event.published_at.is_some());
    if i64::try_from(out.len()).unwrap_or(i64::MAX) > republish.limit {
        let said = format!("more than {} events are requested", republish.limit);
        return Err(Problem::failed(said, "give a shorter time range, or raise --limit"));
    }
    let seqs: Vec<i64> = out.iter().map(|event| event.seq).collect();
    let mut published = 0;
    if let Some(by) = by.filter(|_| !seqs.is_empty()) {
        published = outbox::publish_again(&place.db, &seqs, &by).await?;
        // The nudge can get lost; the relay also polls.
        let _ = outbox::nudge(&place.db).await;
    }
    let (events, ids) = (count(out.len(), "event"), out.iter().map(|event| &event.event_id));
    let json = json!({
        "dry_run": !republish.yes,
        "events": ids.clone().collect::<Vec<_>>(),
        "republished": published,
        "not_out_yet": waiting.iter().map(|event| &event.event_id).collect::<Vec<_>>(),
    });
    let mut lines: Vec<String> = ids.take(SHOWN).cloned().collect();
    if out.len() > SHOWN {
        lines.push(format!("and {} more (--json names all)", out.len() - SHOWN));
    }
    lines.extend(waiting.iter().map(|event| format!("{} is not published yet: the relay does it", event.event_id)));
    lines.push(match (seqs.is_empty(), republish.yes) {
        (true, _) => "nothing to publish again".to_owned(),
        (_, true) => format!(
            "{} will be published again by the relay",
            count(usize::try_from(published).unwrap_or_default(), "event")
        ),
        (_, false) => format!("{events} would be published again; nothing was changed, --yes does it"),
    });
    Ok(Answer::done(shown(&lines), json))
}

/// How many ids the text for people names.
const SHOWN: usize = 20;

async fn chosen(place: &Place, republish: &Republish) -> Result<Vec<StoredEvent>, Problem> {
    if let Some(id) = &republish.id {
        return Ok(vec![get(place, id).await?]);
    }
    if let Some(order) = &republish.order {
        return of_order(place, &order_of(place, order).await?).await;
    }
    let (Some(since), Some(until)) = (republish.since, republish.until) else {
        return Err(Problem::usage("the events are not named", "give --id, --order, or --since and --until"));
    };
    let range = range(since, until, place.clock.now())?;
    Ok(outbox::published_in(&place.db, range, republish.limit + 1).await?)
}

fn range(since: Moment, until: Moment, now: OffsetDateTime) -> Result<Range<OffsetDateTime>, Problem> {
    let (since, until) = (since.at(now), until.at(now));
    if since < until {
        return Ok(since..until);
    }
    let said = format!("the range ends ({}) before it begins ({})", moment(until), moment(since));
    Err(Problem::usage(said, "--since is the earlier of the two"))
}

/// The order that the operator names.
async fn order_of(place: &Place, id_or_number: &str) -> Result<Outline, Problem> {
    let unknown = || Problem::failed(format!("there is no order {id_or_number}"), "give an order's id or its order_no");
    orders::of(&place.db, id_or_number).await?.ok_or_else(unknown)
}

/// Every event about an order.
async fn of_order(place: &Place, order: &Outline) -> Result<Vec<StoredEvent>, Problem> {
    let refunds = refunds::of_order(&place.db, order.id).await?;
    let cases = cases::of_order(&place.db, order.id).await?;
    let movements = transactions::of_order(&place.db, order.id).await?;
    Ok(outbox::by_ids(&place.db, &story::event_ids(order.id, &movements, &refunds, &cases)).await?)
}
