//! The folder for a checkout's running servers: one folder in the temporary folder, named after the checkout and
//! the user, so that two checkouts (or two users) never collide.

use std::{
    env, fs,
    fs::File,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::user::RunAs;

/// The folder of one purpose (`up`, `test`, `demo` …) of this checkout; it is created if necessary.
pub fn for_purpose(purpose: &str) -> Result<PathBuf> {
    let dir = base()?.join(purpose);
    claim(&dir)?;
    Ok(dir)
}

/// The root of the checkout this tool was built from.
pub fn checkout() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_path_buf()
}

fn base() -> Result<PathBuf> {
    let run_as = RunAs::choose()?;
    let roots = [env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
    let Some(root) = roots.iter().find(|root| root.is_dir() && run_as.can_use(root)) else {
        bail!("no temporary folder that {} may enter; set TMPDIR to one", run_as.name);
    };
    let uid = rustix::process::geteuid().as_raw();
    let base = root.join(format!("payment-{uid}-{}", path_hash(&checkout())));
    claim(&base)?;
    Ok(base)
}

/// Creates `dir`, or verifies that only we may write to an existing one: in a shared temporary folder, another user
/// could have created it.
pub fn claim(dir: &Path) -> Result<()> {
    // Root's servers run as another user, who must be able to pass through the folder but not to list it.
    let mode = if crate::user::is_root() { 0o711 } else { 0o700 };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(|| format!("could not create {}", parent.display()))?;
    }
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| format!("could not create {}", dir.display()))?,
    }
    let found = fs::symlink_metadata(dir)?;
    ensure!(found.is_dir(), "{} exists and is not a folder", dir.display());
    let ours = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    ensure!(ours, "{} exists but others own it or may write to it: remove it or choose another --dir", dir.display());
    let run_as = RunAs::choose()?;
    ensure!(
        run_as.can_use(dir),
        "{} runs the servers and cannot enter {}: choose a --dir whose parents everyone may pass through",
        run_as.name,
        dir.display()
    );
    Ok(())
}

/// A lock that is released when its process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock; for short changes of the server records.
    pub fn wait(dir: &Path) -> Result<Lock> {
        let file = lock_file(&dir.join("state.lock"))?;
        flock(&file, FlockOperation::LockExclusive).context("could not lock the folder of the servers")?;
        Ok(Lock { _file: file })
    }

    /// Locks the folder for the whole run of a command, or fails if another run holds it.
    pub fn own(dir: &Path) -> Result<Lock> {
        let path = dir.join("owner.lock");
        let mut file = lock_file(&path)?;
        let is_taken = || flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
        // It tries several times: a child of the previous owner can hold the lock until it executes its program.
        if (0..20).all(|_| is_taken() && patience()) {
            let owner = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another run of this checkout is using {} (process {}): wait for it or stop it",
                dir.display(),
                owner.trim()
            );
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Lock { _file: file })
    }
}

/// Always true, after a short pause.
fn patience() -> bool {
    std::thread::sleep(std::time::Duration::from_millis(25));
    true
}

fn lock_file(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("could not open {}", path.display()))
}

/// Twelve hex digits that are the same for a path in every run (FNV-1a).
pub fn path_hash(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")[4..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_hash_tells_paths_apart_and_never_changes() {
        assert_eq!(path_hash(Path::new("")), "9ce484222325");
        assert_eq!(path_hash(Path::new("/a")).len(), 12);
        assert_ne!(path_hash(Path::new("/home/a/payment")), path_hash(Path::new("/home/b/payment")));
        assert_eq!(path_hash(Path::new("/home/a/payment")), path_hash(Path::new("/home/a/payment")));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = scratch("claim");
        claim(&dir).unwrap();
        claim(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(claim(&dir).unwrap_err().to_string().contains("others own it or may write to it"));
        fs::remove_dir(&dir).unwrap();
        std::os::unix::fs::symlink("/", &dir).unwrap();
        assert!(claim(&dir).unwrap_err().to_string().contains("not a folder"));
        fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let dir = scratch("owner");
        claim(&dir).unwrap();
        let first = Lock::own(&dir).unwrap();
        assert!(Lock::own(&dir).unwrap_err().to_string().contains(&std::process::id().to_string()));
        drop(first);
        Lock::own(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
