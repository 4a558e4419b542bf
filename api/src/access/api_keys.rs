//! The API keys that this process accepts. All of them are in memory, so a wrong key costs no query.
//!
//! A task reads the version of the keys twice a second, and the keys again when it has changed. If it could not read for
//! a second, no key is judged any more: the answer is 503, because a revoked key must not be accepted and a good one not
//! be refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use domain::{ApiKeyId, ApiKeyText, KeyEnvironment, Scope};
use runtime::clock::Clock;
use runtime::error_chain::chain;
use runtime::seal::SealKeys;
use secrecy::SecretString;
use sqlx::PgPool;
use store::DbError;
use store::connect::in_time;
use store::tables::api_keys::{self, ActiveKey, KeyUse, SealedSecret, offer_secret_place};
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::caller::{Caller, Identity};
use crate::access::guard::is_allowed;
use crate::answer::problem::ApiError;
use crate::answer::rarely::Few;

/// How often the version is read.
const EVERY: Duration = Duration::from_millis(500);
/// A copy that is older than this is not used.
const FRESH: Duration = Duration::from_secs(1);
/// How many keys that prove nothing are logged in a second. Any stranger can send them.
const UNPROVED: u32 = 10;
/// How often the last uses are written.
const WRITE: Duration = Duration::from_secs(60);

/// The keys in memory.
pub struct ApiKeys {
    /// Keys of another environment are refused. It can change while the process runs, with the accounts.
    environment: Box<dyn Fn() -> KeyEnvironment + Send + Sync>,
    clock: Clock,
    /// Opens the secrets of offers. `None`: no key signs offers.
    seal: Option<Arc<SealKeys>>,
    held: RwLock<Held>,
    used: Mutex<HashMap<ApiKeyId, OffsetDateTime>>,
    /// Limits the lines about keys that prove nothing.
    unproved: Few,
}

/// Why a key is not accepted.
enum Refusal {
    /// The copy of the keys is too old to judge any.
    Unknown,
    /// The secret is not that of an active key.
    Unproved(&'static str),
    /// The secret is right.
    Proved(&'static str),
}

/// A secret that signs offers.
struct OfferSecret {
    text: SecretString,
    until: Option<OffsetDateTime>,
}

#[derive(Default)]
struct Held {
    keys: HashMap<ApiKeyId, ActiveKey>,
    offers: HashMap<ApiKeyId, Vec<OfferSecret>>,
    version: Option<i64>,
    /// When the version was last known to be current: the moment before it was read.
    current_at: Option<Instant>,
}

impl ApiKeys {
    /// Keys of the environment of the moment; none is known yet.
    pub fn new(environment: impl Fn() -> KeyEnvironment + Send + Sync + 'static, clock: Clock) -> ApiKeys {
        let (environment, unproved) = (Box::new(environment), Few::new(UNPROVED));
        ApiKeys { environment, clock, seal: None, held: RwLock::default(), used: Mutex::default(), unproved }
    }

    /// Accepts offers that the keys' own secrets for offers sign.
    #[must_use]
    pub fn with_seal(self, seal: Option<Arc<SealKeys>>) -> ApiKeys {
        ApiKeys { seal, ..self }
    }

    /// The caller who holds this key, if the key is accepted from `address`. A refusal is logged with its reason.
    ///
    /// # Errors
    /// [`ApiError::KeysUnavailable`] when the copy of the keys is too old, or [`ApiError::TokenInvalid`].
    pub fn caller(&self, key: &ApiKeyText, address: IpAddr) -> Result<Caller, ApiError> {
        self.judge(key, address).map_err(|refusal| match refusal {
            Refusal::Unknown => ApiError::KeysUnavailable,
            Refusal::Unproved(reason) => {
                if let (true, left_out) = self.unproved.take(Instant::now()) {
                    info!(key_id = %key.id, reason, left_out, "API key {} was refused: {reason}", key.id);
                }
                ApiError::TokenInvalid
            }
            Refusal::Proved(reason) => {
                info!(key_id = %key.id, reason, "API key {} was refused: {reason}", key.id);
                ApiError::TokenInvalid
            }
        })
    }

    /// The same without a log line. `None`: no caller.
    ///
    /// # Errors
    /// [`ApiError::KeysUnavailable`].
    pub fn identify(&self, key: &ApiKeyText, address: IpAddr) -> Result<Option<Caller>, ApiError> {
        match self.judge(key, address) {
            Ok(caller) => Ok(Some(caller)),
            Err(Refusal::Unknown) => Err(ApiError::KeysUnavailable),
            Err(Refusal::Unproved(_) | Refusal::Proved(_)) => Ok(None),
        }
    }

    fn judge(&self, key: &ApiKeyText, address: IpAddr) -> Result<Caller, Refusal> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        if held.current_at.is_none_or(|at| at.elapsed() > FRESH) {
            return Err(Refusal::Unknown);
        }
        let now = self.clock.now();
        let active = held.keys.get(&key.id).ok_or(Refusal::Unproved("no active key has this id"))?;
        if !proves(active, key, now) {
            return Err(Refusal::Unproved("its secret is not that of the key, or was replaced"));
        }
        if let Some(reason) = self.refusal(active, key, (address, now)) {
            return Err(Refusal::Proved(reason));
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id, now);
        Ok(Caller::new(Identity::Key(key.id), active.scopes.without_people()))
    }

    /// The secrets with which this key signs offers now. None, if the key is not active or may not create orders.
    ///
    /// # Errors
    /// [`ApiError::KeysUnavailable`].
    pub fn offer_secrets(&self, id: ApiKeyId) -> Result<Vec<SecretString>, ApiError> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        if held.current_at.is_none_or(|at| at.elapsed() > FRESH) {
            return Err(ApiError::KeysUnavailable);
        }
        let now = self.clock.now();
        let counts = |key: &&ActiveKey| {
            let is_on_time = key.expires_at.is_none_or(|end| now < end);
            is_on_time && key.scopes.contains(Scope::Orders) && key.environment == (self.environment)()
        };
        let secrets = held.keys.get(&id).filter(counts).and_then(|_| held.offers.get(&id));
        let current = secrets.into_iter().flatten().filter(|secret| secret.until.is_none_or(|until| now < until));
        Ok(current.map(|secret| secret.text.clone()).collect())
    }

