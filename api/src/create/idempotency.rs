//! Idempotency-Key: sending a request twice creates one order.
//!
//! The database decides. The statement that creates the order also writes the key, and the request that works under the
//! key holds it for a while. So a second request finds the answer of the first instead of calling the gateway as well.
//! Within this process, requests with the same key also take turns, so that they do not wait in the database.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::header::LOCATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use domain::OrderId;
use runtime::clock::Clock;
use runtime::error_chain::chain;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use store::DbError;
use store::connect::in_time;
use store::tables::idempotency_keys::{self, KnownKey, NewAnswer, NewKey, SavedAnswer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::answer::problem::{self, ApiError};
use crate::create::numbers::microseconds;

/// The shortest time for which a key is stored.
const KEY_LIVES: time::Duration = time::Duration::hours(24);
/// How long a key is stored after the row that it created can no longer be paid. While an order can be paid, a repeat
/// must not create a second order.
const AFTER_END: time::Duration = time::Duration::days(1);
/// How long a second request waits for the first.
const WAIT: Duration = Duration::from_secs(3);
/// How often a request reads the database while it waits for a request in another process.
const LOOK: Duration = Duration::from_millis(100);
/// How long one request may work under a key alone. This is longer than a gateway call and the statements around it may
/// take. After a crash, the key is free again when this time has passed.
const HOLD: time::Duration = time::Duration::seconds(20);
/// Header of every saved answer: when the key expires (RFC 3339).
const EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
/// Header of an answer that an earlier request has already received: `true`.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The value of the header: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IdempotencyKey, ApiError> {
        let value = parts.headers.get("idempotency-key").ok_or(ApiError::IdempotencyKeyRequired)?;
        let text = value.to_str().map_err(|_| ApiError::IdempotencyKeyInvalid)?;
        if text.is_empty() {
            return Err(ApiError::IdempotencyKeyRequired);
        }
        let fits = text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(IdempotencyKey(text.to_owned())) } else { Err(ApiError::IdempotencyKeyInvalid) }
    }
}

/// One creating request: its caller, its key, its route and the hash of its body.
#[derive(Clone)]
pub struct Request {
    /// Who sends it, as the text of the caller's identity: a key belongs to its caller, never to a user in a body.
    pub caller: String,
    /// The idempotency key.
    pub key: IdempotencyKey,
    /// The route that it is sent to.
    pub route: &'static str,
    /// SHA-256 of the body, byte for byte.
    pub hash: [u8; 32],
}

impl Request {
    /// A request with this body.
    pub fn new(caller: String, key: IdempotencyKey, route: &'static str, body: &[u8]) -> Request {
        Request { caller, key, route, hash: Sha256::digest(body).into() }
    }

    /// Waits for the turn of this request in this process.
    ///
    /// # Errors
    /// [`ApiError::RequestInFlight`] when an earlier request takes longer than 3 s, or
    /// [`ApiError::IdempotencyKeyReused`] when the database shows by then that the key belongs to another request.
    pub async fn turn(&self, turns: &Arc<Turns>, db: &PgPool, clock: &Clock) -> Result<Turn, ApiError> {
        let turn = turns.wait(self).await;
        if turn.is_err() {
            self.known(db, microseconds(clock.now())).await?;
        }
        turn
    }

    /// What the key was used for before, if it was used.
    ///
    /// # Errors
    /// [`ApiError::IdempotencyKeyReused`] when it was used for another request.
    pub async fn known(&self, db: &PgPool, now: OffsetDateTime) -> Result<Option<KnownKey>, ApiError> {
        let known = idempotency_keys::find(db, &self.caller, self.key.as_str(), now).await?;
        let same = |known: &KnownKey| known.route == self.route && known.request_hash == self.hash;
        match known {
            Some(known) if !same(&known) => Err(ApiError::IdempotencyKeyReused),
            known => Ok(known),
        }
    }

