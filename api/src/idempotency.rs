//! Idempotency-Key: pressing twice makes one order.
//!
//! The database decides (the key is written in the statement that makes the order). Within this process requests with
//! one key also take turns, so that the second finds the first one's answer instead of asking the gateway as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::db::idempotency_keys::{self, KnownKey, NewKey};
use shared::domain::UserId;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::problem::ApiError;
use crate::state::App;

/// How long a key is kept at least.
const KEY_LIVES: time::Duration = time::Duration::hours(24);
/// How long the second request waits for the first.
const WAIT: Duration = Duration::from_secs(3);

/// The value of the header: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromRequestParts<Arc<App>> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<IdempotencyKey, ApiError> {
        let value = parts.headers.get("idempotency-key").ok_or(ApiError::IdempotencyKeyRequired)?;
        let text = value.to_str().map_err(|_| ApiError::IdempotencyKeyInvalid)?;
        if text.is_empty() {
            return Err(ApiError::IdempotencyKeyRequired);
        }
        let fits = text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(IdempotencyKey(text.to_owned())) } else { Err(ApiError::IdempotencyKeyInvalid) }
    }
}

/// One creating request: who sends it, under which key, where to, and what.
#[derive(Clone)]
pub struct Request {
    /// Who.
    pub user: UserId,
    /// Under which key.
    pub key: IdempotencyKey,
    /// Where to.
    pub route: &'static str,
    /// SHA-256 of the body, byte for byte.
    pub hash: [u8; 32],
}

impl Request {
    /// A request with this body.
    pub fn new(user: UserId, key: IdempotencyKey, route: &'static str, body: &[u8]) -> Request {
        Request { user, key, route, hash: Sha256::digest(body).into() }
    }

    /// What the key stands for already, if anything.
    ///
    /// # Errors
    /// [`ApiError::IdempotencyKeyReused`] when it stands for another request.
    pub async fn known(&self, db: &PgPool) -> Result<Option<KnownKey>, ApiError> {
        let known = idempotency_keys::find(db, &self.user, self.key.as_str()).await?;
        let same = |known: &KnownKey| known.route == self.route && known.request_hash == self.hash;
        match known {
            Some(known) if !same(&known) => Err(ApiError::IdempotencyKeyReused),
            known => Ok(known),
        }
    }

    /// The key as it is written, beside the row that it makes.
    pub fn new_key(&self, now: OffsetDateTime) -> NewKey {
        NewKey {
            key: self.key.as_str().to_owned(),
            route: self.route,
            request_hash: self.hash,
            expires_at: now + KEY_LIVES,
        }
    }

    /// Keeps the final answer and returns the one that stays: the first.
    ///
    /// # Errors
    /// [`ApiError::Db`].
    pub async fn keep(&self, db: &PgPool, answer: &Value) -> Result<Value, ApiError> {
        Ok(idempotency_keys::save_answer(db, &self.user, self.key.as_str(), answer).await?)
    }
}

type Name = (UserId, IdempotencyKey);
type Gate = Arc<tokio::sync::Mutex<()>>;

/// The creating requests in flight in this process.
#[derive(Default)]
pub struct Turns {
    gates: Mutex<HashMap<Name, Gate>>,
}

/// The right to work under one key; ends when dropped.
pub struct Turn {
    turns: Arc<Turns>,
    name: Name,
    gate: Option<Gate>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn of this request.
    ///
    /// # Errors
    /// [`ApiError::RequestInFlight`] when an earlier one takes longer than 3 s.
    pub async fn wait(self: &Arc<Turns>, request: &Request) -> Result<Turn, ApiError> {
        self.wait_for(request, WAIT).await
    }

    async fn wait_for(self: &Arc<Turns>, request: &Request, wait: Duration) -> Result<Turn, ApiError> {
        let name = (request.user.clone(), request.key.clone());
        let gate = self.gates.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default().clone();
        // Made before the wait, so that giving up cleans up as well.
        let mut turn = Turn { turns: self.clone(), name, gate: Some(gate.clone()), held: None };
        let held = timeout(wait, gate.lock_owned()).await;
        turn.held = Some(held.map_err(|_| ApiError::RequestInFlight)?);
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut gates = self.turns.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Let go of while the map is locked: of two that end at once, one is the last to look.
        self.held = None;
        self.gate = None;
        if gates.get(&self.name).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::new(UserId::parse("u1").unwrap(), IdempotencyKey("k".to_owned()), "orders", b"{}")
    }

    #[tokio::test]
    async fn the_second_waits_and_nothing_is_left_behind() {
        let turns = Arc::<Turns>::default();
        let first = turns.wait(&request()).await.unwrap();
        let refused = turns.wait_for(&request(), Duration::from_millis(10)).await;
        assert!(matches!(refused, Err(ApiError::RequestInFlight)));
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(&request()).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap().unwrap();
        assert!(turns.gates.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn turns_that_end_at_once_leave_nothing_behind() {
        let turns = Arc::<Turns>::default();
        let together = std::sync::Barrier::new(2);
        for _ in 0..5_000 {
            // One holds the gate, the other has given up waiting: both end.
            let first = turns.wait(&request()).await.unwrap();
            let name = (request().user, request().key);
            let other = Turn { turns: turns.clone(), name, gate: first.gate.clone(), held: None };
            std::thread::scope(|scope| {
                for turn in [first, other] {
                    scope.spawn(|| {
                        let turn = turn;
                        together.wait();
                        drop(turn);
                    });
                }
            });
            assert!(turns.gates.lock().unwrap().is_empty());
        }
    }
}
