//! `audit_log` and `audit_chain`: what people did, and a hash chain that shows whether the log was changed later.
//!
//! An act is inserted in the transaction of its effect, without a lock. The relay links new rows within a second
//! ([`link`]). The hash of a link covers the link before it and every column of the row, so [`follow`] finds a change
//! of either. The owner of the tables can still cut the chain's end off, or write it again. A root that was recorded
//! elsewhere, such as in the relay's log, reveals that too.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::{DbError, NotDone};
use crate::tables::jobs::millis;

/// What a person did.
#[derive(Debug, Clone)]
pub struct Act<'a> {
    /// Who did it: a user, or `paymentctl/` and an operator's name. 64 characters at most.
    pub subject: &'a str,
    /// What was done, such as `case.confirmed`. 40 characters at most.
    pub act: &'a str,
    /// The object of the act, such as `case:` and its id. 160 characters at most.
    pub object: String,
    /// Further details, without the payer's identity.
    pub detail: &'a Value,
}

/// Records an act, in the transaction of its effect.
///
/// # Errors
/// [`DbError`].
pub async fn record(tx: &mut PgConnection, act: &Act<'_>) -> Result<(), DbError> {
    sqlx::query!(
        "insert into audit_log (subject, act, object, detail) values ($1, $2, $3, $4)",
        act.subject,
        act.act,
        act.object,
        act.detail,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Records the act of an operator, in the transaction of its effect. The operators' role inserts nothing into the log: a
/// function of the database does, which accepts acts on keys and exports, and subjects that begin with `paymentctl/`.
///
/// # Errors
/// [`DbError`]; [`DbError::Moved`] when the function does not accept the act. The caller must not commit then.
pub async fn record_operator(tx: &mut PgConnection, act: &Act<'_>) -> Result<(), DbError> {
    let recorded = sqlx::query!(
        r#"select record_operator_act($1, $2, $3, $4) as "recorded!""#,
        act.subject,
        act.act,
        act.object,
        act.detail,
    );
    DbError::expect_rows(u64::from(recorded.fetch_one(tx).await?.recorded), 1)
}

/// SHA-256.
pub type Hash = [u8; SHA256_OUTPUT_LEN];

/// The hash before the first link.
pub const BEGINNING: Hash = [0; SHA256_OUTPUT_LEN];

/// One row of the log, with the values that the hash covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
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
    /// Further details, as the database prints them.
    pub detail: String,
}

impl Row {
    /// The hash of the link that follows `before` and holds this row. Each value is preceded by its length, so two
    /// different rows never give the same input.
    pub fn hash_after(&self, before: &Hash) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(before);
        let micros = self.at.unix_timestamp_nanos() / 1000;
        let (id, at) = (self.id.to_string(), micros.to_string());
        let values = [
            Some(id.as_str()),
            Some(&at),
            Some(&self.subject),
            self.issuer.as_deref(),
            self.key_id.as_deref(),
            self.session.as_deref(),
            Some(&self.database_user),
            Some(&self.act),
            Some(&self.object),
            Some(&self.detail),
        ];
        for value in values {
            let length = value.map_or(-1, |text| i64::try_from(text.len()).unwrap_or(i64::MAX));
            context.update(&length.to_be_bytes());
            context.update(value.unwrap_or_default().as_bytes());
        }
        let mut hash = BEGINNING;
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// How many rows are linked.
    pub n: i64,
    /// The hash of the last link; [`BEGINNING`] where there is none.
    pub hash: Hash,
}

/// The form in which a root is recorded: the number, a colon, and the hash in hex digits.
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.n, hex(&self.hash))
    }
}

fn hex(hash: &Hash) -> String {
    hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

impl FromStr for Root {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Root, Self::Err> {
        let form = "a number of links, a colon, and 64 hex digits";
        let (n, digits) = text.split_once(':').ok_or(form)?;
        let n = n.parse().ok().filter(|n| *n > 0).ok_or(form)?;
        let mut hash = BEGINNING;
        if digits.len() != 2 * hash.len() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(form);
        }
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| form)?;
        }
        Ok(Root { n, hash })
    }
}

/// The present end of the chain.
///
/// # Errors
/// [`DbError`].
pub async fn root(db: impl PgExecutor<'_>) -> Result<Root, DbError> {
    let last = sqlx::query!("select n, hash from audit_chain order by n desc limit 1").fetch_optional(db).await?;
    Ok(last.map_or(Root { n: 0, hash: BEGINNING }, |last| Root { n: last.n, hash: fixed(&last.hash) }))
}

/// A constraint guarantees the length. Any other length would give a wrong hash, which [`follow`] finds.
fn fixed(bytes: &[u8]) -> Hash {
    Hash::try_from(bytes).unwrap_or(BEGINNING)
}

