//! One export, from the database to the file.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::panics::caught_now;
use sqlx::{Connection as _, PgConnection, PgPool};
use store::DbError;
use store::connect::{SNAPSHOT, for_a_long_read};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::error::ExportError;
use crate::sheet::Sealed;
use crate::sums::{About, Sums};
use crate::task::Task;
use crate::write::{Plan, Progress, Step, write};

/// How long an export may take: its snapshot keeps the database from removing old versions of all rows.
const LONGEST_MINUTES: u64 = 30;
/// Pages that wait for the disk.
const AHEAD: usize = 1;

/// An export that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The file.
    pub sealed: Sealed,
    /// The sums of its rows.
    pub sums: Sums,
}

/// Makes one export on a connection of its own beside the pool. `path` must not exist; after an error it does not exist.
///
/// # Errors
/// [`ExportError`]. [`ExportError::Cancelled`] after `stop`.
pub async fn make(
    db: &PgPool,
    task: &Task,
    path: &Path,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Made, ExportError> {
    let halt = stop.child_token();
    // A dropped future ends the writing too.
    let _dropped = halt.clone().drop_guard();
    let (sender, steps) = channel(AHEAD);
    let plan = Plan {
        path: path.to_owned(),
        format: task.format,
        about: About::of(task),
        progress: progress.clone(),
        halt: halt.clone(),
    };
    let mut writing = spawn_blocking(move || {
        // The workbook library panics where its own file cannot be written.
        caught_now(|| write(&plan, steps)).unwrap_or_else(|panic| Err(ExportError::Disk(io::Error::other(panic))))
    });
    let ends_early = ends_early(stop);
    tokio::pin!(ends_early);
    let read = tokio::select! {
        read = read(db, task, progress, sender) => read,
        error = &mut ends_early => Err(error),
    };
    // Without its last step the writing ends with an error.
    let written = tokio::select! {
        written = &mut writing => Ok(written),
        error = &mut ends_early, if read.is_ok() => Err(error),
    };
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            halt.cancel();
            // The file is deleted when the writing has ended.
            let _ = writing.await;
            return Err(error);
        }
    };
    let sealed = written.unwrap_or_else(|panic| Err(ExportError::Disk(io::Error::other(panic))));
    match (read?, sealed) {
        (Some(sums), Ok(sealed)) => Ok(Made { sealed, sums }),
        // The writing may notice the stop first.
        (_, Err(error)) if !stop.is_cancelled() => Err(error),
        _ => Err(ExportError::Cancelled),
    }
}

/// Why an export ends before it is complete.
async fn ends_early(stop: &CancellationToken) -> ExportError {
    tokio::select! {
        () = stop.cancelled() => ExportError::Cancelled,
        () = sleep(Duration::from_secs(60 * LONGEST_MINUTES)) => ExportError::TooLong(LONGEST_MINUTES),
    }
}

/// Reads the snapshot and sends it page by page. `None`: the writing has ended, and says why itself.
async fn read(
    db: &PgPool,
    task: &Task,
    progress: &Progress,
    sender: Sender<Step>,
) -> Result<Option<Sums>, ExportError> {
    let mut connection = for_a_long_read(db).await?;
    let mut tx = connection.begin_with(SNAPSHOT).await.map_err(DbError::from)?;
    let sums = task.selection.sums(&mut tx).await?;
    let (rows, limit) = (sums.total().count, task.limits.rows);
    if rows > limit {
        return Err(ExportError::TooManyRows { rows, limit });
    }
    progress.counted(rows);
    let is_sent = send(&mut tx, task, &sender).await? && sender.send(Step::End(sums.clone())).await.is_ok();
    tx.rollback().await.map_err(DbError::from)?;
    Ok(is_sent.then_some(sums))
}

/// Sends all rows; false: no receiver is left.
async fn send(tx: &mut PgConnection, task: &Task, sender: &Sender<Step>) -> Result<bool, ExportError> {
    let mut place = None;
    loop {
        let page = task.selection.page(tx, place, task.limits.page).await?;
        let is_last = i64::try_from(page.len()).is_ok_and(|rows| rows < task.limits.page);
        place = page.end();
        if !page.is_empty() && sender.send(Step::Rows(page)).await.is_err() {
            return Ok(false);
        }
        if is_last {
            return Ok(true);
        }
    }
}
