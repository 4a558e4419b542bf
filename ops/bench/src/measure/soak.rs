//! The steady mix for a long time: checks whether the memory of any process grows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::mix;
use crate::database::check_refunded;
use crate::figures::{Spread, short};
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// Short enough that a round's callbacks are still valid at its end.
const ROUND_SECONDS: u32 = 60;
const LOOK: Duration = Duration::from_secs(5);

pub(super) async fn measure(stage: &Stage<'_>, minutes: u32, progress: &Progress) -> Result<(Vec<Row>, Vec<Plot>)> {
    let rounds = minutes * 60 / ROUND_SECONDS;
    progress.say("soak: placing orders");
    mix::place(stage, rounds * ROUND_SECONDS).await?;
    let services = mix::start(stage).await?;
    let began = Instant::now();
    let mut memory: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    let mut worst = Vec::new();
    for round in 0..rounds {
        progress.say(&format!("soak: minute {} of {minutes}", round + 1));
        let first = 1 + round * mix::orders(ROUND_SECONDS);
        let load = mix::round(stage, first, ROUND_SECONDS);
        tokio::pin!(load);
        let done = loop {
            for service in services.iter() {
                let resident = service.memory()?.resident;
                memory.entry(service.name).or_default().push((began.elapsed().as_secs_f64(), resident));
            }
            tokio::select! {
                done = &mut load => break done.with_context(|| format!("minute {}", round + 1))?,
                () = tokio::time::sleep(LOOK) => {}
            }
        };
        worst.push((began.elapsed().as_secs_f64(), done.way.percentile(99.0)));
    }
    services.stop().await?;
    check_refunded(&stage.db, rounds * mix::refunds(ROUND_SECONDS)).await?;
    stage.broker.empty().await?;
    let rows: Vec<Row> = memory.iter().map(|(name, points)| row(name, minutes, points)).collect();
    let grown = |row: &Row| format!("{} {} to {} MiB", row.what, short(row.limit.median), short(row.measured.median));
    progress.done(&rows.iter().map(grown).collect::<Vec<_>>().join(", "));
    let lines = memory.into_iter().map(|(name, points)| Line { label: name.to_owned(), points }).collect();
    let title = format!("A steady mix for {minutes} minutes");
    let way = vec![Line { label: "callback to event p99".to_owned(), points: worst }];
    Ok((
        rows,
        vec![
            Plot::over_time("soak-memory", &title, "MiB resident", lines),
            Plot::over_time("soak-latency", &title, "ms", way),
        ],
    ))
}

/// Compares the last quarter with the second one: in the first, every process still fills its caches.
fn row(name: &str, minutes: u32, points: &[(f64, f64)]) -> Row {
    let quarter = |n: usize| {
        let part = &points[points.len() * n / 4..points.len() * (n + 1) / 4];
        part.iter().map(|(_, mib)| *mib).collect::<Vec<_>>()
    };
    let (second, last) = (quarter(1), quarter(3));
    let note = format!(
        "at most {} MiB, at last {} MiB",
        short(Spread::of(&last).max),
        short(last.last().copied().unwrap_or(f64::NAN))
    );
    let question = Question {
        what: format!("memory of {name} in the last quarter of {minutes} min"),
        unit: "MiB",
        against: "in the second quarter".to_owned(),
        target: Target::AtMost(1.05),
    };
    question.answer(&last, &second, vec![note])
}
