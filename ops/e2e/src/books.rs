//! Whether everything has come to rest, and whether the independent records then agree.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::history::{self, Invariant, Violation};
use crate::{World, eventually};

impl World {
    /// Waits until nothing is on the road any more: no callback as a job or in a queue, no refund in flight, no event
    /// unpublished or undelivered.
    pub async fn wait_quiet(&self, within: Duration) {
        eventually("no callback, no refund and no event is on its way", within, async || {
            let waiting = "select (select count(*) from jobs where kind = 'callback')
                + (select count(*) from refund_records where status in ('pending', 'processing'))
                + (select count(*) from events where published_at is null)";
            if self.number(waiting).await? > 0 {
                return None;
            }
            let told = self.downstream.times();
            let known = self.texts("select event_id from events").await;
            known.iter().all(|id| told.contains_key(id)).then_some(())
        })
        .await;
        eventually("every callback that was answered with success has arrived", within, async || {
            let wrong = history::judge(&self.history().await);
            wrong.iter().all(|violation| violation.invariant != Invariant::Acknowledged).then_some(())
        })
        .await;
    }

    /// The records agree on what has to be true at any moment.
    ///
    /// # Panics
    /// With everything that is wrong.
    pub async fn books_hold(&self) {
        agree(&history::judge_at_any_moment(&self.history().await));
    }

    /// The records agree: see [`Invariant`].
    ///
    /// # Panics
    /// With everything that is wrong.
    pub async fn books_agree(&self) {
        agree(&history::judge(&self.history().await));
    }
}

fn agree(wrong: &[Violation]) {
    let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    let kinds: BTreeSet<Invariant> = wrong.iter().map(|violation| violation.invariant).collect();
    assert!(wrong.is_empty(), "the books do not agree ({kinds:?}):\n{}", lines.join("\n"));
}
