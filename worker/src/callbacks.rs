//! Callbacks become facts, and facts become state: verify again, decrypt, settle, a batch in one transaction.
//!
//! The queue is not trusted, so the signature is checked here as at the ingress; only the clock window is the ingress's
//! alone. A batch that the database refuses is split until the bad callback stands alone, so it delays nobody.

use std::time::Duration;

use sha2::{Digest, Sha256};
use shared::clock::Clock;
use shared::db::callbacks::Evidence;
use shared::db::{DbError, callbacks, events, jobs};
use shared::domain::{Notification, Verdict};
use shared::gateway::{CallbackError, Gateways, Verified};
use shared::job::Callback;
use shared::settle;
use sqlx::PgPool;
use tracing::{error, info, warn};

use crate::consumer::Ack;

/// How long a callback waits whose key is not known here.
const UNKNOWN_KEY_WAIT: time::Duration = time::Duration::minutes(1);
/// How often a transaction is repeated that another one was in the way of.
const TRIES: u32 = 5;

/// Settles callbacks.
pub struct CallbackWorker {
    /// Where the truth is.
    pub db: PgPool,
    /// Whose keys prove a callback.
    pub gateways: Gateways,
    /// The clock.
    pub clock: Clock,
}

/// A callback and what its bytes turned out to be.
struct Examined {
    callback: Callback,
    content: Content,
}

enum Content {
    /// Authentic.
    Told(Verified<Notification>),
    /// Never to be settled: forged or unreadable.
    Bad(Verdict),
    /// The key or the account is not known here, which a new configuration can mend.
    NotYet(String),
}

impl CallbackWorker {
    /// Settles a batch and says what to do with each message, in the order given. `Err` in `batch` is a message that is
    /// no callback at all.
    ///
    /// # Errors
    /// [`DbError`] when the database cannot do it now; every message goes back then.
    pub async fn settle<E: std::fmt::Display>(&self, batch: Vec<Result<Callback, E>>) -> Result<Vec<Ack>, DbError> {
        let mut acks = vec![Ack::Done; batch.len()];
        let mut examined = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        for (place, callback) in batch.into_iter().enumerate() {
            match callback {
                Ok(callback) => {
                    examined.push(self.examine(callback));
                    places.push(place);
                }
                Err(error) => {
                    error!(%error, "A message in the callback queue is no callback");
                    acks[place] = Ack::Dead;
                }
            }
        }
        for refused in self.settle_or_split(&examined).await? {
            acks[places[refused]] = Ack::Dead;
        }
        for (examined, place) in examined.iter().zip(&places) {
            if matches!(examined.content, Content::Bad(_)) {
                acks[*place] = Ack::Dead;
            }
        }
        Ok(acks)
    }

    fn examine(&self, callback: Callback) -> Examined {
        let content = match self.gateways.get(callback.method, &callback.account) {
            None => Content::NotYet(format!("no account {}", callback.account)),
            Some(gateway) => {
                match gateway.verify(callback.clone(), None).and_then(|verified| gateway.read(&verified)) {
                    Ok(told) => Content::Told(told),
                    Err(error @ CallbackError::UnknownKey { .. }) => Content::NotYet(error.to_string()),
                    Err(CallbackError::BadSignature | CallbackError::Probe | CallbackError::Stale) => {
                        Content::Bad(Verdict::BadSignature)
                    }
                    Err(CallbackError::Malformed(_) | CallbackError::Undecodable(_)) => {
                        Content::Bad(Verdict::Undecodable)
                    }
                }
            }
        };
        Examined { callback, content }
    }

