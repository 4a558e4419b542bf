//! The networks from which each gateway sends its callbacks. They are fixed by a variable, or read from a file that is
//! reloaded when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use domain::PaymentMethod;
use ipnet::IpNet;
use runtime::panics::caught_now;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often the files are checked for a change.
const EVERY: Duration = Duration::from_secs(5);

/// A list of networks. As the list of a gateway, it means any address if it is empty.
pub type Networks = Arc<[IpNet]>;

/// One gateway's list.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    /// The list at the start of the process.
    pub networks: Vec<IpNet>,
    /// The file that holds the list, if the list may change, and the text that was read at the start.
    pub file: Option<(PathBuf, String)>,
}

/// The current list of every gateway.
pub struct KnownCallers(Vec<Entry>);

struct Entry {
    method: PaymentMethod,
    file: Option<(PathBuf, String)>,
    networks: RwLock<Networks>,
}

/// The state of one file: the text that was last evaluated, and the text that was last read.
struct Seen {
    judged: String,
    last: String,
}

impl Seen {
    fn new(text: &str) -> Seen {
        Seen { judged: text.to_owned(), last: text.to_owned() }
    }
}

impl KnownCallers {
    /// Starts with the lists that were read at the start of the process.
    pub fn new(of: impl Fn(PaymentMethod) -> Callers) -> KnownCallers {
        let entry = |method: &PaymentMethod| {
            let Callers { networks, file } = of(*method);
            Entry { method: *method, file, networks: RwLock::new(networks.into()) }
        };
        KnownCallers(PaymentMethod::ALL.iter().map(entry).collect())
    }

    /// The current list of a gateway.
    pub fn of(&self, method: PaymentMethod) -> Networks {
        let entry = self.0.iter().find(|entry| entry.method == method);
        entry.map_or_else(
            || Arc::from([]),
            |entry| entry.networks.read().unwrap_or_else(PoisonError::into_inner).clone(),
        )
    }

    /// Reloads each file that changes, until `stop`. A bad file leaves the old list in force and is logged once.
    pub async fn watch(&self, stop: CancellationToken) {
        let files = || self.0.iter().filter_map(|entry| Some((entry, entry.file.as_ref()?)));
        let mut seen: Vec<Seen> = files().map(|(_, (_, text))| Seen::new(text)).collect();
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            for ((entry, (file, _)), seen) in files().zip(&mut seen) {
                if let Err(panic) = caught_now(|| entry.look(file, seen)) {
                    panic.noted("payment-api", "callers", &entry.method);
                }
            }
        }
    }
}

impl Entry {
    /// Evaluates a text only after two equal reads: at the first read the file may still be being written.
    fn look(&self, file: &Path, seen: &mut Seen) {
        let method = self.method;
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| format!("cannot be read: {error}"));
        let settled = text == seen.last;
        seen.last.clone_from(&text);
        if !settled || text == seen.judged {
            return;
        }
        let up = match networks(&text) {
            Ok(networks) => {
                info!(gateway = %method, networks = networks.len(), "Loaded the changed callback networks of {method}");
                *self.networks.write().unwrap_or_else(PoisonError::into_inner) = networks.into();
                1.0
            }
            Err(wrong) => {
                error!(gateway = %method, file = %file.display(), error = wrong, "The old callback networks of {method} stay in force");
                0.0
            }
        };
        metrics::gauge!("callers_file_up_to_date", "gateway" => method.as_str()).set(up);
        seen.judged = text;
    }
}

/// Parses a list with one network or address per line; `#` starts a comment. An empty list is an error, because it
/// would allow every address.
///
/// # Errors
/// States what is wrong, with the line number where there is one.
pub fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let mut networks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            networks.push(network(line).ok_or_else(|| format!("line {} is not a network", number + 1))?);
        }
    }
    if networks.is_empty() { Err("it names no network".to_owned()) } else { Ok(networks) }
}

/// Parses a network or a single address.
pub fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_network_a_line_and_is_refused_whole() {
        let read = networks("# Alipay\n203.0.113.0/24\n\n2001:db8::/32 # v6\n198.51.100.7\n").unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(networks("203.0.113.0/24\nhost\n").unwrap_err(), "line 2 is not a network");
        assert_eq!(networks("203.0.113.0/33").unwrap_err(), "line 1 is not a network");
        assert_eq!(networks("# nobody\n").unwrap_err(), "it names no network");
    }

    #[test]
    fn a_changed_file_is_taken_up_and_a_bad_one_is_not() {
        let file = std::env::temp_dir().join(format!("callers-{}", std::process::id()));
        let first = networks("203.0.113.0/24").unwrap();
        let known = KnownCallers::new(|method| match method {
            PaymentMethod::Alipay => Callers { networks: first.clone(), file: Some((file.clone(), String::new())) },
            PaymentMethod::Wechat => Callers::default(),
        });
        let alipay = known.0.iter().find(|entry| entry.method == PaymentMethod::Alipay).unwrap();
        let shown = || known.of(PaymentMethod::Alipay).iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut seen = Seen::new("203.0.113.0/24");
        for (text, expected) in [
            ("203.0.113.0/24", &["203.0.113.0/24"][..]),
            ("198.51.100.0/24\n2001:db8::/32", &["198.51.100.0/24", "2001:db8::/32"]),
            ("198.51.100.0/24\nnonsense", &["198.51.100.0/24", "2001:db8::/32"]),
            ("", &["198.51.100.0/24", "2001:db8::/32"]),
            ("192.0.2.1", &["192.0.2.1/32"]),
        ] {
            std::fs::write(&file, text).unwrap();
            let before = shown();
            alipay.look(&file, &mut seen);
            assert_eq!(shown(), before, "{text:?} may still be being written");
            alipay.look(&file, &mut seen);
            assert_eq!(shown(), expected, "{text:?}");
        }
        std::fs::remove_file(&file).unwrap();
        alipay.look(&file, &mut seen);
        alipay.look(&file, &mut seen);
        assert_eq!(shown(), ["192.0.2.1/32"], "a list that is gone stays in force");
        assert!(known.of(PaymentMethod::Wechat).is_empty());
    }
}
