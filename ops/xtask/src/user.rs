//! The account that runs the servers: the current user, or `nobody` when this tool runs as root.
//!
//! PostgreSQL refuses to run as root, and the others should not either. Unlike the packages' users, `nobody` owns
//! no data of an installed server.

use std::{
    fs,
    os::unix::{
        fs::{DirBuilderExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The account of the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// Its name; it does not matter when it is the current user.
    pub name: String,
    /// The user and group to change to; `None` to stay the current user.
    pub ids: Option<(u32, u32)>,
}

impl RunAs {
    /// The current user, or `nobody` for root.
    pub fn choose() -> Result<RunAs> {
        if !is_root() {
            return Ok(RunAs::ourselves());
        }
        let passwd = fs::read_to_string("/etc/passwd").context("could not read /etc/passwd")?;
        let Some(ids) = ids_of("nobody", &passwd) else {
            bail!(
                "the servers must not run as root, and there is no user `nobody` to run them as: run as another user"
            );
        };
        Ok(RunAs { name: "nobody".into(), ids: Some(ids) })
    }

    /// The user who runs this tool.
    pub fn ourselves() -> RunAs {
        RunAs { name: "this user".into(), ids: None }
    }

    /// Makes the command run under this account, without root's groups.
    pub fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
    }

    /// Creates a folder, in one of ours, that only this account may enter.
    pub fn create_dir(&self, dir: &Path) -> Result<()> {
        let failed = || format!("could not create {} for {}", dir.display(), self.name);
        fs::DirBuilder::new().mode(0o700).create(dir).with_context(failed)?;
        if let Some((uid, gid)) = self.ids {
            chown(dir, Some(uid), Some(gid)).with_context(failed)?;
        }
        Ok(())
    }

    /// Writes a file that only this account may read.
    pub fn write(&self, file: &Path, text: &str) -> Result<()> {
        crate::files::write_private_for(self.ids, file, text)
    }

    /// Whether this account can reach and enter or execute `path`. The kernel decides this; we do not compute it.
    pub fn can_use(&self, path: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg("-x").arg(path).stdin(Stdio::null()).current_dir("/");
        self.apply(&mut test);
        test.status().is_ok_and(|status| status.success())
    }
}

/// Whether this tool runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ids_of(user: &str, passwd: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::ids_of;

    #[test]
    fn ids_are_read_by_the_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nnobody2:x:7:7::/:\nnobody:x:65534:65533:nobody:/nonexistent:/bin/false\n";
        assert_eq!(ids_of("nobody", passwd), Some((65534, 65533)));
        assert_eq!(ids_of("nob", passwd), None);
        assert_eq!(ids_of("x", "x:y"), None);
    }
}
