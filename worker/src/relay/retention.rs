//! Deletes rows when their time is over, in small steps concurrently with the publishing, and measures the tables.
//!
//! A step is a transaction of its own on its own connection. It fails early rather than block others, and the next
//! round continues with the rows that are left; no other state is stored. `ops/decisions/0012-what-is-kept-how-long.md`
//! says why each rule is safe.

use std::time::Duration as StdDuration;

use broker::callback_of;
use domain::CaseId;
use runtime::clock::Clock;
use runtime::env::Env;
use runtime::error_chain::chain;
use runtime::panics::caught;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::connect::in_time;
use store::tables::dead_letters;
use store::upkeep::retention::{self, Step};
use time::{Duration, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::limits::WORKER;

/// The pause between two rounds.
const EVERY: StdDuration = StdDuration::from_secs(600);
/// The pause between two measurements of the tables: how old the values may be.
const LOOK: StdDuration = StdDuration::from_secs(60);
/// The pause between two steps, so that other work has the disk most of the time.
const BREATH: StdDuration = StdDuration::from_millis(200);
/// The most rows that a step examines.
const BATCH: i64 = 500;
/// The most cases whose bytes a step moves: each may hold 64 KiB.
const LETTERS: i64 = 50;
/// How long a key or a credential stays after its expiry: longer than any request lasts, and than clocks differ.
const KEYS: Duration = Duration::hours(1);

/// How long rows are stored; `None` means for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// Events, counted from when they were published. An unpublished event is not deleted.
    pub events: Option<Duration>,
    /// Callbacks, counted from when they were last received.
    pub callbacks: Option<Duration>,
    /// Cases, counted from when they were resolved.
    pub cases: Option<Duration>,
}

/// The least time for events: twice the period that is published again after a broker was wiped. So the events are
/// still there when a wiped broker is detected late.
pub const LEAST_EVENTS: Duration = Duration::days(14);
/// The least time for callbacks: a gateway repeats a callback for a day or two, and people inquire about one even
/// later.
pub const LEAST_CALLBACKS: Duration = Duration::days(30);
/// The least time for cases: a quarter of a year, so that people can look back.
pub const LEAST_CASES: Duration = Duration::days(90);

impl Default for Periods {
    fn default() -> Periods {
        Periods {
            events: Some(Duration::days(90)),
            // The year in which WeChat Pay allows refunds, and a month for disputes.
            callbacks: Some(Duration::days(400)),
            cases: Some(Duration::days(730)),
        }
    }
}

impl Periods {
    /// Reads `KEEP_EVENTS_DAYS`, `KEEP_CALLBACKS_DAYS` and `KEEP_CASES_DAYS`: days, or `forever`.
    pub fn from_env(env: &mut Env) -> Option<Periods> {
        let default = Periods::default();
        let events = days(env, "KEEP_EVENTS_DAYS", default.events, LEAST_EVENTS);
        let callbacks = days(env, "KEEP_CALLBACKS_DAYS", default.callbacks, LEAST_CALLBACKS);
        let cases = days(env, "KEEP_CASES_DAYS", default.cases, LEAST_CASES);
        Some(Periods { events: events?, callbacks: callbacks?, cases: cases? })
    }
}

/// The most days that can be set: a hundred years.
const MOST: i64 = 36_500;

fn days(env: &mut Env, name: &'static str, default: Option<Duration>, least: Duration) -> Option<Option<Duration>> {
    let Some(text) = env.optional(name) else { return Some(default) };
    if text == "forever" {
        return Some(None);
    }
    let days = text.parse().ok().filter(|days| (least.whole_days()..=MOST).contains(days));
    if days.is_none() {
        let remedy = format!("set it to {} to {MOST} days, or to forever", least.whole_days());
        env.fault(name, format!("{text:?} does not fit"), remedy);
    }
    days.map(|days| Some(Duration::days(days)))
}

