//! Where the files of a process lie, and how they go away.
//!
//! Each process has a folder of its own below the directory of the setting, and holds a lock in it while it lives. The next
//! process that starts there deletes the folders whose lock is free: their processes have ended, so no caller can name
//! their files any more. A process beside it keeps its files.

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use runtime::clock::Clock;
use tracing::warn;

/// The start of the name of every folder of ours. Nothing else in the directory is touched.
const OURS: &str = "process-";
/// The file that a process locks in its folder, and, in the directory, while it looks around.
const LOCK: &str = "lock";

/// The folder of this process.
#[derive(Debug)]
pub struct Folder {
    directory: PathBuf,
    clock: Clock,
    own: Mutex<Option<Own>>,
}

#[derive(Debug)]
struct Own {
    path: PathBuf,
    /// Held while the process lives.
    _lock: File,
}

impl Folder {
    /// A folder below this directory. Nothing is made before it is opened.
    pub fn below(directory: PathBuf, clock: Clock) -> Folder {
        Folder { directory, clock, own: Mutex::default() }
    }

    /// The path of the folder. Makes it the first time, and then deletes what ended processes left.
    ///
    /// # Errors
    /// The disk's; or the directory belongs to another user or is open to others.
    pub fn open(&self) -> io::Result<PathBuf> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own.as_ref().filter(|own| own.path.is_dir()) {
            return Ok(own.path.clone());
        }
        make(&self.directory, true)?;
        let around = open_lock(&self.directory)?;
        around.lock()?;
        let path = self.directory.join(format!("{OURS}{:032x}", self.clock.fresh_bits()));
        make(&path, false)?;
        if let Err(error) = check(&fs::symlink_metadata(&self.directory)?, &fs::symlink_metadata(&path)?) {
            // Deletes the folder just made, and nothing in it.
            let _ = fs::remove_dir(&path);
            return Err(error);
        }
        delete_ended(&self.directory, &path);
        let lock = open_lock(&path)?;
        lock.lock()?;
        *own = Some(Own { path: path.clone(), _lock: lock });
        Ok(path)
    }

    /// Deletes the folder with all its files.
    pub fn delete(&self) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(own) = own {
            delete_all(&own.path);
        }
    }
}

/// A directory below another user's, or one that others may write, would let them replace our files.
#[cfg(unix)]
fn check(directory: &Metadata, own: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let is_private = directory.is_dir() && directory.uid() == own.uid() && directory.mode() & 0o077 == 0;
    if is_private {
        return Ok(());
    }
    let rule =
        "the directory for exports must belong to this user with mode 0700; name one below it that does not exist yet";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, rule))
}

#[cfg(not(unix))]
fn check(_: &Metadata, _: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Makes a folder that only this user may enter. One that exists is fine if `or_have` says so.
fn make(path: &Path, or_have: bool) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(or_have);
    private(&mut builder);
    builder.create(path)
}

#[cfg(unix)]
fn private(builder: &mut DirBuilder) {
    use std::os::unix::fs::DirBuilderExt as _;
    builder.mode(0o700);
}

#[cfg(not(unix))]
fn private(_: &mut DirBuilder) {}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(folder.join(LOCK))
}

/// Deletes the folders of processes that have ended.
fn delete_ended(directory: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(OURS));
        if !is_ours || path == own || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        // While the directory is locked, no process is between its folder and its lock.
        let lock = File::options().write(true).open(path.join(LOCK));
        let lives = lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
        if !lives {
            delete_all(&path);
        }
    }
}

fn delete_all(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        warn!(file = %path.display(), error = %error, "Exports of an ended process were not deleted");
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory() -> PathBuf {
        std::env::temp_dir().join(format!("exports-{:032x}", Clock::system().fresh_bits()))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_start_deletes_what_ended_processes_left_and_nothing_else() {
        let directory = directory();
        let folder = || Folder::below(directory.join("a/b"), Clock::system());
        let (ended, lives) = (folder(), folder());
        let (left, kept) = (ended.open().unwrap(), lives.open().unwrap());
        assert_eq!((mode(&directory.join("a/b")), mode(&left)), (0o700, 0o700));
        for path in [&left, &kept] {
            fs::write(path.join("x.csv"), "rows").unwrap();
        }
        let foreign = directory.join("a/b/reports");
        fs::create_dir(&foreign).unwrap();
        drop(ended);
        let started = folder();
        let own = started.open().unwrap();
        assert!(!left.exists() && kept.join("x.csv").exists() && foreign.exists());
        assert_eq!(started.open().unwrap(), own);
        lives.delete();
        assert!(!kept.exists() && own.exists());
        // Another hand emptied the directory: the next export makes its folder again.
        fs::remove_dir_all(&own).unwrap();
        assert!(started.open().unwrap().exists());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused_and_stays_as_it_is() {
        let directory = directory();
        fs::create_dir(&directory).unwrap();
        for wrong in [0o755, 0o770, 0o777] {
            fs::set_permissions(&directory, PermissionsExt::from_mode(wrong)).unwrap();
            let refused = Folder::below(directory.clone(), Clock::system()).open().unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(mode(&directory), wrong);
        }
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "a file").unwrap();
        assert!(Folder::below(directory.clone(), Clock::system()).open().is_err());
        fs::remove_file(&directory).unwrap();
    }
}
