//! The exports of a process: each belongs to the caller that made it, runs beside the requests, and ends after a day.
//!
//! State and files are those of this process. Another process knows nothing of them, and neither does this one after a
//! start. Two exports run at once; a third is refused.

mod entry;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runtime::clock::Clock;
use runtime::error_chain::chain;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::DbError;
use store::tables::audit::{self, Act};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::entry::{Ended, Entry};
pub use self::entry::{Known, State};
use crate::error::ExportError;
use crate::folder::Folder;
use crate::make::{Made, make};
use crate::task::{Limits, Selection, Task};
use crate::write::Progress;
use crate::{Format, Kind};

/// Exports that run at once. Each has a connection to the database.
pub const AT_ONCE: u32 = 2;
/// How long a file can be fetched.
pub const STAYS: time::Duration = time::Duration::hours(24);
/// Exports of one caller that are known at once. The oldest goes when it makes another.
const OF_MAKER: usize = 8;
/// How often the desk looks for files whose time is over.
const ROUND: Duration = Duration::from_secs(60);
/// How long a stop waits for the exports in hand.
const ENDS: Duration = Duration::from_secs(10);

/// The exports of this process.
pub struct Desk(Arc<Inner>);

struct Inner {
    db: PgPool,
    clock: Clock,
    limits: Limits,
    folder: Folder,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
    entries: Mutex<HashMap<String, Entry>>,
}

/// An export that a caller wants.
#[derive(Debug, Clone)]
pub struct Order {
    /// The caller, in a form that names no other caller.
    pub maker: String,
    /// The caller's name in the audit log.
    pub subject: String,
    /// Which rows.
    pub selection: Selection,
    /// The format.
    pub format: Format,
    /// The filters as the caller gave them.
    pub filters: Value,
}

/// No more exports run at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{AT_ONCE} exports run already")]
pub struct Busy;

/// Why there is no file to fetch.
#[derive(Debug, thiserror::Error)]
pub enum NoFile {
    /// This process has no such export of this caller.
    #[error("there is no such export")]
    Unknown,
    /// The export runs, or has failed.
    #[error("the export is not complete")]
    NotReady,
    /// The file cannot be read.
    #[error("the file cannot be read")]
    Disk(#[from] io::Error),
}

/// A file to fetch.
#[derive(Debug)]
pub struct Download {
    /// The file, open: it can be read to its end even if it is deleted meanwhile.
    pub file: File,
    /// How many bytes.
    pub bytes: u64,
    /// The name for the caller's disk.
    pub name: String,
    /// The format.
    pub format: Format,
}

impl Desk {
    /// The desk of this process, with files below `directory`. Exports connect to the database of `db`, beside the pool.
    pub fn new(db: PgPool, directory: PathBuf, clock: Clock, limits: Limits) -> Desk {
        Desk(Arc::new(Inner {
            db,
            clock,
            limits,
            folder: Folder::below(directory, clock),
            slots: Arc::new(Semaphore::new(AT_ONCE as usize)),
            stop: CancellationToken::new(),
            entries: Mutex::default(),
        }))
    }

    /// Starts an export and returns its id.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn begin(&self, order: Order) -> Result<String, Busy> {
        let inner = &self.0;
        let slot = inner.slots.clone().try_acquire_owned().map_err(|_| Busy)?;
        self.purge(inner.clock.now());
        let (id, at) = (format!("{:032x}", inner.clock.fresh_bits()), inner.clock.now());
        let Order { maker, subject, selection, format, filters } = order;
        let text = if filters.as_object().is_none_or(|filters| filters.is_empty()) {
            "无".to_owned()
        } else {
            filters.to_string()
        };
        let task = Task { selection, format, filters: text, at, limits: inner.limits };
        let entry = Entry::begun(maker, task.kind(), format, filters, at);
        let progress = entry.progress();
        inner.make_room(entry.maker());
        inner.entries().insert(id.clone(), entry);
        tokio::spawn(inner.clone().run(Running { id: id.clone(), subject, task, progress, _slot: slot }));
        Ok(id)
    }

    /// What is known of an export of this caller; `None`: this process has none of this id.
    pub fn get(&self, id: &str, maker: &str) -> Option<Known> {
        let now = self.0.clock.now();
        let entries = self.0.entries();
        entries.get(id).filter(|entry| entry.is_for(maker, now)).map(Entry::known)
    }

    /// The file of an export of this caller.
    ///
    /// # Errors
    /// [`NoFile`].
    pub fn fetch(&self, id: &str, maker: &str) -> Result<Download, NoFile> {
        let known = self.get(id, maker).ok_or(NoFile::Unknown)?;
        let State::Done { sealed, .. } = &known.state else { return Err(NoFile::NotReady) };
        let file = File::open(self.0.path(id, known.format)?)?;
        let name = known.file_name(id);
        Ok(Download { file, bytes: sealed.bytes, name, format: known.format })
    }

