//! The delivery desk: what was delivered, the watchers, and whether the broker is reachable.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::{broadcast, watch};

use crate::event::Event;

/// How many past events a page gets when it opens.
const REPLAYED: usize = 50;
/// How many event ids are stored to recognise repeats.
const REMEMBERED: usize = 10_000;
/// How far a watcher may fall behind before it must start again.
const BUFFERED: usize = 256;

/// One event and how many times it arrived.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Delivered {
    #[serde(flatten)]
    pub(crate) event: Event,
    /// 1 at first; later repeats deliver nothing.
    pub(crate) times_seen: u64,
    /// The time of its first arrival, RFC 3339.
    pub(crate) received_at: String,
}

/// Whether fulfilment events can reach the shop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Link {
    pub(crate) connected: bool,
    /// The error, if it is not connected.
    pub(crate) reason: Option<String>,
}

/// What a watcher receives.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    Delivered(Box<Delivered>),
    Link(Link),
}

/// See the module. A real shop stores this in its database, in the transaction that delivers. Here a restart loses it.
pub(crate) struct Desk {
    book: Mutex<Book>,
    notices: broadcast::Sender<Notice>,
    link: watch::Sender<Link>,
}

impl Desk {
    pub(crate) fn new() -> Arc<Desk> {
        let link = Link { connected: false, reason: Some("connecting to the broker".to_owned()) };
        Arc::new(Desk {
            book: Mutex::default(),
            notices: broadcast::Sender::new(BUFFERED),
            link: watch::Sender::new(link),
        })
    }

    /// Delivers what an event reports, unless that was done before. Returns true the first time.
    pub(crate) fn deliver(&self, event: Event, received_at: String) -> bool {
        // The notice is sent under the lock, so that a watcher's replay and its notices join without a gap.
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let delivered = book.record(event, received_at);
        let first = delivered.times_seen == 1;
        // It is no error if there is no watcher.
        let _ = self.notices.send(Notice::Delivered(Box::new(delivered)));
        first
    }

    /// Notes that the connection to the broker opened or broke.
    pub(crate) fn set_link(&self, link: Link) {
        let changed = self.link.send_if_modified(|known| {
            let changed = *known != link;
            known.clone_from(&link);
            changed
        });
        if changed {
            let _ = self.notices.send(Notice::Link(link));
        }
    }

    /// The state of that connection, to read or to wait for.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// The latest events, the oldest first, and a receiver for all later ones.
    pub(crate) fn watch(&self) -> (Vec<Notice>, broadcast::Receiver<Notice>) {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let notices = self.notices.subscribe();
        let link = self.link.borrow().clone();
        let latest = book.latest(REPLAYED).into_iter().map(|delivered| Notice::Delivered(Box::new(delivered)));
        (std::iter::once(Notice::Link(link)).chain(latest).collect(), notices)
    }

    /// All stored events of one order.
    pub(crate) fn of_order(&self, order_id: &str) -> Vec<Delivered> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let about = |delivered: &Delivered| {
            delivered.event.subject.as_deref() == Some(order_id) || delivered.event.field("order_id") == order_id
        };
        book.latest(REMEMBERED).into_iter().filter(about).collect()
    }
}

/// Events by id, bounded, in the order of their first arrival.
#[derive(Default)]
struct Book {
    by_id: HashMap<String, Delivered>,
    order: VecDeque<String>,
}

impl Book {
    fn record(&mut self, event: Event, received_at: String) -> Delivered {
        if let Some(known) = self.by_id.get_mut(&event.event_id) {
            known.times_seen += 1;
            return known.clone();
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.order.push_back(event.event_id.clone());
        let delivered = Delivered { event, times_seen: 1, received_at };
        self.by_id.insert(delivered.event.event_id.clone(), delivered.clone());
        delivered
    }

    fn latest(&self, count: usize) -> Vec<Delivered> {
        let skipped = self.order.len().saturating_sub(count);
        self.order.iter().skip(skipped).filter_map(|id| self.by_id.get(id)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        let data = serde_json::json!({ "order_id": "o1" });
        Event { event_id: id.to_owned(), kind: "order.paid".to_owned(), subject: None, data }
    }

    #[test]
    fn a_repeat_is_counted_and_not_delivered_again() {
        let desk = Desk::new();
        assert!(desk.deliver(event("a"), "t1".to_owned()));
        assert!(!desk.deliver(event("a"), "t2".to_owned()));
        let seen = desk.of_order("o1");
        assert_eq!((seen.len(), seen[0].times_seen, seen[0].received_at.as_str()), (1, 2, "t1"));
        assert!(desk.of_order("o2").is_empty());
    }

    #[test]
    fn the_book_forgets_the_oldest() {
        let mut book = Book::default();
        for n in 0..=REMEMBERED {
            book.record(event(&n.to_string()), String::new());
        }
        assert_eq!((book.by_id.len(), book.order.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(book.record(event("0"), String::new()).times_seen, 1);
        assert_eq!(book.latest(2).len(), 2);
    }

    #[test]
    fn a_late_watcher_gets_the_last_fifty_and_what_follows() {
        let desk = Desk::new();
        for n in 0..60 {
            desk.deliver(event(&n.to_string()), String::new());
        }
        let (replay, mut notices) = desk.watch();
        assert_eq!(replay.len(), 1 + REPLAYED);
        desk.deliver(event("next"), String::new());
        assert!(matches!(notices.try_recv(), Ok(Notice::Delivered(next)) if next.event.event_id == "next"));
    }
}
