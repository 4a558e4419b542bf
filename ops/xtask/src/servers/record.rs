//! The record of one server: enough to reach it, to stop it, and to know how far its set-up got.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{files::write_private, ports, process::Process};

use super::Kind;

/// One server of one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which server.
    pub kind: Kind,
    /// Its loopback ports by purpose.
    pub ports: BTreeMap<String, u16>,
    /// Its passwords by user.
    pub secrets: BTreeMap<String, String>,
    /// Its processes, in the order of starting (the names sort that way).
    pub processes: BTreeMap<String, Process>,
    /// True once its data is complete: incomplete data is created again, not repaired.
    pub is_set_up: bool,
}

impl Record {
    /// New ports and passwords for a server that has no data yet.
    pub fn new(kind: Kind) -> Result<Record> {
        let names = kind.port_names();
        let ports = names.iter().map(ToString::to_string).zip(ports::free(names.len())?).collect();
        let secrets = kind
            .users()
            .iter()
            .map(|user| Ok((user.to_string(), ports::secret()?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Record { kind, ports, secrets, processes: BTreeMap::new(), is_set_up: false })
    }

    /// The record in the folder; `None` if there is none that can be read and is complete.
    pub fn load(dir: &Path, kind: Kind) -> Option<Record> {
        let record: Record = serde_json::from_str(&fs::read_to_string(file(dir, kind)).ok()?).ok()?;
        let is_whole = kind.port_names().iter().all(|name| record.ports.contains_key(*name))
            && kind.users().iter().all(|user| record.secrets.contains_key(*user));
        (record.kind == kind && is_whole).then_some(record)
    }

    /// Writes the record atomically.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_private(&file(dir, self.kind), &serde_json::to_string_pretty(self)?)
    }

    /// The port for a purpose that [`Kind::port_names`] lists.
    pub fn port(&self, name: &str) -> Result<u16> {
        self.ports.get(name).copied().with_context(|| format!("{} has no port {name}", self.kind))
    }

    /// The password of a user that [`Kind::users`] lists.
    pub fn secret(&self, user: &str) -> Result<&str> {
        self.secrets.get(user).map(String::as_str).with_context(|| format!("{} has no user {user}", self.kind))
    }

    /// Whether all its processes run.
    pub fn is_running(&self) -> bool {
        !self.processes.is_empty() && self.processes.values().all(Process::is_alive)
    }
}

fn file(dir: &Path, kind: Kind) -> PathBuf {
    dir.join(format!("{kind}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_written_and_half_of_one_is_none() {
        let dir = std::env::temp_dir().join(format!("xtask-record-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let record = Record::new(Kind::Rabbitmq).unwrap();
        record.save(&dir).unwrap();
        assert_eq!(Record::load(&dir, Kind::Rabbitmq), Some(record.clone()));
        assert_eq!(Record::load(&dir, Kind::Redis), None);

        let text = serde_json::to_string(&record).unwrap();
        fs::write(file(&dir, Kind::Rabbitmq), &text[..text.len() / 2]).unwrap();
        assert_eq!(Record::load(&dir, Kind::Rabbitmq), None);
        fs::write(file(&dir, Kind::Rabbitmq), text.replace("management", "other")).unwrap();
        assert_eq!(Record::load(&dir, Kind::Rabbitmq), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_started_is_not_running() {
        assert!(!Record::new(Kind::Redis).unwrap().is_running());
    }
}
