//! Private files, written in one step, and folders that are removed.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, fchown},
    path::Path,
};

use anyhow::{Context, Result};

/// Writes a file that only its owner may read, atomically: a reader or a crash never sees half of it.
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
        // Uses the open file, not the path: the other account may own the folder and could put a link there.
        fchown(&file, Some(user), Some(group)).with_context(|| format!("could not give away {}", path.display()))?;
    }
    fs::rename(&partial, path).with_context(|| format!("could not write {}", path.display()))
}

/// Removes a folder and everything in it, if it exists.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn a_private_file_is_readable_by_its_owner_only() {
        let dir = env::temp_dir().join(format!("xtask-private-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("env");
        write_private(&file, "A=1\n").unwrap();
        write_private(&file, "A=2\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "A=2\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
    }
}