    /// Forgets the exports whose time is over, and deletes their files.
    pub fn purge(&self, now: OffsetDateTime) {
        self.0.forget(|_, entry| entry.is_over(now));
    }

    /// Serves until `stop`: deletes what ended processes left, and files whose time is over. Then stops the exports in
    /// hand and deletes all files, which no caller could name after the next start.
    pub async fn run(&self, stop: CancellationToken) {
        let inner = self.0.clone();
        let opened = tokio::task::spawn_blocking(move || inner.folder.open());
        if let Ok(Err(error)) = opened.await {
            warn!(error = %error, "No export can be made: EXPORT_DIR cannot be used");
        }
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(ROUND) => self.purge(self.0.clock.now()),
            }
        }
        self.close().await;
    }

    /// Stops the exports in hand and deletes all files.
    pub async fn close(&self) {
        self.0.stop.cancel();
        // All slots are free when no export runs.
        let ended = timeout(ENDS, self.0.slots.acquire_many(AT_ONCE)).await;
        if ended.is_err() {
            warn!("An export did not end in time; the next start deletes its file");
        }
        self.0.slots.close();
        self.0.folder.delete();
    }
}

/// An export that runs.
struct Running {
    id: String,
    subject: String,
    task: Task,
    progress: Arc<Progress>,
    _slot: OwnedSemaphorePermit,
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &str, format: Format) -> io::Result<PathBuf> {
        Ok(self.folder.open()?.join(format!("{id}.{format}")))
    }

    async fn run(self: Arc<Inner>, running: Running) {
        let kind = running.task.kind();
        let ended = self.finish(&running).await;
        let now = self.clock.now();
        let outcome = match &ended {
            Ok(made) => {
                info!(kind = %kind, bytes = made.sealed.bytes, "Exported {} {kind}", made.sums.total().count);
                "done"
            }
            Err(error) => {
                warn!(kind = %kind, error = chain(error), "An export of {kind} failed");
                error.code()
            }
        };
        metrics::counter!("exports_total", "kind" => kind.as_str(), "outcome" => outcome).increment(1);
        if let Some(entry) = self.entries().get_mut(&running.id) {
            entry.end(Ended::of(ended), now);
        }
    }

    /// Makes the file, then records it. A file that is not recorded is deleted.
    async fn finish(&self, running: &Running) -> Result<Made, ExportError> {
        let Running { id, subject, task, progress, .. } = running;
        let path = self.path(id, task.format)?;
        let made = make(&self.db, task, &path, progress, &self.stop).await?;
        let known = self.entries().get(id).map(|entry| entry.detail(&made));
        let recorded = self.record(id, subject, &known.unwrap_or_default()).await;
        if let Err(error) = recorded {
            delete(&path);
            return Err(ExportError::Audit(error));
        }
        Ok(made)
    }

    async fn record(&self, id: &str, subject: &str, detail: &Value) -> Result<(), DbError> {
        let act = Act { subject, act: MADE, object: format!("export:{id}"), detail };
        let mut connection = self.db.acquire().await?;
        audit::record(&mut connection, &act).await
    }

    /// Forgets the oldest exports of this caller that do not run, so that it has room for another.
    fn make_room(&self, maker: &str) {
        let mut ended: Vec<(OffsetDateTime, String)> = {
            let entries = self.entries();
            let of_maker = entries.iter().filter(|(_, entry)| entry.maker() == maker && !entry.runs());
            of_maker.map(|(id, entry)| (entry.at(), id.clone())).collect()
        };
        ended.sort_unstable();
        let spare = (ended.len() + 1).saturating_sub(OF_MAKER);
        let oldest = &ended[..spare];
        self.forget(|id, _| oldest.iter().any(|(_, old)| old == id));
    }

    fn forget(&self, which: impl Fn(&str, &Entry) -> bool) {
        let gone: Vec<(String, Format)> = {
            let mut entries = self.entries();
            entries.extract_if(|id, entry| which(id, entry)).map(|(id, entry)| (id, entry.format())).collect()
        };
        for (id, format) in gone {
            if let Ok(path) = self.path(&id, format) {
                delete(&path);
            }
        }
    }
}

/// The act of the audit log.
pub const MADE: &str = "export.made";

/// What the audit log says of an export.
pub fn detail(kind: Kind, format: Format, filters: &Value, made: &Made) -> Value {
    json!({
        "kind": kind, "format": format, "filters": filters, "rows": made.sums.total().count, "sha256": made.sealed.sha256,
        "bytes": made.sealed.bytes,
    })
}

fn delete(path: &std::path::Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(file = %path.display(), error = %error, "A file of an export was not deleted");
        }
        _ => {}
    }
}
