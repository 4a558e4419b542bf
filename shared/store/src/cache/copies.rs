//! Copies of one kind of thing: from memory first, then from Redis, then from the database. [`super`] explains why they
//! are safe to show.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cache::FRESH;
use crate::cache::floors::Floors;
use crate::cache::redis::{CallError, Script};
use crate::cache::shelf::{Opened, Shelf};
use crate::connect::in_time;
use crate::error::DbError;

/// How long memory stores a copy. It is shown for a shorter time; after that it is only compared with newer ones.
const HELD_FOR: Duration = Duration::from_secs(5);
/// The bytes that an entry needs beside its text.
const OVERHEAD: usize = 600;
/// How many copies are written in one call.
const CHUNK: usize = 50;

/// A thing that can be stored as a copy.
pub(super) trait Copied: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its key, without a prefix.
    fn key(&self) -> String;
    /// Increases with each change.
    fn version(&self) -> i64;
}

/// How many copies are stored, and how long.
pub(super) struct Bounds {
    /// The name in metrics.
    pub name: &'static str,
    /// How long Redis stores a copy.
    pub stored_for: Duration,
    /// The approximate number of bytes in memory.
    pub memory: u64,
    /// See [`Floors`].
    pub floors: usize,
}

/// See the module.
pub(super) struct Copies<V> {
    bounds: Bounds,
    shelf: Option<Shelf>,
    memory: Cache<String, Held<V>>,
    floors: Floors,
}

/// A copy in memory.
struct Held<V> {
    value: Arc<V>,
    /// The end of its second.
    until: Instant,
    bytes: u32,
}

impl<V> Clone for Held<V> {
    fn clone(&self) -> Held<V> {
        Held { value: self.value.clone(), until: self.until, bytes: self.bytes }
    }
}

/// A moment by the clock of Redis, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(i64);

/// Whether a genuine copy from Redis may be shown, by the rules of its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// It may be shown.
    Shown,
    /// Not before this process has read the thing from the database.
    NotYet,
    /// It contradicts what the database states.
    Contradicted,
}

/// The answer of Redis about a thing.
enum Remembered<V> {
    /// A copy that may be shown until this time.
    Copy(V, Instant),
    /// No usable copy. We queried Redis at this moment.
    Nothing(Moment),
    /// Redis did not answer.
    Away,
}

/// The moment that a copy will carry, taken before the database is queried.
static MOMENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         return time[1] * 1000 + math.floor(time[2] / 1000)",
    )
});

/// The present moment, and the copy with the moment that it carries.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local known = redis.call('HMGET', KEYS[1], 'moment', 'data')
         return {time[1] * 1000 + math.floor(time[2] / 1000), known[1], known[2]}",
    )
});

/// Writes copies of one moment, unless Redis has a newer version, or the same version with a later moment.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local moment, keep, written = ARGV[1], ARGV[2], 0
         for i, key in ipairs(KEYS) do
           local version, data = ARGV[2 * i + 1], ARGV[2 * i + 2]
           local known = redis.call('HMGET', key, 'version', 'moment')
           local behind = known[1] and (tonumber(known[1]) > tonumber(version)
             or (known[1] == version and tonumber(known[2]) > tonumber(moment)))
           if not behind then
             redis.call('HSET', key, 'version', version, 'moment', moment, 'data', data)
             redis.call('PEXPIRE', key, keep)
             written = written + 1
           end
         end
         return written",
    )
});

impl<V: Copied> Copies<V> {
    /// Starts without copies.
    pub fn new(bounds: Bounds, shelf: Option<Shelf>) -> Copies<V> {
        let memory = Cache::builder()
            .max_capacity(bounds.memory)
            .weigher(|_, held: &Held<V>| held.bytes)
            // With LRU the newest copy is always stored. Otherwise it could not be compared with later ones.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(HELD_FOR)
            .build();
        let floors = Floors::new(bounds.floors);
        Copies { bounds, shelf, memory, floors }
    }

    /// The copy in memory, if it may be shown now.
    pub fn fresh(&self, key: &str) -> Option<Arc<V>> {
        let (outcome, shown) = self.look(key);
        self.count("memory", outcome);
        shown
    }

    /// The same without counting, for a second look.
    pub fn look(&self, key: &str) -> (&'static str, Option<Arc<V>>) {
        let held = self.memory.get(key);
        let now = Instant::now();
        let allowed = |held: &Held<V>| self.floors.allow(key, held.value.version(), now);
        let outcome = match &held {
            None => "miss",
            Some(held) if now < held.until && allowed(held) => "hit",
            Some(_) => "stale",
        };
        (outcome, held.filter(|_| outcome == "hit").map(|held| held.value))
    }

    /// A copy that may be shown: from Redis if `trusted` allows it, otherwise from the database, which `load` queries.
    ///
    /// # Errors
    /// Those of `load`; Redis causes none.
    pub async fn fetch(
        &self,
        key: &str,
        trusted: impl FnOnce(&V) -> Trust,
        load: impl Future<Output = Result<Option<V>, DbError>>,
    ) -> Result<Option<Arc<V>>, DbError> {
        let moment = match self.remembered(key, trusted).await {
            Remembered::Copy(value, until) => return Ok(Some(self.hold(value, until))),
            Remembered::Nothing(moment) => Some(moment),
            Remembered::Away => None,
        };
        let began = Instant::now();
        let found = in_time(load).await.inspect_err(|_| self.count("database", "error"))?;
        self.count("database", if found.is_some() { "hit" } else { "miss" });
        let Some(value) = found else { return Ok(None) };
        if let Some(moment) = moment {
            self.write(std::slice::from_ref(&value), moment).await;
        }
        Ok(Some(self.hold(value, began + FRESH)))
    }

