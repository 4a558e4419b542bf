//! Rows to a file, on a thread that may block.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::columns;
use crate::error::ExportError;
use crate::sheet::{Output, Sealed, Sheet};
use crate::sums::{About, Sums};
use crate::task::{Format, Page};

/// What the reader of the database sends.
pub enum Step {
    /// The next rows.
    Rows(Page),
    /// All rows are sent. This is what the database adds up.
    End(Sums),
}

/// How far an export is.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicI64,
    written: AtomicI64,
}

impl Progress {
    /// How many rows it will have; `None`: they are not counted yet.
    pub fn total(&self) -> Option<i64> {
        // Stored as one more, so that 0 rows are known rows.
        Some(self.total.load(Ordering::Relaxed) - 1).filter(|total| *total >= 0)
    }

    /// How many rows are written.
    pub fn written(&self) -> i64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn counted(&self, total: i64) {
        self.total.store(total + 1, Ordering::Relaxed);
    }
}

/// Where the rows go.
pub struct Plan {
    /// The file. It must not exist.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What the sums are about.
    pub about: About,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Ends the writing with an error.
    pub halt: CancellationToken,
}

/// A file that is deleted unless it is finished.
struct Unfinished<'a> {
    path: &'a Path,
    is_done: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            // Nothing to do where that fails: the folder is emptied at the next start.
            let _ = fs::remove_file(self.path);
        }
    }
}

/// Writes the rows to a new file that only this user may read. Any error deletes it.
///
/// # Errors
/// [`ExportError::SumsDiffer`]; [`ExportError::Cancelled`] when the sender ends without [`Step::End`]; others.
pub fn write(plan: &Plan, steps: Receiver<Step>) -> Result<Sealed, ExportError> {
    let file = create(&plan.path)?;
    let mut unfinished = Unfinished { path: &plan.path, is_done: false };
    let sealed = write_to(file, plan, steps)?;
    unfinished.is_done = true;
    Ok(sealed)
}

fn write_to(file: File, plan: &Plan, mut steps: Receiver<Step>) -> Result<Sealed, ExportError> {
    let output = Output::new(file, plan.halt.clone());
    let folder = plan.path.parent().unwrap_or(Path::new("."));
    let mut sheet = Sheet::begin(plan.format, plan.about.kind, output, folder)?;
    let mut sums = Sums::default();
    while let Some(step) = steps.blocking_recv() {
        match step {
            Step::Rows(page) => {
                columns::each(&page, &mut sums, |cells| sheet.row(cells))?;
                plan.progress.written.fetch_add(i64::try_from(page.len()).unwrap_or_default(), Ordering::Relaxed);
            }
            Step::End(expected) => {
                if let Some(difference) = expected.difference(&sums) {
                    return Err(ExportError::SumsDiffer(difference));
                }
                return sheet.finish(&expected.table(&plan.about));
            }
        }
    }
    Err(ExportError::Cancelled)
}

#[cfg(unix)]
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::task::Kind;

    /// Every write to this device fails as on a full disk.
    #[test]
    fn a_full_disk_is_an_error() {
        for format in Format::ALL {
            let about = About { kind: Kind::Orders, at: time::OffsetDateTime::UNIX_EPOCH, filters: String::new() };
            let path = std::env::temp_dir().join("never-made");
            let halt = CancellationToken::new();
            let plan = Plan { path, format: *format, about, progress: Arc::default(), halt };
            let (sender, steps) = channel(1);
            sender.blocking_send(Step::End(Sums::default())).unwrap();
            let full = File::options().write(true).open("/dev/full").unwrap();
            let failed = write_to(full, &plan, steps).unwrap_err();
            let ExportError::Disk(error) = &failed else { panic!("{failed:?}") };
            assert!(format!("{error:?}").contains("StorageFull"), "{error:?}");
        }
    }
}