    /// Opens the secrets of offers. One that does not open is left out, and its offers are refused.
    fn opened(&self, keys: &[ActiveKey]) -> HashMap<ApiKeyId, Vec<OfferSecret>> {
        let secrets = |key: &ActiveKey| {
            let id = key.id.to_string();
            let open = |secret: &SealedSecret| {
                let bytes = self.seal.as_ref()?.open(&offer_secret_place(&id), &secret.sealed).ok();
                let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
                if text.is_none() {
                    warn!(key_id = %key.id, "The offer secret of API key {} does not open: is SEAL_KEY the key that sealed it?", key.id);
                }
                Some(OfferSecret { text: text?.into(), until: secret.until })
            };
            (key.id, key.offer_secrets.iter().filter_map(open).collect())
        };
        keys.iter().filter(|key| !key.offer_secrets.is_empty()).map(secrets).collect()
    }

    /// Why a key with the right secret is not accepted.
    fn refusal(&self, active: &ActiveKey, key: &ApiKeyText, at: (IpAddr, OffsetDateTime)) -> Option<&'static str> {
        let (address, now) = at;
        let environment = (self.environment)();
        if active.environment != environment || key.environment != environment {
            return Some("it is a key of another environment");
        }
        if active.expires_at.is_some_and(|end| end <= now) {
            return Some("it has expired");
        }
        (!is_allowed(address, &active.networks)).then_some("it may not be used from this address")
    }

    /// Keeps the keys current until `stop`, and writes when they were last used. `reading` is a connection of its own, so
    /// that no other work of the process holds up a revocation.
    pub async fn watch(&self, reading: &PgPool, db: &PgPool, stop: CancellationToken) {
        tokio::join!(self.follow(reading, stop.clone()), self.write_now_and_then(db, stop));
    }

    async fn follow(&self, db: &PgPool, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let wrong = match timeout(FRESH, self.refresh(db)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some("the database does not answer within a second".to_owned()),
            };
            if let (Some(error), false) = (&wrong, failing) {
                warn!(error, "The API keys cannot be read: requests with a key get 503 in a second");
            }
            failing = wrong.is_some();
            metrics::gauge!("api_keys_up_to_date").set(if failing { 0.0 } else { 1.0 });
        }
    }

    async fn write_now_and_then(&self, db: &PgPool, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(WRITE)).await.is_some() {
            self.write_uses(db).await;
        }
        self.write_uses(db).await;
    }

    /// Reads the version, and the keys if it has changed.
    ///
    /// # Errors
    /// [`DbError`]; the copy stays as it is and grows old.
    pub async fn refresh(&self, db: &PgPool) -> Result<(), DbError> {
        let at = Instant::now();
        let version = api_keys::version(db).await?;
        let known = self.held.read().unwrap_or_else(PoisonError::into_inner).version;
        // The version is read before the keys: a change in between is read again at the next look.
        let fresh = if known == Some(version) { None } else { Some(api_keys::active(db).await?) };
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = fresh {
            info!(keys = keys.len(), "Loaded the changed API keys");
            held.offers = self.opened(&keys);
            held.keys = keys.into_iter().map(|key| (key.id, key)).collect();
            held.version = Some(version);
        }
        held.current_at = Some(at);
        Ok(())
    }

    /// Writes when the keys were last used. The next write tries again what this one could not.
    async fn write_uses(&self, db: &PgPool) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        let uses: Vec<KeyUse> = used.into_iter().map(|(id, at)| KeyUse { id, at }).collect();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = in_time(api_keys::note_used(db, &uses)).await {
            warn!(error = chain(&error), keys = uses.len(), "The last uses of API keys were not written");
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            uses.iter().for_each(|use_| {
                used.entry(use_.id).or_insert(use_.at);
            });
        }
    }
}

/// Whether the secret is one of the key's. Each comparison takes the same time wherever the digests differ.
fn proves(active: &ActiveKey, key: &ApiKeyText, now: OffsetDateTime) -> bool {
    active.secrets.iter().any(|secret| secret.digest == key.digest && secret.until.is_none_or(|until| now < until))
}
