//! Checks whether a database and this build fit each other, and migrates the database.
//!
//! A build can run on a newer database, unless a migration that it does not know has removed something that it uses.
//! The name of such a migration states which migration a build must know to use the database afterwards
//! (`ops/decisions/0013`).

use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection, PgExecutor};
use tracing::info;

use crate::error::DbError;

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// The reason why a database does not fit this build.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database lacks a migration that this build needs.
    #[error("the database lacks migration {0}")]
    Missing(i64),
    /// A migration has removed something that this build still uses.
    #[error(
        "the database has migration {migration}, after which only builds that know migration {needs} can use it; \
         this build knows none after {newest}: run a newer release"
    )]
    TooOld {
        /// The migration that removed it.
        migration: i64,
        /// The migration that a build must know.
        needs: i64,
        /// The newest migration that this build knows.
        newest: i64,
    },
    /// The database has a migration that this build does not know, but that is older than some that it knows: the
    /// database belongs to something else.
    #[error("the database has migration {0}, which this build does not know and which is older than its own")]
    Unknown(i64),
    /// The migrations could not be read.
    #[error("cannot read the migrations of the database")]
    Db(#[from] DbError),
}

/// The reason why a database was not migrated to the schema of this build.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database is not for this build. It was not changed.
    #[error("the database is not for this build, and was left as it is")]
    Schema(#[from] SchemaError),
    /// The database could not be reached, or a migration failed. Migrations that succeeded before stay applied.
    #[error("the migrations did not all succeed")]
    Failed(#[from] MigrateError),
}

/// A migration as the database records it.
#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    /// The rest of its file name, with spaces between the words.
    description: String,
}

impl Applied {
    /// The migration that a build must know to use the database after this one; `None`: this one removes nothing.
    ///
    /// If the name starts with `contract` and names no migration, a build must know this migration itself.
    fn needs(&self) -> Option<i64> {
        let (word, rest) = self.description.split_once(' ').unwrap_or((&self.description, ""));
        let from = || rest.strip_prefix("from ")?.split(' ').next()?.parse().ok();
        (word == "contract").then(|| from().unwrap_or(self.version))
    }
}

/// Checks that this build can use the database. Returns how many of its migrations are newer than this build.
///
/// # Errors
/// [`SchemaError`].
pub async fn check_schema(db: impl PgExecutor<'_>) -> Result<usize, SchemaError> {
    let sql = "select version, description from _sqlx_migrations where success order by version";
    let applied: Vec<Applied> = match sqlx::query_as(sql).fetch_all(db).await {
        Ok(applied) => applied,
        // 42P01: there is no such table, so the database was never migrated.
        Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some("42P01") => Vec::new(),
        Err(error) => return Err(DbError::from(error).into()),
    };
    let newer = fits(&applied, &MIGRATOR.iter().map(|migration| migration.version).collect::<Vec<_>>())?;
    if newer > 0 {
        info!(newer, "The database is newer than this build, by {newer} migrations; this build can still use it");
    }
    Ok(newer)
}

/// Check first whether the database is for another build: in that case no migration may run on it.
fn fits(applied: &[Applied], known: &[i64]) -> Result<usize, SchemaError> {
    let newest = known.iter().copied().max().unwrap_or_default();
    let strangers: Vec<&Applied> = applied.iter().filter(|applied| !known.contains(&applied.version)).collect();
    if let Some(old) = strangers.iter().find(|stranger| stranger.version < newest) {
        return Err(SchemaError::Unknown(old.version));
    }
    let beyond = |stranger: &&Applied| Some((stranger.version, stranger.needs().filter(|needs| *needs > newest)?));
    if let Some((migration, needs)) = strangers.iter().find_map(beyond) {
        return Err(SchemaError::TooOld { migration, needs, newest });
    }
    match known.iter().find(|version| applied.iter().all(|applied| applied.version != **version)) {
        Some(missing) => Err(SchemaError::Missing(*missing)),
        None => Ok(strangers.len()),
    }
}

/// Migrates a database to the schema of this build. Returns how many of its migrations are newer than this build. A
/// database that is newer and still fits this build does not change.
///
/// This uses a connection of its own without the pool's timeouts, because building an index can take long. If several
/// processes migrate at once, a lock in the database makes them take turns.
///
/// # Errors
/// [`MigrationError`].
pub async fn migrate(url: &SecretString) -> Result<usize, MigrationError> {
    let mut connection = PgConnection::connect(url.expose_secret()).await.map_err(MigrateError::from)?;
    match check_schema(&mut connection).await {
        Ok(_) | Err(SchemaError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.set_ignore_missing(true).run(&mut connection).await?;
    Ok(check_schema(&mut connection).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database with migrations 1 to 3 and `more`, for a build that knows the first three.
    fn ahead(more: &[(i64, &str)]) -> Result<usize, SchemaError> {
        let own = [(1, "orders"), (2, "callbacks"), (3, "contract from 2 x")];
        let row = |(version, name): &(i64, &str)| Applied { version: *version, description: (*name).to_owned() };
        fits(&own.iter().chain(more).map(row).collect::<Vec<_>>(), &[1, 2, 3])
    }

    #[test]
    fn a_newer_database_fits_unless_it_says_that_this_build_is_too_old() {
        assert_eq!(ahead(&[]).unwrap(), 0);
        assert_eq!(ahead(&[(4, "a column more"), (5, "contractors")]).unwrap(), 2);
        assert_eq!(ahead(&[(4, "contract from 3 drop old")]).unwrap(), 1);
        assert_eq!(ahead(&[(4, "a"), (5, "contract from 0003")]).unwrap(), 2, "as file names write it");
        let needs = |more: &[(i64, &str)]| match ahead(more) {
            Err(SchemaError::TooOld { migration, needs, newest: 3 }) => (migration, needs),
            other => panic!("{other:?}"),
        };
        assert_eq!(needs(&[(4, "a"), (5, "contract from 4 drop old")]), (5, 4));
        for unclear in ["contract", "contract old", "contract from", "contract from old 3", "contract from 3x"] {
            assert_eq!(needs(&[(4, unclear)]), (4, 4), "{unclear}");
        }
        assert!(matches!(ahead(&[(0, "before")]), Err(SchemaError::Unknown(0))));
    }
}