/// Deletes and measures until `stop`. A round may take hours when there is much to delete, so the measurements do not
/// wait for it.
pub(super) async fn purge(db: &PgPool, clock: &Clock, periods: Periods, stop: &CancellationToken) {
    let remove = async {
        loop {
            if let Err(panic) = caught(round(db, clock, periods)).await {
                panic.noted(WORKER, "retention", &"old rows");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let look = async {
        loop {
            match caught(in_time(measure(db, clock.now()))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(error = chain(&error), "The tables were not measured; the next round does it"),
                Err(panic) => drop(panic.noted(WORKER, "retention", &"the measures of the tables")),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! { () = remove => {}, () = look => {}, () = stop.cancelled() => {} }
}

/// One round through the tables. A failure in one table does not affect the others.
pub async fn round(db: &PgPool, clock: &Clock, periods: Periods) {
    let now = clock.now();
    let before = |period: Option<Duration>| period.and_then(|period| now.checked_sub(period));
    if let Some(before) = before(Some(KEYS)) {
        walk(db, "idempotency_keys", (), async |tx, (), limit| retention::idempotency_keys(tx, before, limit).await)
            .await;
        walk(db, "order_credentials", (), async |tx, (), limit| retention::credentials(tx, before, limit).await).await;
    }
    if let Some(before) = before(periods.events) {
        walk(db, "events", (), async |tx, (), limit| retention::events(tx, before, limit).await).await;
    }
    if let Some(before) = before(periods.callbacks) {
        walk(db, "callbacks", 0, async |tx, from, limit| retention::callbacks(tx, before, from, limit).await).await;
        walk(db, "dead_letters", (), async |tx, (), limit| retention::dead_letters(tx, before, limit).await).await;
    }
    if let Some(before) = before(periods.cases) {
        let first = CaseId::from_u128(0);
        walk(db, "cases", first, async |tx, from, limit| retention::cases(tx, before, from, limit).await).await;
    }
    move_bytes(db).await;
}

/// Moves the bytes of dead letters out of cases that the relay of an older release wrote; that relay may still run.
async fn move_bytes(db: &PgPool) {
    let callback = |bytes: &[u8]| callback_of(bytes).ok();
    loop {
        match in_time(commit(db, async |tx| dead_letters::move_bytes(tx, callback, LETTERS).await)).await {
            Ok(step) if step.reached.is_some() => tokio::time::sleep(BREATH).await,
            Ok(_) => return,
            Err(error) => {
                warn!(error = chain(&error), "Cases still hold the bytes of dead letters; the next round moves them");
                return;
            }
        }
    }
}

/// Deletes the old rows of a table in steps. A step that collides or takes too long is repeated with half the rows. Any
/// other error ends the walk, and the next round starts it again.
async fn walk<Place: Copy>(
    db: &PgPool,
    table: &'static str,
    mut place: Place,
    step: impl AsyncFn(&mut PgConnection, Place, i64) -> Result<Step<Place>, DbError>,
) {
    let (mut limit, mut removed) = (BATCH, 0);
    loop {
        match in_time(commit(db, async |tx| step(tx, place, limit).await)).await {
            Ok(done) => {
                removed += done.removed;
                metrics::counter!("rows_removed_total", "table" => table).increment(done.removed);
                let Some(reached) = done.reached else { break };
                place = reached;
            }
            Err(DbError::Again(_)) if limit > 1 => limit /= 2,
            Err(error) => {
                warn!(table, error = chain(&error), "Old rows of {table} stay for now; the next round deletes them");
                break;
            }
        }
        tokio::time::sleep(BREATH).await;
    }
    if removed > 0 {
        info!(table, removed, "Deleted {removed} expired rows of {table}");
    }
}

async fn commit<Place>(
    db: &PgPool,
    step: impl AsyncFnOnce(&mut PgConnection) -> Result<Step<Place>, DbError>,
) -> Result<Step<Place>, DbError> {
    let mut tx = db.begin().await?;
    retention::step_aside(&mut tx).await?;
    let done = step(&mut tx).await?;
    tx.commit().await?;
    Ok(done)
}

async fn measure(db: &PgPool, now: OffsetDateTime) -> Result<(), DbError> {
    for (table, age) in retention::oldest(db, now).await? {
        let age = age.unwrap_or(Duration::ZERO);
        metrics::gauge!("table_oldest_row_seconds", "table" => table).set(age.as_seconds_f64());
    }
    for size in retention::sizes(db).await? {
        let labels = [("table", size.name)];
        metrics::gauge!("table_bytes", &labels).set(size.bytes as f64);
        metrics::gauge!("table_rows", &labels).set(size.rows as f64);
        metrics::gauge!("table_dead_rows", &labels).set(size.dead_rows as f64);
        // NaN means never, as far back as the server's statistics go.
        let since = size.vacuumed_at.map_or(f64::NAN, |at| (now - at).as_seconds_f64());
        metrics::gauge!("table_vacuum_age_seconds", &labels).set(since);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Settings;

    #[test]
    fn a_wiped_broker_finds_what_it_needs_however_little_is_stored() {
        let republished = Settings::default().republish;
        assert!(LEAST_EVENTS >= republished * 2);
    }

    #[test]
    fn the_default_fits_its_own_bounds() {
        let Periods { events, callbacks, cases } = Periods::default();
        assert!(events >= Some(LEAST_EVENTS) && callbacks >= Some(LEAST_CALLBACKS) && cases >= Some(LEAST_CASES));
        assert_eq!(Periods::from_env(&mut Env::of([])), Some(Periods::default()));
    }

    #[test]
    fn days_and_forever_are_taken_and_too_few_are_a_fault() {
        let mut env =
            Env::of([("KEEP_EVENTS_DAYS", "14"), ("KEEP_CALLBACKS_DAYS", "forever"), ("KEEP_CASES_DAYS", "36500")]);
        let periods = Periods { events: Some(LEAST_EVENTS), callbacks: None, cases: Some(Duration::days(36_500)) };
        assert_eq!(Periods::from_env(&mut env), Some(periods));
        env.finish().unwrap();
        let mut env =
            Env::of([("KEEP_EVENTS_DAYS", "13"), ("KEEP_CALLBACKS_DAYS", "-1"), ("KEEP_CASES_DAYS", "36501")]);
        assert_eq!(Periods::from_env(&mut env), None);
        insta::assert_snapshot!(env.finish().unwrap_err());
    }
}