/// Reads rows that are in no link. A row whose time our types cannot read is left out; [`follow`] and [`unlinked`]
/// report it.
macro_rules! select_unlinked {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"
            select id, at, subject, issuer, key_id, session, database_user, act, object, detail::text as "detail!"
            from audit_log a
            where not exists (select from audit_chain c where c.audit_id = a.id)
              and at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
            "# + $tail
            $(, $argument)*
        )
    };
}

/// The rows without a link that were written within the last `within`, at most `limit`.
///
/// # Errors
/// [`DbError`].
pub async fn recent(db: impl PgExecutor<'_>, within: Duration, limit: i64) -> Result<Vec<Row>, DbError> {
    let wait = millis(within);
    let rows =
        select_unlinked!("and at >= now() - $1::bigint * interval '1 millisecond' order by id limit $2", wait, limit,);
    Ok(rows.fetch_all(db).await?)
}

/// The rows without a link whose numbers are at least `from` and below `to`.
///
/// # Errors
/// [`DbError`].
pub async fn numbered(db: impl PgExecutor<'_>, from: i64, to: i64) -> Result<Vec<Row>, DbError> {
    Ok(select_unlinked!("and id >= $1 and id < $2 order by id", from, to).fetch_all(db).await?)
}

/// The largest number of a row; 0 if there is none.
///
/// # Errors
/// [`DbError`].
pub async fn largest(db: impl PgExecutor<'_>) -> Result<i64, DbError> {
    let row = sqlx::query!(r#"select coalesce(max(id), 0) as "id!" from audit_log"#);
    Ok(row.fetch_one(db).await?.id)
}

/// Links these rows in their order and returns the new end of the chain. If another process links at the same time, one
/// of the two fails as a whole, because a link has only one successor.
///
/// # Errors
/// [`DbError`].
pub async fn link(tx: &mut PgConnection, rows: &[Row]) -> Result<Root, DbError> {
    let mut end = root(&mut *tx).await?;
    let (mut numbers, mut befores, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        befores.push(end.hash.to_vec());
        end = Root { n: end.n + 1, hash: row.hash_after(&end.hash) };
        numbers.push(end.n);
        hashes.push(end.hash.to_vec());
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    if ids.is_empty() {
        return Ok(end);
    }
    sqlx::query!(
        r#"
        insert into audit_chain (n, audit_id, prev_hash, hash)
        select * from unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[])
        "#,
        &numbers,
        &ids,
        &befores,
        &hashes,
    )
    .execute(tx)
    .await?;
    Ok(end)
}

/// The numbers (at least `from`, below `to`) of rows that are in no link although they are older than `age`. A row
/// dated more than a day ahead counts too.
///
/// # Errors
/// [`DbError`].
pub async fn unlinked(db: impl PgExecutor<'_>, from: i64, to: i64, age: Duration) -> Result<Vec<i64>, DbError> {
    Ok(sqlx::query_scalar!(
        r#"
        select id from audit_log a
        where id >= $1 and id < $2
          and not at between now() - $3::bigint * interval '1 millisecond' and now() + interval '1 day'
          and not exists (select from audit_chain c where c.audit_id = a.id)
        order by id
        "#,
        from,
        to,
        millis(age),
    )
    .fetch_all(db)
    .await?)
}

/// The number of a link below 1. The chain counts from 1, so such a link is not part of it, but it would hide the row
/// that it names.
///
/// # Errors
/// [`DbError`].
pub async fn stray_link(db: impl PgExecutor<'_>) -> Result<Option<i64>, DbError> {
    let found = sqlx::query!("select n from audit_chain where n < 1 order by n desc limit 1");
    Ok(found.fetch_optional(db).await?.map(|link| link.n))
}

/// The first place where the chain is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A link number is missing.
    #[error("link {0} is gone")]
    LinkGone(i64),
    /// A link names a row that does not exist.
    #[error("row {row} of link {n} is gone")]
    RowGone {
        /// The link.
        n: i64,
        /// The row.
        row: i64,
    },
    /// A link does not hold the hash of the link before it.
    #[error("link {0} does not follow the link before it")]
    NotLinked(i64),
    /// The hash of a link does not match its row.
    #[error("row {row}, or its link {n}, was changed")]
    Changed {
        /// The link.
        n: i64,
        /// The row.
        row: i64,
    },
}

