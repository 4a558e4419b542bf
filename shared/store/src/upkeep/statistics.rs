//! Maintains the statistics: counts the hours again in which something has changed, and no others.
//!
//! Orders and refunds have no extra cost from this. Every change of one of them also writes an event, so the events
//! show which hours have changed. The current hour and the one before are always counted.

use std::collections::BTreeSet;

use domain::{OrderId, first_id_at};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::stats::{self, Hour, Progress};

const HOUR: i64 = 3600;
/// The largest number of hours that one round catches up.
pub const ROUND: i64 = 48;

/// One round over at most `hours` hours, in the caller's transaction. Returns whether the counting has caught up with
/// the clock.
///
/// # Errors
/// [`DbError`]; the caller rolls back. [`DbError::Again`]: the round may have been too long for one statement.
pub async fn round(tx: &mut PgConnection, now: OffsetDateTime, hours: i64) -> Result<bool, DbError> {
    let newest = stats::newest_event(tx).await?;
    let current = now.unix_timestamp() / HOUR;
    let progress = match stats::progress(tx).await? {
        Some(progress) => progress,
        None => begin(tx, newest, current).await?,
    };
    let from = (progress.hour.unix_timestamp() / HOUR).min(current);
    let to = current.min(from + hours);
    let mut hours: BTreeSet<i64> = (from..=to).collect();
    // Hours from `from` on will be counted anyway, so only earlier ones need an event.
    let changed = stats::changed_hours(tx, progress.seq).await?;
    hours.extend(changed.into_iter().filter(|hour| *hour < from));
    let hours: Vec<Hour> = hours.into_iter().map(hour).collect();
    stats::refresh(tx, &hours, now).await?;
    let reached = Progress {
        seq: progress.next_seq,
        next_seq: newest,
        // The hour before the current one may still get a row from a transaction that began in it.
        hour: begin_of(to.min(current - 1)),
    };
    stats::note_progress(tx, reached, now).await?;
    Ok(to == current)
}

/// The very first round begins with the oldest order. Events before it show nothing that is not counted anyway.
async fn begin(tx: &mut PgConnection, newest: i64, current: i64) -> Result<Progress, DbError> {
    let oldest = stats::first_order(tx).await?;
    let oldest = oldest.map_or(current, |id| hour_of(id).clamp(0, current));
    Ok(Progress { seq: newest, next_seq: newest, hour: begin_of(oldest) })
}

fn hour(number: i64) -> Hour {
    let id_at = |number| OrderId::from_u128(first_id_at(begin_of(number)));
    Hour { begin: begin_of(number), first: id_at(number), past: id_at(number + 1) }
}

fn hour_of(id: OrderId) -> i64 {
    i64::try_from((id.bits() >> 80) / 3_600_000).unwrap_or(0)
}

fn begin_of(hour: i64) -> OffsetDateTime {
    // Fails only beyond the year 9999; such an id is not ours.
    OffsetDateTime::from_unix_timestamp(hour.saturating_mul(HOUR)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
