//! Where a checkout keeps its running servers: one folder in the temporary folder, named after the
//! checkout and the user, so that two checkouts (or two users) never meet.

use std::{
    env, fs,
    fs::File,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::user::RunAs;

/// The folder of one purpose (`up`, `test`, `demo` …) of this checkout, created if need be.
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

/// Creates `dir`, or makes sure that an existing one is ours alone to write to: in a shared temporary
/// folder somebody else could have put it there.
pub fn claim(dir: &Path) -> Result<()> {
    // Root's servers run as another user, who must be able to pass through but not to look around.
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

/// A lock that ends with the process that holds it, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for its turn; for short changes of what is recorded about servers.
    pub fn wait(dir: &Path) -> Result<Lock> {
        let file = lock_file(&dir.join("state.lock"))?;
        flock(&file, FlockOperation::LockExclusive).context("could not lock the folder of the servers")?;
        Ok(Lock { _file: file })
    }

    /// Takes the folder for the whole run of a command, or says that another run has it.
    pub fn own(dir: &Path) -> Result<Lock> {
        let path = dir.join("owner.lock");
        let mut file = lock_file(&path)?;
        let is_taken = || flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
        // More than one look: a child of an owner that has let go may hold on until it runs its program.
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

/// Always true, a little later.
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

/// Writes a file that only its owner may read, in one step: a reader or a crash never sees half of it.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    write_private_for(None, path, text)
}

/// The same for a file that belongs to another account, given by its user and group.
pub fn write_private_for(owner: Option<(u32, u32)>, path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    drop(fs::remove_file(&partial));
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("could not write {}", partial.display()))?;
    file.write_all(text.as_bytes())?;
    if let Some((user, group)) = owner {
        // The open file, not the path: the folder may be the other account's, who could put a link there.
        fchown(&file, Some(user), Some(group)).with_context(|| format!("could not give away {}", path.display()))?;
    }
    fs::rename(&partial, path).with_context(|| format!("could not write {}", path.display()))
}

/// Twelve hex digits that stay the same for a path from run to run (FNV-1a).
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

    #[test]
    fn a_private_file_is_readable_by_its_owner_only() {
        let dir = scratch("private");
        claim(&dir).unwrap();
        let file = dir.join("env");
        write_private(&file, "A=1\n").unwrap();
        write_private(&file, "A=2\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "A=2\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
    }
}
