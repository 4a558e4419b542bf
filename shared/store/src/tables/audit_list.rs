//! `audit_log` for the people who look for an act: by any mix of filters.

use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, LOOKED_THROUGH, LOOKED_THROUGH_FIRST, Mark, Part};

/// Which acts to list. A filter that is `None` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct ActFilter {
    /// Only acts of this person or program.
    pub subject: Option<String>,
    /// Only acts of this kind.
    pub act: Option<String>,
    /// Only acts on this object.
    pub object: Option<String>,
    /// Only acts of then, by the database's clock.
    pub done: Created,
}

impl ActFilter {
    /// Whether a filter is set that has no index, and none that has one.
    pub fn reads_on(&self) -> bool {
        self.object.is_none() && (self.subject.is_some() || self.act.is_some())
    }
}

/// An act of the list.
#[derive(Debug, Clone)]
pub struct ListedAct {
    /// The number of the row.
    pub id: i64,
    /// By the database's clock.
    pub at: OffsetDateTime,
    /// Who did it.
    pub subject: String,
    /// The issuer that proved the subject.
    pub issuer: Option<String>,
    /// The key that proved it.
    pub key_id: Option<String>,
    /// The session.
    pub session: Option<String>,
    /// The user that was logged in to the database.
    pub database_user: String,
    /// What was done.
    pub act: String,
    /// The object of the act.
    pub object: String,
    /// Further details.
    pub detail: Value,
}

/// Reads one page by a condition that names an index, and the filters. $1 to $3 and $8 bound the rows of the index.
macro_rules! read_listed {
    ($driver:tt, $filter:expr, $past:expr, $first:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedAct,
            r#"
            select id, at, subject, issuer, key_id, session, database_user, act, object, detail
            from audit_log
            where (at, id) < ($1, $2) and (at, id) >= ($3, $8)
              and ($4::text is null or subject = $4)
              and ($5::text is null or act = $5)
              and ($6::text is null or object = $6)
              and
            "#
                + $driver
                + " order by at desc, id desc limit $7",
            $past.at,
            $past.id,
            $first.at,
            $filter.subject.as_deref(),
            $filter.act.as_deref(),
            $filter.object.as_deref(),
            $limit,
            $first.id,
        )
    };
}

/// One page, the newest first; only acts before `before`. A page whose filters have no index looks through a part of the
/// list only.
///
/// # Errors
/// [`DbError`].
pub async fn part(
    db: &PgPool,
    filter: &ActFilter,
    before: Option<Mark<i64>>,
    limit: i64,
) -> Result<Part<ListedAct, Mark<i64>>, DbError> {
    let first = look_through(db, filter, before, limit, LOOKED_THROUGH_FIRST).await?;
    match first.looked_to {
        None => Ok(first),
        Some(_) => look_through(db, filter, before, limit, LOOKED_THROUGH).await,
    }
}

/// A page that looks through so many rows at most, if its filters have no index.
async fn look_through(
    db: &PgPool,
    filter: &ActFilter,
    before: Option<Mark<i64>>,
    limit: i64,
    rows: i64,
) -> Result<Part<ListedAct, Mark<i64>>, DbError> {
    let past = filter.done.past(before);
    let first = Mark { at: filter.done.first(), id: i64::MIN };
    let edge = if filter.reads_on() { edge(db, past, first, rows).await? } else { None };
    let first = edge.unwrap_or(first);
    let found = match filter.object {
        Some(_) => read_listed!("object = $6::text", filter, past, first, limit).fetch_all(db).await?,
        None => read_listed!("true", filter, past, first, limit).fetch_all(db).await?,
    };
    Ok(Part::new(found, edge, limit))
}

/// The last of so many rows, if there are so many.
async fn edge(db: &PgPool, past: Mark<i64>, first: Mark<i64>, rows: i64) -> Result<Option<Mark<i64>>, DbError> {
    let edge = sqlx::query_as!(
        Mark,
        "select at as at, id from audit_log
         where (at, id) < ($1, $2) and (at, id) >= ($3, $4)
         order by at desc, id desc
         offset $5 limit 1",
        past.at,
        past.id,
        first.at,
        first.id,
        rows - 1,
    );
    Ok(edge.fetch_optional(db).await?)
}
