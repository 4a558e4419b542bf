//! `audit_log` for the people who look for an act: by any mix of filters.

use serde_json::Value;
use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, Mark};

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

/// Reads one page by a condition that names an index, and the filters. $1 to $3 bound the times of the index.
macro_rules! read_listed {
    ($driver:tt, $filter:expr, $past:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedAct,
            r#"
            select id, at, subject, issuer, key_id, session, database_user, act, object, detail
            from audit_log
            where (at, id) < ($1, $2) and at >= $3
              and ($4::text is null or subject = $4)
              and ($5::text is null or act = $5)
              and ($6::text is null or object = $6)
              and
            "#
                + $driver
                + " order by at desc, id desc limit $7",
            $past.at,
            $past.id,
            $filter.done.first(),
            $filter.subject.as_deref(),
            $filter.act.as_deref(),
            $filter.object.as_deref(),
            $limit,
        )
    };
}

/// One page, the newest first; only acts before `before`.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &ActFilter,
    before: Option<Mark<i64>>,
    limit: i64,
) -> Result<Vec<ListedAct>, DbError> {
    let past = filter.done.past(before);
    Ok(match filter.object {
        Some(_) => read_listed!("object = $6::text", filter, past, limit).fetch_all(db).await?,
        None => read_listed!("true", filter, past, limit).fetch_all(db).await?,
    })
}
