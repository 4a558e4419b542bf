//! What a callback costs in a large table, beside a small one.

use anyhow::{Context, Result};

use super::settled;
use crate::database;
use crate::figures::short;
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// The small table.
const SMALL: u32 = 10_000;

/// Settles the same callbacks among `SMALL` orders that were paid long ago, and among `large`. The cost is the time that a
/// callback takes of the whole machine, so a figure above 1 is dearer.
pub(super) async fn measure(stage: &Stage<'_>, large: u32, progress: &Progress) -> Result<Row> {
    let callbacks = stage.cli.callbacks();
    let (mut costs, mut notes) = ([Vec::new(), Vec::new()], Vec::new());
    // The large one is filled once, so the small one is measured whole before it.
    for (size, costs) in [SMALL, large].into_iter().zip(&mut costs) {
        progress.say(&format!("growth: placing {size} orders that were paid long ago"));
        database::refill(&stage.db, 0).await?;
        database::place_history(&stage.db, size, |placed| {
            progress.say(&format!("growth: {placed} of {size} orders"));
        })
        .await?;
        for repeat in 1..=stage.cli.repeats() {
            progress.say(&format!("growth {repeat}: {callbacks} callbacks among {size} orders"));
            database::replace(&stage.db, callbacks).await?;
            let (rate, used) = settled::settle(stage, callbacks).await.context("settling callbacks")?;
            progress.done(&format!("among {size} orders {}/s", short(rate)));
            costs.push(1e6 / rate);
            notes.push(format!("among {size} orders: {used}"));
        }
    }
    notes.push("the orders paid long ago have their payments; their events and callbacks are not there".to_owned());
    let question = Question {
        what: format!("cost of a callback among {large} orders"),
        unit: "µs",
        against: format!("the same among {SMALL}"),
        target: Target::AtMost(1.25),
    };
    let [small, large] = &costs;
    Ok(question.answer(large, small, notes))
}
