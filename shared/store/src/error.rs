//! Database errors.

use crate::stale;

/// A failed statement, classified by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The server is down, starting, or not usable (no free connection, a missing permission or table, a failing disk).
    /// Wait until a person has fixed it, then repeat. The rows are not the cause.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// A conflict with another transaction: repeat the whole transaction.
    #[error("another transaction was in the way")]
    Again(#[source] sqlx::Error),
    /// Another order of the purchase is not closed, so there can be no other one now.
    #[error("another order of the purchase is not closed")]
    PurchaseTaken(#[source] sqlx::Error),
    /// A constraint refused the row.
    #[error("constraint {0} refused the row")]
    Constraint(String),
    /// A value that the column cannot hold.
    #[error("the database cannot hold a value")]
    Unfit(#[source] sqlx::Error),
    /// A row holds a value that our types refuse.
    #[error("column {column} of {table}, row {row}: our types refuse its value")]
    Corrupt {
        /// The table, or `a query` for a query that does not read whole rows.
        table: &'static str,
        /// The name of the column; its place from 0 where the query is not known.
        column: String,
        /// The key by which the row was read.
        row: String,
        /// The error of the type.
        #[source]
        source: sqlx::error::BoxDynError,
    },
    /// The row was not in the state that the statement names.
    #[error("the row has left the expected state")]
    Moved,
    /// Any other error. The cause is unknown, so the caller must not discard a row because of it.
    #[error("the statement failed")]
    Failed(#[source] sqlx::Error),
}

impl DbError {
    /// `Ok` when exactly `expected` rows were touched.
    ///
    /// # Errors
    /// [`DbError::Moved`].
    pub fn expect_rows(touched: u64, expected: usize) -> Result<(), DbError> {
        if touched == expected as u64 { Ok(()) } else { Err(DbError::Moved) }
    }

    /// Whether the rows themselves are the cause. A repeat cannot help these rows; other rows may succeed.
    pub fn blames_the_rows(&self) -> bool {
        matches!(self, DbError::Constraint(_) | DbError::Unfit(_) | DbError::Corrupt { .. } | DbError::Moved)
    }

    /// Whether a lock wait (55P03) or a statement (57014) timed out. An immediate repeat would only wait again.
    pub fn ran_out_of_time(&self) -> bool {
        match self {
            DbError::Again(sqlx::Error::Database(refusal)) => {
                matches!(refusal.code().as_deref(), Some("55P03" | "57014"))
            }
            _ => false,
        }
    }
}

/// Why work inside the caller's transaction was not done.
#[derive(Debug, thiserror::Error)]
pub enum NotDone<R: std::error::Error + 'static> {
    /// A rule refused it. The transaction is usable.
    #[error(transparent)]
    Refused(R),
    /// The database failed; the caller rolls back.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl<R: std::error::Error + 'static> NotDone<R> {
    /// The refusal, for a caller that continues after one.
    ///
    /// # Errors
    /// The [`DbError`], if the database failed.
    pub fn refusal(self) -> Result<R, DbError> {
        match self {
            NotDone::Refused(refusal) => Ok(refusal),
            NotDone::Db(error) => Err(error),
        }
    }
}

/// Classes of error codes that are about the environment and not about a row: connection, login, missing database or
/// schema, missing permission, table or column (a deployment that is not complete), resources, operator actions, disk,
/// configuration, server defects.
const SURROUNDINGS: [&str; 10] = ["08", "28", "3D", "3F", "42", "53", "57", "58", "F0", "XX"];
/// Single codes of the same sort. 25006: after a failover we are on a replica; 25P03: idle in transaction, the connection is
/// dead; 26000: a prepared statement that a pooler does not know.
const SURROUNDINGS_ALONE: [&str; 4] = ["25006", "25P03", "26000", "55000"];
/// The indexes that let a purchase have one order that is not closed.
const ONE_ORDER: [&str; 2] = ["payment_orders_purchase_by_number", "payment_orders_purchase_by_offer"];
/// A plan from before a migration. Of the same sort, and the next connection has none.
const STALE_PLAN: &str = "0A000";

/// Error codes: see PostgreSQL, appendix "Error Codes". Of the other classes, 22 is about a value and 23 about a
/// constraint.
impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> DbError {
        match error {
            sqlx::Error::ColumnDecode { index, source } => {
                DbError::Corrupt { table: "a query", column: index, row: "unknown".to_owned(), source }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_) => DbError::Unavailable(error),
            sqlx::Error::Encode(_) => DbError::Unfit(error),
            sqlx::Error::Database(ref refusal) => match refusal.code().as_deref() {
                Some(STALE_PLAN) => {
                    stale::met();
                    DbError::Unavailable(error)
                }
                Some("40001" | "40P01" | "55P03" | "57014") => DbError::Again(error),
                Some("23505") if refusal.constraint().is_some_and(|name| ONE_ORDER.contains(&name)) => {
                    DbError::PurchaseTaken(error)
                }
                Some(code) if code.starts_with("23") => {
                    DbError::Constraint(refusal.constraint().unwrap_or("unnamed").to_owned())
                }
                Some(code) if code.starts_with("22") => DbError::Unfit(error),
                Some(code)
                    if SURROUNDINGS.iter().any(|class| code.starts_with(class))
                        || SURROUNDINGS_ALONE.contains(&code) =>
                {
                    DbError::Unavailable(error)
                }
                _ => DbError::Failed(error),
            },
            other => DbError::Failed(other),
        }
    }
}
