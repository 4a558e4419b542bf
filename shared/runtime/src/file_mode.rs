//! Checks who may change a file that the service trusts, and who may read a secret file.

use std::path::Path;

/// Write permission of the group and of others.
const WRITE: u32 = 0o022;
/// Read permission of others. The group may read, because containers use that to give a file to their user.
const READ: u32 = 0o004;

/// Refuses a file that other users may change: a changed address or key decides where money goes. For a link, the
/// target is checked. A missing file passes; the code that reads it reports that.
///
/// # Errors
/// Describes the fault and what to do.
pub fn check(path: &Path) -> Result<(), String> {
    match mode(path) {
        Some(mode) if mode & WRITE != 0 => {
            Err(format!("its group or others may write it (mode {mode:04o}); take that away with `chmod go-w`"))
        }
        _ => Ok(()),
    }
}

/// The warning about a secret that every user of this machine may read. This is not a fault: orchestrators mount
/// secrets with mode 0644, and then the container protects them.
pub fn open_to_all(path: &Path) -> Option<String> {
    let mode = mode(path).filter(|mode| mode & READ != 0)?;
    Some(format!(
        "{} is a secret that every user of this machine may read (mode {mode:04o}); `chmod o-r` where it is not a container's",
        path.display()
    ))
}

#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).ok().map(|known| known.permissions().mode() & 0o7777)
}

#[cfg(not(unix))]
fn mode(_: &Path) -> Option<u32> {
    None
}
