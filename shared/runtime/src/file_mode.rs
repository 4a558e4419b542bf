//! Who may change a file that the service trusts, and who may read a secret one.

use std::path::Path;

/// The group and others may write.
const WRITE: u32 = 0o022;
/// Others may read. The group may: that is how a container gives a file to its user.
const READ: u32 = 0o004;

/// Refuses a file that somebody else may change: a changed address or key decides where money goes. A link counts as the file
/// that it leads to; a file that is not there is for the reader to name.
///
/// # Errors
/// What is wrong and what to do.
pub fn check(path: &Path) -> Result<(), String> {
    match mode(path) {
        Some(mode) if mode & WRITE != 0 => {
            Err(format!("its group or others may write it (mode {mode:04o}); take that away with `chmod go-w`"))
        }
        _ => Ok(()),
    }
}

/// What to say of a secret that every user of this machine may read. It is no fault: orchestrators mount secrets with mode
/// 0644, and then the container is the wall.
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
