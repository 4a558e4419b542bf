//! Which processes used the processors.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

/// Clock ticks per second in /proc; the same on every Linux for user programs.
const TICKS: f64 = 100.0;

/// Processor seconds used so far, by process. A process that ends between two readings counts as zero, not as a
/// negative amount.
pub(crate) struct Usage {
    by: BTreeMap<u32, (String, f64)>,
    busy: f64,
    at: Instant,
}

impl Usage {
    /// The usage now. The servers are found by their programs' names, so other servers of the same kind also count.
    pub(crate) fn now(services: &[(&'static str, u32)]) -> Usage {
        let mut by = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let server = match comm.trim() {
                "postgres" => "PostgreSQL",
                "beam.smp" => "RabbitMQ",
                _ => continue,
            };
            by.insert(pid, (server.to_owned(), of_process(pid)));
        }
        for (name, pid) in services.iter().copied().chain([("load generator", std::process::id())]) {
            by.insert(pid, (name.to_owned(), of_process(pid)));
        }
        Usage { by, busy: busy(), at: Instant::now() }
    }

    /// The usage since `earlier`, in shares of the whole machine, the largest first.
    pub(crate) fn since(&self, earlier: &Usage) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let all = (self.at - earlier.at).as_secs_f64() * cores;
        let share = |seconds: f64| format!("{:.0} %", 100.0 * seconds / all);
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for (pid, (name, now)) in &self.by {
            let before = earlier.by.get(pid).map_or(0.0, |(_, before)| *before);
            *sums.entry(name).or_default() += (now - before).max(0.0);
        }
        let (busy, known) = (self.busy - earlier.busy, sums.values().sum::<f64>());
        // The kernel's own work, and all other programs on the machine. If this is large, the figures mean little.
        sums.insert("everything else", (busy - known).max(0.0));
        let mut used: Vec<(&str, f64)> = sums.into_iter().collect();
        used.sort_by(|a, b| b.1.total_cmp(&a.1));
        let list: Vec<String> = used.iter().map(|(name, seconds)| format!("{name} {}", share(*seconds))).collect();
        format!("processors {} busy: {}", share(busy), list.join(", "))
    }
}

/// User and system time of a process; 0 if it no longer exists.
fn of_process(pid: u32) -> f64 {
    seconds_of(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// User and system time of a process or thread, from its `stat` in /proc.
pub(crate) fn seconds_of(stat: &str) -> f64 {
    // The name in parentheses may contain any character, so the fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

/// The time in which a processor was not idle, summed over all processors.
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; the guest times after them are part of user.
    let all: f64 = fields.iter().take(8).sum();
    (all - fields.get(3).unwrap_or(&0.0) - fields.get(4).unwrap_or(&0.0)) / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_seen_and_one_that_is_gone_is_not() {
        let before = Usage::now(&[]);
        let mut sum = 0u64;
        while before.at.elapsed().as_millis() < 100 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(sum > 0 && Usage::now(&[]).since(&before).contains("load generator"));
        assert_eq!(of_process(u32::MAX), 0.0);
    }
}
