//! Orders and refunds as files for the finance department: CSV or xlsx, with the filters of the lists.
//!
//! An export is never cut silently: above [`MOST_ROWS`] it is an error that names the number of rows. It reads one snapshot,
//! on a connection of its own, page by page, and each page goes to the disk at once, so memory stays small. The database
//! adds up the same snapshot. The rows are added up while they are written, and a difference fails the export.
//!
//! Reading order: [`task`] (what is exported), [`columns`] (heads and cells), [`cell`] (what a spreadsheet must not take for
//! something else), [`sums`], [`sheet`] (the two formats), [`mod@write`] (rows to a file), [`mod@make`] (one export from the
//! database to the file), [`folder`] (where files lie), [`desk`] (the exports of a process, each for the caller that made it).

pub mod cell;
pub mod columns;
pub mod desk;
mod error;
pub mod folder;
pub mod make;
pub mod sheet;
pub mod sums;
pub mod task;
mod words;
pub mod write;

pub use error::ExportError;
pub use make::make;
pub use task::{Format, Kind, Limits, MOST_ROWS, Selection, Task};