    /// Commits what can be committed; returns the places of the callbacks that the database refused even alone.
    async fn settle_or_split(&self, examined: &[Examined]) -> Result<Vec<usize>, DbError> {
        let mut refused = Vec::new();
        let mut waiting = vec![(0, examined)];
        while let Some((start, part)) = waiting.pop() {
            match self.commit_patiently(part).await {
                Ok(()) => {}
                Err(unavailable @ (DbError::Unavailable(_) | DbError::Again(_))) => return Err(unavailable),
                Err(error) if part.len() > 1 => {
                    warn!(%error, callbacks = part.len(), "A batch was refused; it is split");
                    metrics::counter!("callback_batches_split_total").increment(1);
                    let (first, second) = part.split_at(part.len() / 2);
                    waiting.extend([(start + first.len(), second), (start, first)]);
                }
                Err(error) if error.blames_the_rows() => {
                    let error = anyhow::Error::from(error);
                    error!(error = format!("{error:#}"), "The database refuses a callback for good");
                    refused.push(start);
                }
                // Nobody knows whose fault it is, so no callback is given up for it.
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// Repeats a transaction that another one was in the way of.
    async fn commit_patiently(&self, examined: &[Examined]) -> Result<(), DbError> {
        let mut tries = 1;
        loop {
            match self.commit(examined).await {
                Err(DbError::Again(source)) if tries < TRIES => {
                    warn!(error = %source, tries, "Another transaction was in the way; once more");
                    tokio::time::sleep(Duration::from_millis(10) * tries * tries).await;
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// One transaction: state, events and cases, the evidence, and the end of the jobs that carried it.
    async fn commit(&self, examined: &[Examined]) -> Result<(), DbError> {
        let told: Vec<&Verified<Notification>> = examined.iter().filter_map(Examined::told).collect();
        let mut tx = self.db.begin().await?;
        let mut verdicts = settle::settle(&mut tx, &told, self.gateways.policies(), &self.clock).await?.into_iter();
        let verdicts: Vec<Option<Verdict>> = examined
            .iter()
            .map(|item| match &item.content {
                Content::Told(_) => verdicts.next(),
                Content::Bad(verdict) => Some(*verdict),
                Content::NotYet(_) => None,
            })
            .collect();
        let now = self.clock.now();
        let evidence: Vec<Evidence<'_>> =
            examined.iter().zip(&verdicts).filter_map(|(item, verdict)| Some(item.evidence((*verdict)?))).collect();
        callbacks::record(&mut tx, &evidence, now).await?;
        let decided: Vec<i64> = evidence.iter().filter_map(|evidence| evidence.callback.job_id).collect();
        if !decided.is_empty() {
            jobs::delete_callbacks(&mut tx, &decided).await?;
        }
        for item in examined {
            if let Content::NotYet(reason) = &item.content {
                keep(&mut tx, &item.callback, reason, now).await?;
            }
        }
        tx.commit().await?;
        self.report(examined, &verdicts).await;
        Ok(())
    }

    /// Tells metrics, the log and the relay, once a batch is committed.
    async fn report(&self, examined: &[Examined], verdicts: &[Option<Verdict>]) {
        let now = self.clock.now();
        let mut news = false;
        for (item, verdict) in examined.iter().zip(verdicts) {
            let gateway = item.callback.method.as_str();
            let verdict = verdict.map_or("unknown_key", Verdict::as_str);
            metrics::counter!("callbacks_total", "gateway" => gateway, "verdict" => verdict).increment(1);
            let took = (now - item.callback.received_at).as_seconds_f64();
            metrics::histogram!("callback_settle_seconds", "gateway" => gateway).record(took.max(0.0));
            match &item.content {
                Content::Told(told) if !matches!(verdict, "duplicate" | "ignored") => {
                    news = true;
                    let order_no = &told.get().order_no;
                    info!(%order_no, gateway, verdict, took_ms = took * 1e3, "Callback for order {order_no}: {verdict}");
                }
                Content::Told(_) => {}
                Content::Bad(_) => error!(gateway, account = %item.callback.account, verdict, "Callback refused"),
                Content::NotYet(reason) => warn!(gateway, account = %item.callback.account, reason, "Callback kept"),
            }
        }
        if news && let Err(error) = events::nudge(&self.db).await {
            warn!(%error, "The relay was not nudged; it will poll");
        }
    }
}

/// Keeps a callback that cannot be checked yet as a job of its own, or puts the job off that brought it.
async fn keep(
    tx: &mut sqlx::PgConnection,
    callback: &Callback,
    reason: &str,
    now: time::OffsetDateTime,
) -> Result<(), DbError> {
    let due_at = now + UNKNOWN_KEY_WAIT;
    match callback.job_id {
        Some(id) => jobs::postpone(tx, id, due_at, reason).await,
        None => jobs::insert_callback(tx, callback, due_at, now).await,
    }
}

impl Examined {
    fn told(&self) -> Option<&Verified<Notification>> {
        match &self.content {
            Content::Told(told) => Some(told),
            _ => None,
        }
    }

    fn evidence(&self, verdict: Verdict) -> Evidence<'_> {
        let told = self.told().map(Verified::get);
        Evidence {
            callback: &self.callback,
            notice_id: told.map_or_else(|| digest(&self.callback.body), |told| told.notice_id.clone()),
            order_no: told.map(|told| told.order_no.as_str()).filter(|order_no| !order_no.is_empty()),
            verdict,
        }
    }
}

/// Names bytes that name themselves nothing.
fn digest(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    digest.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
