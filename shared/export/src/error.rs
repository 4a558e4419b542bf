//! Why an export failed.

use std::io;

use rust_xlsxwriter::XlsxError;
use store::DbError;

/// Why an export failed. `Display` is for its maker; it reveals no internals.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// More rows match than an export may have. No file is written, because a cut one would look complete.
    #[error("{rows} rows match, and an export has at most {limit}: narrow the filters")]
    TooManyRows {
        /// How many rows match.
        rows: i64,
        /// How many an export may have.
        limit: i64,
    },
    /// The rows do not add up to the sums of the database.
    #[error("the rows that were written do not add up to what the database adds up: {0}")]
    SumsDiffer(String),
    /// The file cannot be written.
    #[error("the file cannot be written: {}", .0.kind())]
    Disk(#[source] io::Error),
    /// A value does not fit into a cell.
    #[error("a value does not fit into a cell of the file")]
    Cell(#[source] XlsxError),
    /// The database failed, or has a value that our types refuse.
    #[error("the database cannot be read")]
    Db(#[from] DbError),
    /// The process stops.
    #[error("the process stopped before the export was done")]
    Cancelled,
    /// The export took too long: its snapshot keeps the database from tidying up.
    #[error("the export took longer than {0} min")]
    TooLong(u64),
    /// The export is complete but could not be recorded in the audit log, so its file was deleted.
    #[error("the export cannot be recorded in the audit log")]
    Audit(#[source] DbError),
}

impl ExportError {
    /// A stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ExportError::TooManyRows { .. } => "too_many_rows",
            ExportError::SumsDiffer(_) => "sums_differ",
            ExportError::Disk(_) => "disk",
            ExportError::Cell(_) => "cell",
            ExportError::Db(_) | ExportError::Audit(_) => "database",
            ExportError::Cancelled => "cancelled",
            ExportError::TooLong(_) => "too_long",
        }
    }
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> ExportError {
        ExportError::Disk(error)
    }
}

impl From<XlsxError> for ExportError {
    fn from(error: XlsxError) -> ExportError {
        match error {
            XlsxError::IoError(error) => ExportError::Disk(error),
            XlsxError::ZipError(error) => ExportError::Disk(io::Error::other(error)),
            other => ExportError::Cell(other),
        }
    }
}

impl From<csv::Error> for ExportError {
    fn from(error: csv::Error) -> ExportError {
        ExportError::Disk(error.into())
    }
}
