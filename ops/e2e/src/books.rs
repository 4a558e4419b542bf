//! Waits until nothing is in flight, and then checks that the independent records agree.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::history::{self, Balance, Invariant, Violation};
use crate::{LOOK, World};

impl World {
    /// Waits until nothing is in flight: no callback as a job or in a queue, no refund under way, no event
    /// unpublished or undelivered.
    ///
    /// # Panics
    /// When something is still in flight after `within`; the message names it.
    pub async fn wait_quiet(&self, within: Duration) {
        let began = Instant::now();
        while let Some(moving) = self.moving().await {
            assert!(began.elapsed() < within, "not at rest within {} s: {moving}", within.as_secs());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is still in flight, if anything.
    async fn moving(&self) -> Option<String> {
        let waiting = "select (select count(*) from jobs where kind = 'callback')
            + (select count(*) from refund_records where status in ('pending', 'processing'))
            + (select count(*) from events where published_at is null)";
        match self.number(waiting).await {
            None => return Some("the database does not answer".to_owned()),
            Some(0) => {}
            Some(count) => return Some(format!("{count} callbacks as jobs, refunds in flight and events unpublished")),
        }
        let delivered = self.downstream.times();
        let known = self.texts("select event_id from events").await;
        let undelivered: Vec<&String> = known.iter().filter(|id| !delivered.contains_key(*id)).collect();
        if !undelivered.is_empty() {
            return Some(format!("published and not delivered: {undelivered:?}"));
        }
        let mut lost = history::judge(&self.history().await);
        lost.retain(|violation| violation.invariant == Invariant::Acknowledged);
        (!lost.is_empty()).then(|| lines(&lost))
    }

    /// Asserts that the records agree on what must be true at any moment.
    ///
    /// # Panics
    /// With every violation.
    pub async fn books_hold(&self) {
        agree(&history::judge_at_any_moment(&self.history().await));
    }

    /// Asserts that the records agree (see [`Invariant`]), and prints how much they hold.
    ///
    /// # Panics
    /// With every violation.
    pub async fn books_agree(&self) {
        let history = self.history().await;
        assert!(!history.orders.is_empty(), "no order was created: there is nothing to compare");
        agree(&history::judge(&history));
        let (total, wrong) = history::balance(&history);
        assert!(wrong.is_empty() && total.holds(), "money is lost or made up: {wrong:?}, {total:?} in all");
        let Balance { paid, returned, fulfilled, held, unseen } = total;
        println!(
            "the books agree: {paid} fen paid - {returned} returned = {fulfilled} fulfilled + {held} held - {unseen} \
             unseen; {} orders, \
             {} callbacks, {} refunds, {} events in {} deliveries",
            history.orders.len(),
            history.callbacks.len(),
            history.refunds.len(),
            history.events.len(),
            history.deliveries.len(),
        );
    }
}

fn agree(wrong: &[Violation]) {
    let kinds: BTreeSet<Invariant> = wrong.iter().map(|violation| violation.invariant).collect();
    assert!(wrong.is_empty(), "the books do not agree ({kinds:?}):\n{}", lines(wrong));
}

fn lines(wrong: &[Violation]) -> String {
    let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