    /// The key for a row that is created and answered in the same transaction. `end`: the last moment at which that row
    /// can be paid, or `now` if the row is not one that is paid.
    pub fn answered_key(&self, now: OffsetDateTime, end: OffsetDateTime) -> NewKey {
        NewKey {
            caller: self.caller.clone(),
            key: self.key.as_str().to_owned(),
            route: self.route,
            request_hash: self.hash,
            held_until: None,
            expires_at: (now + KEY_LIVES).max(end + AFTER_END),
        }
    }

    /// The key for a row that is created now and answered later. This process holds the key until it answers.
    pub fn held_key(&self, now: OffsetDateTime, end: OffsetDateTime) -> NewKey {
        NewKey { held_until: Some(now + HOLD), ..self.answered_key(now, end) }
    }

    /// Continues an earlier request with this key: waits for it, finds its answer, or takes over what a crash has left.
    /// `None`: there was no earlier request.
    ///
    /// # Errors
    /// [`ApiError::RequestInFlight`] when the earlier request is not done 3 s after this one `began` to wait.
    pub async fn take_up(&self, db: &PgPool, clock: &Clock, began: Instant) -> Result<Option<Earlier>, ApiError> {
        loop {
            let now = microseconds(clock.now());
            let Some(known) = self.known(db, now).await? else { return Ok(None) };
            let (ref_id, until) = (known.ref_id, now + HOLD);
            if let Some(answer) = Answer::replayed(known) {
                return Ok(Some(Earlier::Answered(answer)));
            }
            if idempotency_keys::hold(db, &self.caller, self.key.as_str(), ref_id, now..until).await? {
                return Ok(Some(Earlier::Unfinished(ref_id, self.hold(db, until))));
            }
            if began.elapsed() >= WAIT {
                return Err(ApiError::RequestInFlight);
            }
            sleep(LOOK).await;
        }
    }

    /// The hold that was written with the key.
    pub fn hold(&self, db: &PgPool, until: OffsetDateTime) -> Hold {
        Hold { db: db.clone(), caller: self.caller.clone(), key: self.key.clone(), until, answered: false }
    }
}

/// The result of an earlier request with the same key.
pub enum Earlier {
    /// The earlier request was answered with this.
    Answered(Answer),
    /// The earlier request created this row and has not answered. This request now does the work.
    Unfinished(OrderId, Hold),
}

/// The right to work under a key and to save its answer. Dropped without an answer, it lets the next request work at
/// once.
pub struct Hold {
    db: PgPool,
    caller: String,
    key: IdempotencyKey,
    until: OffsetDateTime,
    answered: bool,
}

impl Hold {
    /// Saves the answer for repeats: a success, or a refusal that is final. Any other error passes through.
    ///
    /// # Errors
    /// The given error, [`ApiError::RequestInFlight`] when the hold has expired and another request has taken over, or
    /// [`ApiError::Db`].
    pub async fn store(mut self, order: OrderId, done: Result<Value, ApiError>) -> Result<Answer, ApiError> {
        let new = match done {
            Ok(answer) => NewAnswer { answer, refused_with: None },
            Err(error) => {
                let cause = error.source().map(ToString::to_string);
                let (status, answer) = error.if_final()?;
                info!(error = cause, "Refused permanently: every repeat gets the same answer");
                NewAnswer { answer, refused_with: i16::try_from(status.as_u16()).ok() }
            }
        };
        let (caller, key) = (&self.caller, self.key.as_str());
        let saved = idempotency_keys::save_answer(&self.db, caller, key, Some(self.until), &new).await?;
        self.answered = true;
        let saved = saved.ok_or(ApiError::RequestInFlight)?;
        Ok(Answer::fresh(order.to_string(), saved))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let (db, caller, key, until) = (self.db.clone(), self.caller.clone(), self.key.clone(), self.until);
        tokio::spawn(async move {
            if let Err(error) = in_time(idempotency_keys::release(&db, &caller, key.as_str(), until)).await {
                warn!(error = chain(&error), "An Idempotency-Key stays held until its hold expires");
            }
        });
    }
}

