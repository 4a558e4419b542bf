//! Whether a database and this build fit each other, and how they come to.
//!
//! A build runs on a database that is newer than itself, as long as no migration that it does not know has taken away what
//! it uses: such a migration says in its name from which one on a build can read the database after it
//! (`ops/decisions/0013`).

use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection, PgExecutor};
use tracing::info;

use crate::error::DbError;

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Why a database does not fit this build.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Lacks migrations that this build needs.
    #[error("the database lacks migration {0}; run `payment-api migrate` before the roll-out")]
    Missing(i64),
    /// Has taken away what builds as old as this one use.
    #[error(
        "the database has migration {migration}, after which only builds that know migration {needs} can use it; \
         this build knows none after {newest}: run a newer release"
    )]
    TooOld {
        /// The migration that took it away.
        migration: i64,
        /// The one that a build has to know.
        needs: i64,
        /// The last one that this build knows.
        newest: i64,
    },
    /// Has a migration that this build does not know, older than some that it knows: a database of something else.
    #[error("the database has migration {0}, which this build does not know and which is older than its own")]
    Unknown(i64),
    /// Could not be asked.
    #[error("cannot read the migrations of the database")]
    Db(#[from] DbError),
}

/// Why a database was not brought to the schema of this build.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// It is not for this build, and was left as it is.
    #[error("the database is not for this build, and was left as it is")]
    Schema(#[from] SchemaError),
    /// It could not be reached, or a migration failed; the others stay as they were.
    #[error("the migrations did not all succeed")]
    Failed(#[from] MigrateError),
}

/// A migration as the database remembers it.
#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    /// The rest of its name, with spaces between the words.
    description: String,
}

impl Applied {
    /// The migration that a build has to know to use the database after this one; `None`: it takes nothing away.
    ///
    /// A name that says that it contracts, and not for whom, is for those who know it.
    fn needs(&self) -> Option<i64> {
        let (word, rest) = self.description.split_once(' ').unwrap_or((&self.description, ""));
        let from = || rest.strip_prefix("from ")?.split(' ').next()?.parse().ok();
        (word == "contract").then(|| from().unwrap_or(self.version))
    }
}

/// Checks that this build can use the database; how many migrations it has that are newer than this build.
///
/// # Errors
/// [`SchemaError`].
pub async fn check_schema(db: impl PgExecutor<'_>) -> Result<usize, SchemaError> {
    let sql = "select version, description from _sqlx_migrations where success order by version";
    let applied: Vec<Applied> = match sqlx::query_as(sql).fetch_all(db).await {
        Ok(applied) => applied,
        // 42P01: no such table, so nothing was ever migrated.
        Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some("42P01") => Vec::new(),
        Err(error) => return Err(DbError::from(error).into()),
    };
    let newer = fits(&applied, &MIGRATOR.iter().map(|migration| migration.version).collect::<Vec<_>>())?;
    if newer > 0 {
        info!(newer, "The database is newer than this build, by {newer} migrations that leave it alone");
    }
    Ok(newer)
}

/// What is not for this build comes first: then no migration of it may run.
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

/// Brings a database to the schema of this build; how many migrations it has then that are newer than this build. A
/// database that is newer and still for this build is left as it is.
///
/// A connection of its own without the pool's time-outs: building an index takes as long as it takes. Several at once
/// take turns, by a lock on the database.
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

    /// A database with migrations 1 to 3 and these, for a build that knows the three.
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