    /// Writes what the database holds now into every layer, whatever they hold. `load` queries the database.
    ///
    /// # Errors
    /// Those of `load`.
    pub async fn renew(&self, load: impl Future<Output = Result<Vec<V>, DbError>>) -> Result<(), DbError> {
        let moment = self.moment().await;
        let began = Instant::now();
        let values = in_time(load).await?;
        if let Some(moment) = moment {
            self.write(&values, moment).await;
        }
        for value in values {
            self.hold(value, began + FRESH);
        }
        Ok(())
    }

    /// The same for Redis only, for a process that shows nothing.
    ///
    /// # Errors
    /// Those of `load`.
    pub async fn pass_on(&self, load: impl Future<Output = Result<Vec<V>, DbError>>) -> Result<(), DbError> {
        let Some(moment) = self.moment().await else { return Ok(()) };
        self.write(&in_time(load).await?, moment).await;
        Ok(())
    }

    /// Records that this version was shown from another source than these copies.
    pub fn saw(&self, key: &str, version: i64) {
        self.floors.raise(key, version, Instant::now());
    }

    /// Stores a copy in memory and returns what to show: this copy, or a newer one that arrived in between.
    fn hold(&self, value: V, until: Instant) -> Arc<V> {
        let (key, version) = (value.key(), value.version());
        let bytes = serde_json::to_vec(&value).map_or(0, |text| text.len());
        let bytes = u32::try_from(bytes + OVERHEAD).unwrap_or(u32::MAX);
        let new = Held { value: Arc::new(value), until, bytes };
        self.floors.raise(&key, version, Instant::now());
        let stays = self.memory.entry(key).and_upsert_with(|known| match known.map(|known| known.into_value()) {
            Some(known) if (known.value.version(), known.until) > (version, until) => known,
            _ => new,
        });
        stays.into_value().value
    }

    async fn remembered(&self, key: &str, trusted: impl FnOnce(&V) -> Trust) -> Remembered<V> {
        let Some(shelf) = &self.shelf else { return Remembered::Away };
        let began = Instant::now();
        let place = [shelf.redis.key(key)];
        let answer = shelf.redis.run::<(i64, Option<i64>, Option<String>)>(&READ, &place, &[]).await;
        let (now, moment, text) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.count("redis", if matches!(error, CallError::Away) { "away" } else { "error" });
                return Remembered::Away;
            }
        };
        let nothing = |outcome| {
            self.count("redis", outcome);
            Remembered::Nothing(Moment(now))
        };
        let Some((moment, text)) = moment.zip(text) else { return nothing("miss") };
        let data = match shelf.opened(&place[0], moment, &text) {
            Opened::Genuine(data) => data,
            Opened::OtherForm => return nothing("unfit"),
            Opened::Forged => return nothing("forged"),
        };
        // Perhaps another release wrote it. It will be written again.
        let Some(value) = serde_json::from_str::<V>(data).ok().filter(|value| value.key() == key) else {
            return nothing("unfit");
        };
        match trusted(&value) {
            Trust::Shown => {}
            Trust::NotYet => return nothing("unproved"),
            Trust::Contradicted => return nothing("forged"),
        }
        // A moment in the future means that the clock of Redis was set back.
        let age = u64::try_from(now.saturating_sub(moment)).map(Duration::from_millis).ok();
        let left = age.and_then(|age| FRESH.checked_sub(age)).filter(|left| !left.is_zero());
        if left.is_none() || !self.floors.allow(key, value.version(), Instant::now()) {
            return nothing("stale");
        }
        self.count("redis", "hit");
        Remembered::Copy(value, began + left.unwrap_or_default())
    }

    async fn moment(&self) -> Option<Moment> {
        self.shelf.as_ref()?.redis.run(&MOMENT, &[], &[]).await.ok().map(Moment)
    }

    /// Writes copies of one moment to Redis. If a write fails, the copy is read from the database again when its second
    /// is over.
    async fn write(&self, values: &[V], Moment(moment): Moment) {
        let Some(shelf) = &self.shelf else { return };
        for values in values.chunks(CHUNK) {
            let mut arguments = vec![moment.to_string(), self.bounds.stored_for.as_millis().to_string()];
            let mut keys = Vec::with_capacity(values.len());
            for value in values {
                let Ok(data) = serde_json::to_string(value) else { continue };
                let place = shelf.redis.key(&value.key());
                arguments.extend([value.version().to_string(), shelf.sealed(&place, moment, &data)]);
                keys.push(place);
            }
            let outcome = match shelf.redis.run::<i64>(&WRITE, &keys, &arguments).await {
                Ok(written) if usize::try_from(written) == Ok(keys.len()) => "written",
                Ok(_) => "behind",
                Err(error) => error.as_str(),
            };
            metrics::counter!("cache_writes_total", "cache" => self.bounds.name, "outcome" => outcome)
                .increment(keys.len() as u64);
        }
    }

    fn count(&self, layer: &'static str, outcome: &'static str) {
        let labels = [("cache", self.bounds.name), ("layer", layer), ("outcome", outcome)];
        metrics::counter!("cache_requests_total", &labels).increment(1);
    }
}
