//! Servers that run as long as one command.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    apps,
    rundir::{self, Lock},
    servers::{Kind, Set, Source, Start, Stop},
    ui::say,
};

/// Whose servers a command uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// The command's own: started empty, removed afterwards.
    Own,
    /// Those of `cargo xtask up`, started if necessary and left running.
    OfUp,
}

/// Servers that are stopped when this value is dropped, unless they belong to `up`.
#[derive(Debug)]
pub struct Running {
    /// The servers.
    pub set: Set,
    whose: Servers,
    keeps_logs: bool,
    _owner: Option<Lock>,
}

impl Running {
    /// Starts servers for a command called `purpose`.
    pub fn up(purpose: &str, whose: Servers, kinds: &[Kind], source: &Source) -> Result<Running> {
        let (dir, owner, start) = match whose {
            Servers::OfUp => (rundir::for_purpose("up")?, None, Start::Reuse),
            Servers::Own => {
                let dir = rundir::for_purpose(purpose)?;
                let owner = Lock::own(&dir)?;
                (dir, Some(owner), Start::Fresh)
            }
        };
        if owner.is_some() {
            apps::stop_left_behind(&dir)?;
        }
        let set = Set::up(&dir, start, kinds, source)?;
        say("servers", format_args!("all ready; their logs are in {}", dir.join("logs").display()));
        Ok(Running { set, whose, keeps_logs: false, _owner: owner })
    }

    /// Keeps the folder after the servers are stopped, so that a person can read the logs.
    pub fn keep_logs(&mut self) {
        self.keeps_logs = true;
    }

    /// All went well: the logs are not needed.
    pub fn forget_logs(&mut self) {
        self.keeps_logs = false;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.whose == Servers::OfUp {
            return;
        }
        let stopped = self.set.stop_all(Stop::Discard);
        let removed = if self.keeps_logs { Ok(()) } else { self.set.remove() };
        if let Err(error) = stopped.and(removed) {
            say("servers", format_args!("could not be cleared away: {error:#}"));
        }
    }
}

/// The folders of this checkout in which a killed run may have left something: those without an owner now. The
/// locks prevent other runs from starting there in the meantime.
pub fn abandoned() -> Result<Vec<(PathBuf, Lock)>> {
    let up = rundir::for_purpose("up")?;
    let base = up.parent().unwrap_or(&up);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base)? {
        let dir = entry?.path();
        if dir != up
            && is_set(&dir)
            && let Ok(lock) = Lock::own(&dir)
        {
            found.push((dir, lock));
        }
    }
    Ok(found)
}

fn is_set(dir: &Path) -> bool {
    Set::open(dir).is_ok()
}
