//! Reloads `gateways.toml` and the key files that it names when they change: completely and without a fault, or not at
//! all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tracing::{error, info};

use crate::accounts::{AccountFault, Entry, Gateways, Table};

/// Identifies a version of a file without reading it: keys stay on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Print {
    path: PathBuf,
    /// `None` while the file does not exist.
    state: Option<[i64; 6]>,
}

impl Print {
    pub(super) fn of(path: &Path) -> Print {
        let state = std::fs::metadata(path).ok().map(|known| state(&known));
        Print { path: path.to_owned(), state }
    }

    fn again(&self) -> Print {
        Print::of(&self.path)
    }
}

/// A replaced file has another inode number; a rewritten file has another time or length.
#[cfg(unix)]
fn state(file: &std::fs::Metadata) -> [i64; 6] {
    use std::os::unix::fs::MetadataExt as _;
    let signed = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
    [signed(file.ino()), signed(file.size()), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]
}

#[cfg(not(unix))]
fn state(file: &std::fs::Metadata) -> [i64; 6] {
    let written = file.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let nanos = written.and_then(|at| i64::try_from(at.as_nanos()).ok()).unwrap_or_default();
    [i64::try_from(file.len()).unwrap_or_default(), nanos, 0, 0, 0, 0]
}

/// Remembers a change until the next check. The files are loaded only if they are unchanged since that check, so a file
/// that is still being written is left alone.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    changed: Option<Vec<Print>>,
}

impl Watch {
    /// Checks every file once. Returns the outcome of the reload, if there was one.
    pub(crate) fn look(&mut self, gateways: &Gateways) -> Option<Result<(), Vec<AccountFault>>> {
        let known = gateways.prints();
        let now: Vec<Print> = known.iter().map(Print::again).collect();
        if now == known {
            self.changed = None;
            return None;
        }
        if self.changed.as_ref() != Some(&now) {
            self.changed = Some(now);
            return None;
        }
        self.changed = None;
        Some(gateways.reload())
    }
}

impl Gateways {
    pub(crate) fn watch(&self) -> Watch {
        Watch::default()
    }

    /// Reloads everything. If anything is wrong, the current accounts stay in force and each fault is logged.
    ///
    /// # Errors
    /// Every fault found, at least one.
    pub fn reload(&self) -> Result<(), Vec<AccountFault>> {
        let outcome = self.read().and_then(|table| {
            let faults = lost(&self.table(), &table);
            if faults.is_empty() { Ok(table) } else { Err(faults) }
        });
        let count = outcome.as_ref().map_or_else(Vec::len, |_| 0);
        metrics::gauge!("gateways_file_faults").set(count as f64);
        let name = if outcome.is_ok() { "taken" } else { "refused" };
        metrics::counter!("gateways_file_reads_total", "outcome" => name).increment(1);
        match outcome {
            Ok(table) => {
                self.put(table);
                info!(accounts = ?self, "The accounts and their keys were reloaded");
                Ok(())
            }
            Err(faults) => {
                for fault in &faults {
                    error!(error = %fault, "The accounts were not reloaded; the known ones stay in use: {fault}");
                }
                Err(faults)
            }
        }
    }
}

/// Changes that a running process refuses: an account that orders may name is gone, has another identity, or has
/// another address.
fn lost(known: &Table, new: &Table) -> Vec<AccountFault> {
    known.entries.iter().filter_map(|entry| lost_entry(entry, new)).collect()
}

fn list(texts: &BTreeSet<String>) -> String {
    texts.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn lost_entry(entry: &Entry, new: &Table) -> Option<AccountFault> {
    let (method, name) = (entry.gateway.method(), entry.gateway.account());
    let account = format!("{method} {:?}", name.as_str());
    let fault = |problem: String| Some(AccountFault { account, field: String::new(), problem });
    match new.entry(method, name) {
        None => {
            fault("is gone while orders may name it; put it back, and retire it with `new_orders = false`".to_owned())
        }
        Some(found) if !found.identity.goes_on_for(&entry.identity) => fault(format!(
            "stands for {} now, and its orders are with {}; keep every app of before beside a new one, and give another \
             merchant an account of its own",
            found.identity, entry.identity
        )),
        // A person who may write the file could otherwise redirect every call, with its signature, to another machine
        // unnoticed.
        Some(found) if found.identity.origins != entry.identity.origins => fault(format!(
            "is called at {} in the file, and this process calls it at {}; put the address back, or restart the process to \
             change it",
            list(&found.identity.origins),
            list(&entry.identity.origins)
        )),
        Some(_) => None,
    }
}
