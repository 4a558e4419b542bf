//! Deletes rows when their time is over, and measures the tables.
//!
//! Orders, transactions and refunds are stored forever, and so is the audit of the settings.
//! `ops/decisions/0012-what-is-kept-how-long.md` says why each rule is safe. Each function is one small step. It
//! deletes the oldest rows of a table, in an order that an index provides, and skips rows that another transaction has
//! locked. A step that meets any obstacle gives up; see [`step_aside`].

use domain::{CaseId, CaseKind, first_id_at};
use sqlx::{Executor, PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::upkeep::grants;

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<Place> {
    /// The number of deleted rows.
    pub removed: u64,
    /// Where the next step begins; `None`: behind this place there is nothing older than the bound.
    pub reached: Option<Place>,
}

/// Makes this transaction fail early instead of blocking others: 250 ms for a lock, a second for a statement.
///
/// # Errors
/// [`DbError`].
pub async fn step_aside(tx: &mut PgConnection) -> Result<(), DbError> {
    crate::connect::hardly_wait_for_locks(tx).await?;
    tx.execute("set local statement_timeout = '1s'").await?;
    Ok(())
}

/// Deletes keys that expired before `before` and that no process works on.
///
/// # Errors
/// [`DbError`].
pub async fn idempotency_keys(tx: &mut PgConnection, before: OffsetDateTime, limit: i64) -> Result<Step<()>, DbError> {
    let done = sqlx::query!(
        r#"
        with expired as (
          select user_id, key from idempotency_keys
          where expires_at < $1 and (held_until is null or held_until < $1)
          order by expires_at
          limit $2
          for update skip locked
        )
        delete from idempotency_keys k using expired e where k.user_id = e.user_id and k.key = e.key
        "#,
        before,
        limit,
    )
    .execute(tx)
    .await?;
    Ok(until_fewer(done.rows_affected(), limit))
}

/// Deletes credentials that expired before `before`.
///
/// # Errors
/// [`DbError`].
pub async fn credentials(tx: &mut PgConnection, before: OffsetDateTime, limit: i64) -> Result<Step<()>, DbError> {
    let done = sqlx::query!(
        r#"
        with expired as (
          select order_id from order_credentials
          where valid_until < $1
          order by valid_until
          limit $2
          for update skip locked
        )
        delete from order_credentials c using expired e where c.order_id = e.order_id
        "#,
        before,
        limit,
    )
    .execute(tx)
    .await?;
    Ok(until_fewer(done.rows_affected(), limit))
}

/// Deletes events that were published before `before` and that the statistics have processed.
///
/// # Errors
/// [`DbError`].
pub async fn events(tx: &mut PgConnection, before: OffsetDateTime, limit: i64) -> Result<Step<()>, DbError> {
    let done = sqlx::query!(
        r#"
        delete from events
        where seq = any(array(
          select seq from events
          where published_at < $1 and seq <= (select seq from stats_progress)
          order by published_at
          limit $2
          for update skip locked
        ))
        "#,
        before,
        limit,
    )
    .execute(tx)
    .await?;
    Ok(until_fewer(done.rows_affected(), limit))
}

/// Deletes the bytes of dead letters that were filed before `before` and whose case is resolved.
///
/// # Errors
/// [`DbError`].
pub async fn dead_letters(tx: &mut PgConnection, before: OffsetDateTime, limit: i64) -> Result<Step<()>, DbError> {
    let done = sqlx::query!(
        r#"
        delete from dead_letters
        where case_id = any(array(
          select letter.case_id from dead_letters letter
          where letter.filed_at < $1
            and exists (select from cases k where k.id = letter.case_id and k.status = 'resolved')
          order by letter.filed_at
          limit $2
        ))
        "#,
        before,
        limit,
    )
    .execute(tx)
    .await?;
    Ok(until_fewer(done.rows_affected(), limit))
}

/// While a step deletes as many rows as its limit allows, there may be more.
pub(crate) fn until_fewer(removed: u64, limit: i64) -> Step<()> {
    Step { removed, reached: (i64::try_from(removed) == Ok(limit)).then_some(()) }
}

/// Examines the next `limit` callbacks after `from` and deletes those last seen before `before`. A callback stays if
/// its order is not finished, or if an open case is about it.
///
/// # Errors
/// [`DbError`].
pub async fn callbacks(
    tx: &mut PgConnection,
    before: OffsetDateTime,
    from: i64,
    limit: i64,
) -> Result<Step<i64>, DbError> {
    // Callbacks arrive in the order of their ids, so the first step that finds no old one is the last step.
    let looked = sqlx::query!(
        r#"
        select max(id) as reached
        from (select id, last_seen_at from callbacks where id > $1 order by id limit $2) as oldest
        where last_seen_at < $3
        "#,
        from,
        limit,
        before,
    );
    let Some(reached) = looked.fetch_one(&mut *tx).await?.reached else {
        return Ok(Step { removed: 0, reached: None });
    };
    let done = sqlx::query!(
        r#"
        delete from callbacks
        where id = any(array(
          select c.id from callbacks c
          where c.id > $1 and c.id <= $2 and c.last_seen_at < $3
            and not exists (
              select from payment_orders o
              where o.order_no = c.order_no
                and (o.status in ('pending', 'refunding')
                  or exists (
                    select from refund_records r
                    where r.order_id = o.id and r.status in ('pending', 'processing', 'abnormal')
                  )
                  or exists (select from cases k where k.order_id = o.id and k.status <> 'resolved'))
            )
            and not exists (
              select from cases k where k.status <> 'resolved' and k.evidence ->> 'order_no' = c.order_no
            )
          for update of c skip locked
        ))
        "#,
        from,
        reached,
        before,
    )
    .execute(tx)
    .await?;
    Ok(Step { removed: done.rows_affected(), reached: Some(reached) })
}

/// Examines the next `limit` resolved cases after `from` and deletes those that were resolved before `before`. A case
/// stays if its order is not finished, or if only the case prevents its fact from counting as new again.
///
/// # Errors
/// [`DbError`].
pub async fn cases(
    tx: &mut PgConnection,
    before: OffsetDateTime,
    from: CaseId,
    limit: i64,
) -> Result<Step<CaseId>, DbError> {
    let looked = sqlx::query!(
        r#"
        select max(id) as "reached: CaseId"
        from (
          select id from cases where status = 'resolved' and id > $1 and id < $2 order by id limit $3
        ) as oldest
        "#,
        from as CaseId,
        // A case that was opened after the bound cannot have been resolved before it.
        CaseId::from_u128(first_id_at(before)) as CaseId,
        limit,
    );
    let Some(reached) = looked.fetch_one(&mut *tx).await?.reached else {
        return Ok(Step { removed: 0, reached: None });
    };
    let kinds = CaseKind::ALL.iter().filter(|kind| !kind.is_its_only_memory());
    let kinds: Vec<&str> = kinds.map(|kind| kind.as_str()).collect();
    let done = sqlx::query!(
        r#"
        delete from cases
        where id = any(array(
          select k.id from cases k
          where k.status = 'resolved' and k.id > $1 and k.id <= $2 and k.updated_at < $3 and k.kind = any($4)
            and not exists (
              select from payment_orders o
              where o.id = k.order_id
                and (o.status in ('pending', 'refunding')
                  or exists (
                    select from refund_records r
                    where r.order_id = o.id and r.status in ('pending', 'processing', 'abnormal')
                  ))
            )
          for update of k skip locked
        ))
        "#,
        from as CaseId,
        reached as CaseId,
        before,
        &kinds as &[&str],
    )
    .execute(tx)
    .await?;
    Ok(Step { removed: done.rows_affected(), reached: Some(reached) })
}

/// The age of the oldest row of each table with retention; `None` for an empty table.
///
/// # Errors
/// [`DbError`].
pub async fn oldest(
    db: impl PgExecutor<'_>,
    now: OffsetDateTime,
) -> Result<[(&'static str, Option<Duration>); 6], DbError> {
    let row = sqlx::query!(
        r#"
        select
          (select created_at from idempotency_keys order by expires_at limit 1) as idempotency_keys,
          (select obtained_at from order_credentials order by valid_until limit 1) as order_credentials,
          (select occurred_at from events order by seq limit 1) as events,
          (select received_at from callbacks order by id limit 1) as callbacks,
          (select filed_at from dead_letters order by filed_at limit 1) as dead_letters,
          (select created_at from cases order by id limit 1) as cases
        "#
    )
    .fetch_one(db)
    .await?;
    let age = |since: Option<OffsetDateTime>| since.map(|since| now - since);
    Ok([
        ("idempotency_keys", age(row.idempotency_keys)),
        ("order_credentials", age(row.order_credentials)),
        ("events", age(row.events)),
        ("callbacks", age(row.callbacks)),
        ("dead_letters", age(row.dead_letters)),
        ("cases", age(row.cases)),
    ])
}

/// The size of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSize {
    /// Its name.
    pub name: String,
    /// The bytes on disk, including its indexes and TOAST data.
    pub bytes: i64,
    /// The approximate number of live rows.
    pub rows: i64,
    /// The approximate number of dead rows that still take space.
    pub dead_rows: i64,
    /// When a vacuum last finished, as far as the server's statistics reach back.
    pub vacuumed_at: Option<OffsetDateTime>,
}

/// Measures each of our tables.
///
/// # Errors
/// [`DbError`].
pub async fn sizes(db: impl PgExecutor<'_>) -> Result<Vec<TableSize>, DbError> {
    let names: Vec<&str> = grants::TABLES.iter().map(|table| table.name).collect();
    Ok(sqlx::query_as!(
        TableSize,
        r#"
        select
          relname::text as "name!", pg_total_relation_size(relid) as "bytes!", n_live_tup as "rows!",
          n_dead_tup as "dead_rows!", greatest(last_vacuum, last_autovacuum) as vacuumed_at
        from pg_stat_user_tables
        where schemaname = current_schema() and relname::text = any($1)
        order by relname
        "#,
        &names as &[&str],
    )
    .fetch_all(db)
    .await?)
}
