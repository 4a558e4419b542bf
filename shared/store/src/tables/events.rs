//! `events`: the outbox. The relay queries for unpublished events, never for events after a position.

use std::ops::Range;

use domain::OrderId;
use domain::message::event::Event;
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::tables::jobs::millis;

/// Adds events in the order given. An event that exists already does not change.
///
/// # Errors
/// [`DbError`].
pub async fn append(tx: &mut PgConnection, events: &[Event], now: OffsetDateTime) -> Result<(), DbError> {
    let ids: Vec<&str> = events.iter().map(|e| e.event_id.as_str()).collect();
    let kinds: Vec<&str> = events.iter().map(|e| e.kind).collect();
    let orders: Vec<Option<OrderId>> = events.iter().map(|e| e.order_id).collect();
    let data: Vec<Value> = events.iter().map(|e| e.data.clone()).collect();
    sqlx::query!(
        r#"
        insert into events (event_id, type, order_id, data, occurred_at)
        select e.event_id, e.type, e.order_id, e.data, $5
        from unnest($1::text[], $2::text[], $3::bpchar[], $4::jsonb[]) with ordinality
          as e (event_id, type, order_id, data, position)
        order by e.position
        on conflict on constraint events_event_id_key do nothing
        "#,
        &ids as &[&str],
        &kinds as &[&str],
        &orders as &[Option<OrderId>],
        &data,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// An unpublished event.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its position in the outbox; events of one order are published in this order.
    pub seq: i64,
    /// Deterministic: a repeat of the event has the same id.
    pub event_id: String,
    /// The type, which is the routing key too.
    pub kind: String,
    /// The order that it is about.
    pub order_id: Option<OrderId>,
    /// The content as JSON text. No process parses it on its way.
    pub data: String,
    /// When it happened.
    pub occurred_at: OffsetDateTime,
}

/// Unpublished events that are due, oldest first. An event is left out while an earlier event of its order must wait.
///
/// # Errors
/// [`DbError`].
pub async fn waiting(connection: &mut PgConnection, limit: i64) -> Result<Vec<Waiting>, DbError> {
    Ok(sqlx::query_as!(
        Waiting,
        r#"
        with held as (
          select order_id, min(seq) as seq from events
          where published_at is null and retry_at > now()
          group by order_id
        )
        select e.seq, e.event_id, e.type as kind, e.order_id as "order_id: OrderId", e.data::text as "data!", e.occurred_at
        from events e left join held on held.order_id = e.order_id
        where e.published_at is null
          and (e.retry_at is null or e.retry_at <= now())
          and (held.seq is null or held.seq > e.seq)
        order by e.seq
        limit $1
        "#,
        limit,
    )
    .fetch_all(connection)
    .await?)
}

/// The position of an unpublished event.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its position in the outbox.
    pub seq: i64,
    /// The order id as it is in the row, valid or not.
    pub order: Option<String>,
}

/// The positions of the events that [`waiting`] reads. Used when one of those events cannot be read.
///
/// # Errors
/// [`DbError`].
pub async fn waiting_places(connection: &mut PgConnection, limit: i64) -> Result<Vec<Place>, DbError> {
    Ok(sqlx::query_as!(
        Place,
        r#"
        with held as (
          select order_id, min(seq) as seq from events
          where published_at is null and retry_at > now()
          group by order_id
        )
        select e.seq, e.order_id::text as "order"
        from events e left join held on held.order_id = e.order_id
        where e.published_at is null
          and (e.retry_at is null or e.retry_at <= now())
          and (held.seq is null or held.seq > e.seq)
        order by e.seq
        limit $1
        "#,
        limit,
    )
    .fetch_all(connection)
    .await?)
}

/// One unpublished event.
///
/// # Errors
/// [`DbError`].
pub async fn waiting_one(connection: &mut PgConnection, seq: i64) -> Result<Option<Waiting>, DbError> {
    Ok(sqlx::query_as!(
        Waiting,
        r#"
        select seq, event_id, type as kind, order_id as "order_id: OrderId", data::text as "data!", occurred_at
        from events
        where seq = $1 and published_at is null
        "#,
        seq,
    )
    .fetch_optional(connection)
    .await?)
}