/// A final answer. Every request with its key gets the same one.
pub struct Answer {
    /// The id of the row that the key created.
    row: String,
    saved: SavedAnswer,
    replayed: bool,
    /// Whether the row was there before the request. The key is not in use then.
    found: bool,
}

impl Answer {
    /// The saved answer of a key, if it has one.
    pub fn replayed(known: KnownKey) -> Option<Answer> {
        let saved =
            SavedAnswer { answer: known.answer?, refused_with: known.refused_with, expires_at: known.expires_at };
        Some(Answer { row: known.ref_id.to_string(), saved, replayed: true, found: false })
    }

    /// An answer that was just saved, and the row that it is about.
    pub fn fresh(row: String, saved: SavedAnswer) -> Answer {
        Answer { row, saved, replayed: false, found: false }
    }

    /// An answer about a row that was there before. It is not saved: a repeat looks for the row again.
    pub fn found(row: String, answer: Value, expires_at: OffsetDateTime) -> Answer {
        let saved = SavedAnswer { answer, refused_with: None, expires_at };
        Answer { row, saved, replayed: false, found: true }
    }

    /// Whether it is a refusal.
    pub fn is_refusal(&self) -> bool {
        self.saved.refused_with.is_some()
    }

    /// `created` is the status of a success that created a row, `at` the path below which its row is found.
    pub fn into_response(self, created: StatusCode, at: &str) -> Response {
        let mut headers = HeaderMap::new();
        let expires = self.saved.expires_at.format(&Rfc3339).ok().and_then(|text| HeaderValue::try_from(text).ok());
        headers.extend(expires.filter(|_| !self.found).map(|expires| (EXPIRES, expires)));
        headers.extend(self.replayed.then_some((REPLAYED, HeaderValue::from_static("true"))));
        let refused = self.saved.refused_with.and_then(|status| StatusCode::from_u16(status.unsigned_abs()).ok());
        match refused {
            Some(status) => (headers, problem::render(status, self.saved.answer)).into_response(),
            None => {
                let location = [(LOCATION, format!("{at}/{}", self.row))];
                let status = if self.found { StatusCode::OK } else { created };
                (status, location, headers, Json(self.saved.answer)).into_response()
            }
        }
    }
}

/// A timeout of the database means that another process still holds the key's row: it runs the first request.
pub fn in_flight(error: DbError) -> ApiError {
    match error {
        error if error.ran_out_of_time() => ApiError::RequestInFlight,
        other => other.into(),
    }
}

type Name = (String, IdempotencyKey);
type Gate = Arc<tokio::sync::Mutex<()>>;

/// The creating requests in flight in this process.
#[derive(Default)]
pub struct Turns {
    gates: Mutex<HashMap<Name, Gate>>,
}

/// The right of one request in this process to work under a key. It ends when dropped.
pub struct Turn {
    turns: Arc<Turns>,
    name: Name,
    gate: Option<Gate>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    async fn wait(self: &Arc<Turns>, request: &Request) -> Result<Turn, ApiError> {
        self.wait_for(request, WAIT).await
    }

    async fn wait_for(self: &Arc<Turns>, request: &Request, wait: Duration) -> Result<Turn, ApiError> {
        let name = (request.caller.clone(), request.key.clone());
        let gate = self.gates.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default().clone();
        // Created before the wait, so that a timeout cleans up as well.
        let mut turn = Turn { turns: self.clone(), name, gate: Some(gate.clone()), held: None };
        let held = timeout(wait, gate.lock_owned()).await;
        turn.held = Some(held.map_err(|_| ApiError::RequestInFlight)?);
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut gates = self.turns.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Released while the map is locked: if two turns end at once, the last one removes the entry.
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
        Request::new("u1".to_owned(), IdempotencyKey("k".to_owned()), "orders", b"{}")
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
            // One turn holds the gate, the other has timed out. Both end.
            let first = turns.wait(&request()).await.unwrap();
            let name = (request().caller, request().key);
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