/// Checks the chain after `from`, at most `limit` links. Returns the last link checked; `from` itself if nothing
/// follows.
///
/// # Errors
/// [`NotDone`], with the first [`Fault`].
pub async fn follow(db: impl PgExecutor<'_>, from: Root, limit: i64) -> Result<Root, NotDone<Fault>> {
    let links = sqlx::query!(
        r#"
        select c.n, c.audit_id, c.prev_hash, c.hash,
          a.id as "id?",
          case when a.at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z' then a.at end as at,
          a.subject as "subject?", a.issuer, a.key_id, a.session,
          a.database_user as "database_user?", a.act as "act?", a.object as "object?", a.detail::text as "detail?"
        from audit_chain c left join audit_log a on a.id = c.audit_id
        where c.n > $1 order by c.n limit $2
        "#,
        from.n,
        limit,
    );
    let mut end = from;
    for link in links.fetch_all(db).await.map_err(DbError::from)? {
        let (n, row) = (link.n, link.audit_id);
        if n != end.n + 1 {
            return Err(NotDone::Refused(Fault::LinkGone(end.n + 1)));
        }
        if link.id.is_none() {
            return Err(NotDone::Refused(Fault::RowGone { n, row }));
        }
        let held = || {
            Some(Row {
                id: link.id?,
                at: link.at?,
                subject: link.subject?,
                issuer: link.issuer,
                key_id: link.key_id,
                session: link.session,
                database_user: link.database_user?,
                act: link.act?,
                object: link.object?,
                detail: link.detail?,
            })
        };
        // A row with a time that our types cannot read was never linked with that time.
        let Some(held) = held() else { return Err(NotDone::Refused(Fault::Changed { n, row })) };
        if link.prev_hash != end.hash {
            return Err(NotDone::Refused(Fault::NotLinked(n)));
        }
        let hash = held.hash_after(&end.hash);
        if link.hash != hash {
            return Err(NotDone::Refused(Fault::Changed { n, row }));
        }
        end = Root { n, hash };
    }
    Ok(end)
}

/// The newest acts, newest first; only those on `object` if it is given.
///
/// # Errors
/// [`DbError`].
pub async fn newest(db: impl PgExecutor<'_>, object: Option<&str>, limit: i64) -> Result<Vec<Row>, DbError> {
    Ok(sqlx::query_as!(
        Row,
        r#"
        select id, at, subject, issuer, key_id, session, database_user, act, object, detail::text as "detail!"
        from audit_log
        where ($1::text is null or object = $1)
          and at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
        order by id desc limit $2
        "#,
        object,
        limit,
    )
    .fetch_all(db)
    .await?)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn row() -> Row {
        Row {
            id: 7,
            at: datetime!(2026-01-05 10:21:08.123456 UTC),
            subject: "alice".to_owned(),
            issuer: None,
            key_id: None,
            session: None,
            database_user: "payment_api".to_owned(),
            act: "case.confirmed".to_owned(),
            object: "case:1".to_owned(),
            detail: "{}".to_owned(),
        }
    }

    /// If this hash changes, every existing chain breaks.
    #[test]
    fn the_hash_stays_what_it_is() {
        assert_eq!(
            hex(&row().hash_after(&BEGINNING)),
            "bc19ef34ad4b726739bb4039e41580b408eccd338bc07b1784fe702e6c2bc16a"
        );
    }

    #[test]
    fn a_root_is_read_as_it_is_noted() {
        let root = Root { n: 12, hash: row().hash_after(&BEGINNING) };
        assert_eq!(root.to_string().parse(), Ok(root));
        let digits = "0".repeat(64);
        for text in [
            "",
            "1",
            "1:",
            ":00",
            &format!("0:{digits}"),
            &format!("-1:{digits}"),
            &format!("1:{digits}0"),
            &format!("1:+{}", &digits[1..]),
            "1:é",
        ] {
            assert!(text.parse::<Root>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_value_counts_and_so_does_its_place() {
        let change = |change: fn(&mut Row)| {
            let mut row = row();
            change(&mut row);
            row.hash_after(&BEGINNING)
        };
        let all = [
            change(|_| {}),
            change(|row| row.id = 8),
            change(|row| row.at += Duration::microseconds(1)),
            change(|row| row.subject = "bob".to_owned()),
            change(|row| row.issuer = Some(String::new())),
            change(|row| row.key_id = Some(String::new())),
            change(|row| row.session = Some(String::new())),
            change(|row| row.database_user = "payment_ctl".to_owned()),
            change(|row| row.act = "case.proposed".to_owned()),
            change(|row| row.object = "case:2".to_owned()),
            change(|row| row.detail = "{ }".to_owned()),
            // The same letters, cut in another place.
            change(|row| (row.act, row.object) = ("case.confirmedc".to_owned(), "ase:1".to_owned())),
            row().hash_after(&[1; SHA256_OUTPUT_LEN]),
        ];
        let different: std::collections::HashSet<Hash> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