/// Records which events the broker confirmed.
///
/// # Errors
/// [`DbError`].
pub async fn mark_published(connection: &mut PgConnection, seqs: &[i64], now: OffsetDateTime) -> Result<(), DbError> {
    sqlx::query!("update events set published_at = $2, retry_at = null where seq = any($1)", seqs, now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Postpones events that no queue would have received.
///
/// # Errors
/// [`DbError`].
pub async fn postpone(connection: &mut PgConnection, seqs: &[i64], wait: Duration) -> Result<(), DbError> {
    sqlx::query!(
        "update events set retry_at = now() + $2::bigint * interval '1 millisecond' where seq = any($1)",
        seqs,
        millis(wait),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks events that were published since `since` as unpublished, because the broker was wiped. Returns how many there
/// were.
///
/// # Errors
/// [`DbError`].
pub async fn unpublish(connection: &mut PgConnection, since: OffsetDateTime) -> Result<u64, DbError> {
    let done = sqlx::query!("update events set published_at = null, retry_at = null where published_at >= $1", since)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// How many events are unpublished, and the age of the oldest.
///
/// # Errors
/// [`DbError`].
pub async fn backlog(db: impl PgExecutor<'_>) -> Result<(i64, Duration), DbError> {
    let row = sqlx::query!(
        r#"
        select count(*) as "count!", coalesce(extract(epoch from now() - min(occurred_at)) * 1000, 0)::bigint as "oldest!"
        from events where published_at is null
        "#
    )
    .fetch_one(db)
    .await?;
    Ok((row.count, Duration::milliseconds(row.oldest)))
}

/// The channel that notifies the relay of unpublished events.
const NUDGE: &str = "payment_events";

/// Notifies the relay that there are unpublished events. Call it once for a batch and after its commit: a notification
/// inside a transaction takes a lock that all committing transactions share. A notification may get lost; the relay
/// polls too.
///
/// # Errors
/// [`DbError`].
pub async fn nudge(db: impl PgExecutor<'_>) -> Result<(), DbError> {
    sqlx::query!("select pg_notify($1, '') as done", NUDGE).execute(db).await?;
    Ok(())
}

/// Listens for notifications, on a connection of its own.
///
/// # Errors
/// [`DbError`].
pub async fn listen(pool: &sqlx::PgPool) -> Result<sqlx::postgres::PgListener, DbError> {
    let mut listener = sqlx::postgres::PgListener::connect_with(pool).await?;
    listener.listen(NUDGE).await?;
    Ok(listener)
}

/// An event as it is stored.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Its position in the outbox; events of one order are published in this order.
    pub seq: i64,
    /// Deterministic: a repeat of the event has the same id.
    pub event_id: String,
    /// The type, which is the routing key too.
    pub kind: String,
    /// The order that it is about.
    pub order_id: Option<OrderId>,
    /// The content.
    pub data: Value,
    /// When it happened.
    pub occurred_at: OffsetDateTime,
    /// Do not publish it before this time: no queue would have received it.
    pub retry_at: Option<OffsetDateTime>,
    /// When the broker last confirmed it.
    pub published_at: Option<OffsetDateTime>,
}

/// Reads whole events: one list of columns for every query.
macro_rules! select_events {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            StoredEvent,
            r#"
            select seq, event_id, type as kind, order_id as "order_id: OrderId", data, occurred_at, retry_at, published_at
            from events
            "# + $tail
            $(, $argument)*
        )
    };
}

/// Events by their ids, in the order of publishing. An id without an event is left out.
///
/// # Errors
/// [`DbError`].
pub async fn by_ids(db: impl PgExecutor<'_>, event_ids: &[String]) -> Result<Vec<StoredEvent>, DbError> {
    Ok(select_events!("where event_id = any($1) order by seq", event_ids).fetch_all(db).await?)
}

/// An event without its content, which can hold data of the shop.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its position in the outbox.
    pub seq: i64,
    /// Deterministic: a repeat of the event has the same id.
    pub event_id: String,
    /// The type, which is the routing key too.
    pub kind: String,
    /// When it happened.
    pub occurred_at: OffsetDateTime,
    /// Do not publish it before this time: no queue would have received it.
    pub retry_at: Option<OffsetDateTime>,
    /// When the broker last confirmed it.
    pub published_at: Option<OffsetDateTime>,
}

/// The same as [`by_ids`], without the content.
///
/// # Errors
/// [`DbError`].
pub async fn traces(db: impl PgExecutor<'_>, event_ids: &[String]) -> Result<Vec<Trace>, DbError> {
    Ok(sqlx::query_as!(
        Trace,
        r#"
        select seq, event_id, type as kind, occurred_at, retry_at, published_at
        from events
        where event_id = any($1)
        order by seq
        "#,
        event_ids,
    )
    .fetch_all(db)
    .await?)
}

/// Events that the broker confirmed at `range.start` or later and before `range.end`, the first `limit` of them.
///
/// # Errors
/// [`DbError`].
pub async fn published_in(
    db: impl PgExecutor<'_>,
    range: Range<OffsetDateTime>,
    limit: i64,
) -> Result<Vec<StoredEvent>, DbError> {
    let (since, until) = (range.start, range.end);
    Ok(select_events!(
        "where published_at >= $1 and published_at < $2 order by published_at, seq limit $3",
        since,
        until,
        limit,
    )
    .fetch_all(db)
    .await?)
}

/// The newest events, or the newest unpublished ones.
///
/// # Errors
/// [`DbError`].
pub async fn newest(db: impl PgExecutor<'_>, unpublished: bool, limit: i64) -> Result<Vec<StoredEvent>, DbError> {
    // Two statements, so that each can use its own index.
    Ok(if unpublished {
        select_events!("where published_at is null order by seq desc limit $1", limit).fetch_all(db).await?
    } else {
        select_events!("order by seq desc limit $1", limit).fetch_all(db).await?
    })
}

/// Marks published events as unpublished, so that the relay publishes them again under the same ids. Records who
/// requested it and the database user. Returns how many events were marked; unpublished events are left alone.
///
/// # Errors
/// [`DbError`].
pub async fn publish_again(db: impl PgExecutor<'_>, seqs: &[i64], by: &str) -> Result<u64, DbError> {
    let done = sqlx::query!(r#"select republish_events($1, $2) as "done!""#, seqs, by).fetch_one(db).await?.done;
    Ok(done.unsigned_abs())
}

/// One request of a person to publish an event again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Republished {
    /// The event.
    pub event_id: String,
    /// When the broker had confirmed it before.
    pub published_at: OffsetDateTime,
    /// Who requested it.
    pub republished_by: String,
    /// When it was requested.
    pub republished_at: OffsetDateTime,
    /// The database user; `None`: an older release wrote the row.
    pub database_user: Option<String>,
}

/// When these events were published again and who requested it, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn republishes(db: impl PgExecutor<'_>, event_ids: &[String]) -> Result<Vec<Republished>, DbError> {
    Ok(sqlx::query_as!(
        Republished,
        r#"
        select event_id, published_at, republished_by, republished_at, database_user from event_republishes
        where event_id = any($1)
        order by id
        "#,
        event_ids,
    )
    .fetch_all(db)
    .await?)
}
