//! The cost of a callback in a large table, compared with a small one.

use anyhow::{Context, Result};

use super::settled;
use crate::database;
use crate::figures::{Spread, short};
use crate::plot::{Axis, Line, Plot};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// The small table.
const SMALL: u32 = 10_000;

/// Settles the same callbacks among `SMALL` orders that were paid long ago, among ten times as many, and so on up to
/// `large`. The cost is the time that the whole machine needs for a callback, so a ratio above 1 means more expensive.
pub(super) async fn measure(stage: &Stage<'_>, large: u32, progress: &Progress) -> Result<(Row, Plot)> {
    let callbacks = stage.cli.callbacks();
    let (mut costs, mut notes, mut placed) = (Vec::new(), Vec::new(), 0);
    database::refill(&stage.db, 0).await?;
    for size in sizes(large) {
        progress.say(&format!("growth: placing {size} orders that were paid long ago"));
        let report = |placed| progress.say(&format!("growth: {placed} of {size} orders"));
        database::place_history(&stage.db, placed + 1, size, report).await?;
        placed = size;
        let mut cost = Vec::new();
        for repeat in 1..=stage.cli.repeats() {
            progress.say(&format!("growth {repeat}: {callbacks} callbacks among {size} orders"));
            database::replace(&stage.db, callbacks).await?;
            let (rate, used) = settled::settle(stage, callbacks, 1).await.context("settling callbacks")?;
            progress.done(&format!("among {size} orders {}/s", short(rate)));
            cost.push(1e6 / rate);
            notes.push(format!("among {size} orders: {} µs; {used}", short(1e6 / rate)));
        }
        costs.push((size, cost));
    }
    notes.push("the orders paid long ago have their payments; their events and callbacks are not there".to_owned());
    let question = Question {
        what: format!("cost of a callback among {large} orders"),
        unit: "µs",
        against: format!("the same among {SMALL}"),
        target: Target::AtMost(1.25),
    };
    let points = costs.iter().map(|(size, cost)| (f64::from(*size), Spread::of(cost).median)).collect();
    let plot = Plot {
        name: "growth".to_owned(),
        title: "What a callback costs as the tables grow".to_owned(),
        x: Axis::Orders,
        y: "µs",
        lines: vec![Line { label: "median".to_owned(), points }],
    };
    let (small, large) = (&costs[0].1, &costs[costs.len() - 1].1);
    Ok((question.answer(large, small, notes), plot))
}

/// Ten times as many each time, up to `large`.
pub(super) fn sizes(large: u32) -> Vec<u32> {
    let mut sizes: Vec<u32> =
        std::iter::successors(Some(SMALL), |size| size.checked_mul(10)).take_while(|size| *size < large).collect();
    sizes.push(large);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_tenfold_and_end_where_they_should() {
        assert_eq!(sizes(10_000), [10_000]);
        assert_eq!(sizes(300_000), [10_000, 100_000, 300_000]);
        assert_eq!(sizes(10_000_000), [10_000, 100_000, 1_000_000, 10_000_000]);
    }
}
