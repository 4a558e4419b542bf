//! Turns callbacks into facts, and facts into state: the worker verifies each callback again, decrypts it, and settles
//! a batch in one transaction.
//!
//! We do not trust the queue, so the signature is checked here as at the ingress. Only the ingress checks the clock
//! window. The worker splits a batch that the database refuses, or that another transaction delays, until the callback
//! at fault is alone. A refused callback becomes a dead letter; a delayed one becomes a job and is tried again. So
//! neither delays the other callbacks. A panic splits a batch in the same way, and the callback at fault becomes a job
//! that counts its panics (`deferred.rs`).

use std::ops::Range;
use std::time::Duration;

use domain::message::callback::{Callback, LONGEST_BODY, digest};
use domain::{Notification, Verdict};
use gateway::{CallbackError, Gateway, Gateways, Verified, essence};
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught, caught_now};
use sqlx::PgPool;
use store::DbError;
use store::cache::{Changed, Renewer};
use store::retry::retry;
use store::settle;
use store::tables::callbacks::Evidence;
use store::tables::{callbacks, events, jobs};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::consumer::Ack;
use crate::deferred::{self, WORKER};

/// How long a callback waits if its key is unknown here, or if the database refuses it without showing that the row is
/// at fault.
const LONG_WAIT: time::Duration = time::Duration::minutes(1);
/// How long a callback with an unknown key is retried. Both gateways repeat a notification for a day; a key that is
/// still unknown after that needs a person.
const KNOWN_BY_THEN: time::Duration = time::Duration::hours(25);
/// How long a delayed callback waits.
const SHORT_WAIT: time::Duration = time::Duration::seconds(10);
/// The number of parts into which a batch is split. Among 1000 callbacks the fourth split isolates the one at fault.
const PARTS: usize = 8;
/// How long parts are tried after a batch was delayed. After that, the remaining callbacks become jobs.
///
/// An attempt ends with the first statement that takes too long: 2 s for a lock, 250 ms in a part, 5 s for anything
/// else. So every attempt begins within 5 + 12 s. The last attempt and the storing as jobs may add 5 s each: less than
/// the 28 s that a stop allows. A single lock among 400 callbacks is found in under 3 s. Even if every statement takes
/// 5 s, a batch of 400 has been tried in single callbacks by then.
const SEARCH: Duration = Duration::from_secs(12);

/// Settles callbacks.
pub struct CallbackWorker {
    /// The database, which holds the authoritative state.
    pub db: PgPool,
    /// The gateways, whose keys prove that a callback is authentic.
    pub gateways: Gateways,
    /// The clock.
    pub clock: Clock,
    /// Writes changed orders to Redis.
    pub copies: Renewer,
}

/// A callback and the result of its verification.
struct Examined {
    callback: Callback,
    content: Content,
}

enum Content {
    /// Authentic.
    Told(Box<Verified<Notification>>),
    /// Forged or unreadable: it can never be settled.
    Bad(Verdict),
    /// The key or the account is unknown here. A new configuration can correct that.
    NotYet(String),
}

/// How long a transaction may wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As long as the database allows. The transaction is repeated when it collides.
    Patient,
    /// Only briefly: a callback was delayed already, and others wait behind it.
    Hurried,
}

/// The next action for a part of a batch.
#[derive(Debug, Clone)]
enum Plan {
    Settle,
    /// Store it as jobs that are due after this wait, for this reason.
    PutOff(time::Duration, String),
    /// It panicked alone: store it as a job for another try, or reject it if it has no try left.
    Defer(Panicked),
}

/// The result of a transaction.
struct Committed {
    /// The verdict on each callback. `None`: its key or account is not known yet.
    verdicts: Vec<Option<Verdict>>,
    /// The positions of the callbacks whose key or account has been unknown for too long.
    stranded: Vec<usize>,
}

/// The error that stopped a part of a batch.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl CallbackWorker {
    /// Settles a batch and returns what to do with each message, in the same order. `Err` in `batch` is a message that
    /// is no callback.
    ///
    /// # Errors
    /// [`DbError`] when the database cannot do it now; every message then returns to the queue.
    pub async fn settle<E: std::fmt::Display>(&self, batch: Vec<Result<Callback, E>>) -> Result<Vec<Ack>, DbError> {
        let mut acks = vec![Ack::Done; batch.len()];
        let (mut examined, mut panicked) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut places = Vec::with_capacity(batch.len());
        for (place, callback) in batch.into_iter().enumerate() {
            match callback {
                Ok(callback) if callback.body.len() > LONGEST_BODY => {
                    error!(bytes = callback.body.len(), "A callback in the queue is longer than the ingress accepts");
                    acks[place] = Ack::Dead;
                }
                Ok(callback) => match caught(self.examine(&callback)).await {
                    Ok(content) => {
                        examined.push(Examined { callback, content });
                        places.push(place);
                    }
                    Err(panic) => {
                        let panic = panic.noted(WORKER, "examine", &digest(&callback.body));
                        panicked.push((place, callback, panic));
                    }
                },
                Err(error) => {
                    error!(%error, "A message in the callback queue cannot be read as a callback");
                    acks[place] = Ack::Dead;
                }
            }
        }
        for (place, ack) in places.into_iter().zip(self.settle_or_split(&examined).await?) {
            acks[place] = ack;
        }
        let those: Vec<_> = panicked.iter().map(|(_, callback, panic)| (callback, panic)).collect();
        for ((place, ..), ack) in panicked.iter().zip(deferred::defer(&self.db, &those).await?) {
            acks[*place] = ack;
        }
        Ok(acks)
    }

    async fn examine(&self, callback: &Callback) -> Content {
        let Some(gateway) = self.gateways.get(callback.method, &callback.account) else {
            return Content::NotYet(format!("no account {}", callback.account));
        };
        let now = self.clock.now();
        let mut told = tell(gateway.as_ref(), callback, now);
        if let Err(CallbackError::UnknownKey { serial }) = &told
            && gateway.look_for_key(serial, now).await
        {
            told = tell(gateway.as_ref(), callback, now);
        }
        let told = told.and_then(|told| match crash::met(Point::CallbackExamined, &told.get().order_no) {
            Ok(()) => Ok(told),
            Err(planted) => Err(CallbackError::Undecodable(planted.to_string())),
        });
        match told {
            Ok(told) => Content::Told(Box::new(told)),
            Err(
                error @ (CallbackError::UnknownKey { .. }
                | CallbackError::KeyNotInForce { .. }
                | CallbackError::Unopened(_)),
            ) => Content::NotYet(error.to_string()),
            Err(CallbackError::BadSignature | CallbackError::Probe | CallbackError::Stale) => {
                Content::Bad(Verdict::BadSignature)
            }
            Err(CallbackError::Malformed(_) | CallbackError::Undecodable(_)) => Content::Bad(Verdict::Undecodable),
        }
    }

    /// Settles what can be settled, stores delayed callbacks as jobs, and returns what to do with each message.
    async fn settle_or_split(&self, examined: &[Examined]) -> Result<Vec<Ack>, DbError> {
        let mut acks: Vec<Ack> = examined.iter().map(Examined::ack).collect();
        let mut waiting = Vec::new();
        if !examined.is_empty() {
            waiting.push((0..examined.len(), Plan::Settle));
        }
        // Set as soon as a part was delayed.
        let mut give_up = None;
        while let Some((part, mut plan)) = waiting.pop() {
            if matches!(plan, Plan::Settle) && give_up.is_some_and(|give_up| Instant::now() >= give_up) {
                plan = Plan::PutOff(SHORT_WAIT, "others of its batch took too long".to_owned());
            }
            let these = &examined[part.clone()];
            let outcome = match caught(Box::pin(self.attempt(these, &plan, give_up.is_some()))).await {
                Ok(outcome) => outcome.map_err(Fault::Db),
                Err(panic) => Err(panic.noted(WORKER, plan.stage(), &these[0].subject()).into()),
            };
            if matches!(outcome, Err(Fault::Db(DbError::Again(_)))) {
                give_up.get_or_insert_with(|| Instant::now() + SEARCH);
            }
            match (outcome, plan) {
                (Ok(judged), _) => judged.into_iter().for_each(|(place, ack)| acks[part.start + place] = ack),
                (Err(Fault::Db(unavailable @ DbError::Unavailable(_))), _) => return Err(unavailable),
                // The callbacks cannot be stored either.
                (Err(Fault::Db(again @ DbError::Again(_))), Plan::PutOff(..) | Plan::Defer(_)) => return Err(again),
                (Err(error), plan) if part.len() > 1 => {
                    warn!(error = chain(&error), callbacks = part.len(), "A batch was not settled; it is split");
                    metrics::counter!("callback_batches_split_total").increment(1);
                    waiting.extend(slices(part).rev().map(|slice| (slice, plan.clone())));
                }
                (Err(Fault::Db(error)), _) if error.blames_the_rows() => {
                    error!(error = chain(&error), "The database refuses a callback permanently");
                    acks[part].fill(Ack::Dead);
                }
                (Err(Fault::Db(error)), Plan::Settle) => {
                    let wait = if matches!(error, DbError::Again(_)) { SHORT_WAIT } else { LONG_WAIT };
                    waiting.push((part, Plan::PutOff(wait, chain(&error))));
                }
                (Err(Fault::Db(error)), Plan::PutOff(..) | Plan::Defer(_)) => return Err(error),
                (Err(Fault::Panicked(panic)), Plan::Settle) => waiting.push((part, Plan::Defer(panic))),
                (Err(Fault::Panicked(_)), Plan::PutOff(..) | Plan::Defer(_)) => {
                    error!("A callback can be neither settled nor stored; its dead letter holds it");
                    acks[part].fill(Ack::Dead);
                }
            }
        }
        Ok(acks)
    }

    /// Carries out the plan for a part of a batch. Returns the acks that differ from those that its verdicts require,
    /// with their positions.
    async fn attempt(&self, these: &[Examined], plan: &Plan, others_wait: bool) -> Result<Vec<(usize, Ack)>, DbError> {
        let all = |ack: Ack| (0..these.len()).map(move |place| (place, ack)).collect();
        match plan {
            Plan::Settle => {
                let Committed { verdicts, stranded } = if others_wait {
                    store::connect::in_time(self.commit(these, Pace::Hurried)).await?
                } else {
                    retry(|| self.commit(these, Pace::Patient)).await?
                };
                self.report(these, &verdicts).await;
                if !stranded.is_empty() {
                    error!(
                        callbacks = stranded.len(),
                        "Keys or accounts are unknown for more than a day; their callbacks become cases"
                    );
                }
                Ok(stranded.into_iter().map(|place| (place, Ack::Dead)).collect())
            }
            Plan::PutOff(wait, reason) => self.put_off(these, *wait, reason).await.map(|()| all(Ack::Done)),
            Plan::Defer(panic) => {
                let those: Vec<_> = these.iter().map(|item| (&item.callback, panic)).collect();
                Ok(deferred::defer(&self.db, &those).await?.into_iter().enumerate().collect())
            }
        }
    }

    /// Stores callbacks as jobs that are due after `wait`. The cause of the delay does not affect this: it only adds
    /// rows, and the rows that exist already are published again in any case.
    async fn put_off(&self, examined: &[Examined], wait: time::Duration, reason: &str) -> Result<(), DbError> {
        let (rows, fresh): (Vec<_>, Vec<_>) = examined.iter().partition(|item| item.callback.job_id.is_some());
        retry(|| self.keep_all(&fresh, reason, wait)).await?;
        match retry(|| self.keep_all(&rows, reason, wait)).await {
            Err(DbError::Again(error)) => {
                warn!(%error, jobs = rows.len(), "Jobs were not postponed; they come again when their lease ends");
                // A job number whose row does not exist counts for nothing: such a callback is stored as a new job.
                let mut lost = Vec::new();
                for item in rows {
                    if !store::connect::in_time(jobs::has_row(&self.db, &item.callback)).await? {
                        lost.push(item);
                    }
                }
                retry(|| self.keep_all(&lost, reason, wait)).await?;
            }
            outcome => outcome?,
        }
        for item in examined {
            metrics::counter!("callbacks_put_off_total", "gateway" => item.callback.method.as_str()).increment(1);
        }
        warn!(callbacks = examined.len(), error = reason, "Callbacks were delayed; they will come again as jobs");
        Ok(())
    }

    async fn keep_all(&self, items: &[&Examined], reason: &str, wait: time::Duration) -> Result<(), DbError> {
        if items.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        store::connect::hardly_wait_for_locks(&mut tx).await?;
        let mut rows = Vec::new();
        for item in items {
            if keep(&mut tx, &item.callback, reason, wait).await?.is_some() {
                rows.extend(item.callback.job_id);
            }
            store::connect::met(&mut tx, Point::CallbackKept, &item.subject()).await?;
        }
        if !rows.is_empty() {
            jobs::slow_down(&mut tx, &rows).await?;
        }
        tx.commit().await?;
        crash::at(Point::CallbackKept);
        Ok(())
    }

    /// Commits one transaction: state, events and cases, the evidence, and the deletion of the callbacks' jobs.
    async fn commit(&self, examined: &[Examined], pace: Pace) -> Result<Committed, DbError> {
        let told: Vec<&Verified<Notification>> = examined.iter().filter_map(Examined::told).collect();
        crash::at(Point::CallbackExamined);
        let mut tx = self.db.begin().await?;
        if pace == Pace::Hurried {
            store::connect::hardly_wait_for_locks(&mut tx).await?;
        }
        let mut verdicts = settle::settle(&mut tx, &told, &self.gateways.policies(), &self.clock).await?.into_iter();
        crash::at(Point::CallbackMoved);
        met(&mut tx, Point::CallbackMoved, examined).await?;
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
        let decided: Vec<&Callback> = evidence.iter().map(|evidence| evidence.callback).collect();
        jobs::delete_callbacks(&mut tx, &decided).await?;
        let mut stranded = Vec::new();
        for (place, item) in examined.iter().enumerate() {
            if let Content::NotYet(reason) = &item.content
                && keep(&mut tx, &item.callback, reason, LONG_WAIT).await? > Some(KNOWN_BY_THEN)
            {
                stranded.push(place);
            }
        }
        crash::at(Point::CallbackRecorded);
        met(&mut tx, Point::CallbackRecorded, examined).await?;
        tx.commit().await?;
        crash::at(Point::CallbackCommitted);
        Ok(Committed { verdicts, stranded })
    }

    /// Updates the metrics and the log, and notifies the relay, once a batch is committed. A panic here cannot undo the
    /// settled callbacks.
    async fn report(&self, examined: &[Examined], verdicts: &[Option<Verdict>]) {
        let now = self.clock.now();
        let mut news = false;
        for (item, verdict) in examined.iter().zip(verdicts) {
            let reported = caught_now(|| report_one(item, *verdict, now));
            news |= reported.unwrap_or_else(|panic| {
                panic.noted(WORKER, "report", &item.subject());
                true
            });
        }
        // The orders of settled callbacks, and those that now show money that was not owed.
        let changed = examined.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_some_and(Verdict::changes_order));
        let changed = changed.filter_map(|(item, _)| item.told()).map(|told| told.get().order_no.clone());
        let changed = changed.collect();
        if let Err(panic) = caught_now(|| self.copies.renew(&self.db, Changed::Numbers(changed))) {
            panic.noted(WORKER, "report", &"copies");
        }
        // With a time limit: a database whose machine vanishes now must not block the lane permanently.
        if news && let Err(error) = store::connect::in_time(events::nudge(&self.db)).await {
            warn!(%error, "The relay was not nudged; it will poll");
        }
    }
}

/// Counts and logs one callback. Returns whether the relay has something new to publish.
fn report_one(item: &Examined, verdict: Option<Verdict>, now: OffsetDateTime) -> bool {
    let gateway = item.callback.method.as_str();
    let verdict = verdict.map_or("unknown_key", Verdict::as_str);
    metrics::counter!("callbacks_total", "gateway" => gateway, "verdict" => verdict).increment(1);
    let took = (now - item.callback.received_at).as_seconds_f64();
    metrics::histogram!("callback_settle_seconds", "gateway" => gateway).record(took.max(0.0));
    // Everything is committed, so a planted error has no effect here.
    let _ = crash::met(Point::CallbackCommitted, &item.subject());
    match &item.content {
        Content::Told(told) if !matches!(verdict, "duplicate" | "ignored") => {
            let order_no = &told.get().order_no;
            info!(%order_no, gateway, verdict, duration_ms = took * 1e3, "Callback for order {order_no}: {verdict}");
            return true;
        }
        Content::Told(_) => {}
        Content::Bad(_) => error!(gateway, account = %item.callback.account, verdict, "Callback refused"),
        Content::NotYet(reason) => {
            warn!(gateway, account = %item.callback.account, error = reason, "Callback postponed")
        }
    }
    false
}

/// Triggers the fault that a test has planted at this point for one of these callbacks.
async fn met(tx: &mut sqlx::PgConnection, point: Point, examined: &[Examined]) -> Result<(), DbError> {
    for told in examined.iter().filter_map(Examined::told) {
        store::connect::met(tx, point, &told.get().order_no).await?;
    }
    Ok(())
}

fn tell(
    gateway: &dyn Gateway,
    callback: &Callback,
    now: OffsetDateTime,
) -> Result<Verified<Notification>, CallbackError> {
    gateway.verify(callback.clone(), None).and_then(|verified| gateway.read(&verified, now))
}

/// Stores a callback that cannot be settled yet as a new job, or postpones the job that it came as. A job number counts
/// only if the row holds the same bytes. A callback that names the row of another one is stored as a new job, so
/// neither is lost. Returns how long it has been a job, if it came as one.
async fn keep(
    tx: &mut sqlx::PgConnection,
    callback: &Callback,
    reason: &str,
    wait: time::Duration,
) -> Result<Option<time::Duration>, DbError> {
    let age = jobs::postpone(tx, callback, wait, reason).await?;
    if age.is_none() {
        jobs::insert_callback(tx, callback, wait).await?;
    }
    Ok(age)
}

/// Splits the range into [`PARTS`] slices, or into single positions if there are fewer.
fn slices(part: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let len = part.len().div_ceil(PARTS).max(1);
    part.clone().step_by(len).map(move |start| start..part.end.min(start + len)).collect::<Vec<_>>().into_iter()
}

impl Plan {
    /// Its name in metrics.
    fn stage(&self) -> &'static str {
        match self {
            Plan::Settle => "settle",
            Plan::PutOff(..) => "put_off",
            Plan::Defer(_) => "defer",
        }
    }
}

impl Examined {
    /// Its subject, for the log: the order number, or else the digest of its bytes.
    fn subject(&self) -> String {
        self.told().map_or_else(|| digest(&self.callback.body), |told| told.get().order_no.clone())
    }

    /// The ack that its verdict requires, once the verdict is recorded.
    fn ack(&self) -> Ack {
        if matches!(self.content, Content::Bad(_)) { Ack::Dead } else { Ack::Done }
    }

    fn told(&self) -> Option<&Verified<Notification>> {
        match &self.content {
            Content::Told(told) => Some(told.as_ref()),
            _ => None,
        }
    }

    fn evidence(&self, verdict: Verdict) -> Evidence<'_> {
        let told = self.told().map(Verified::get);
        Evidence {
            callback: &self.callback,
            notice_id: told.map_or_else(|| essence(&self.callback), |told| told.notice_id.clone()),
            order_no: told.map(|told| told.order_no.as_str()).filter(|order_no| !order_no.is_empty()),
            verdict,
            note: told.and_then(|told| told.doubt.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_part_in_order_and_shrink_to_single_places() {
        for len in [2, 3, 8, 9, 400, 1000] {
            let slices: Vec<_> = slices(7..7 + len).collect();
            assert!(slices.len() <= PARTS && slices.len() > 1, "{len}: {slices:?}");
            assert_eq!(slices.iter().cloned().flatten().collect::<Vec<_>>(), (7..7 + len).collect::<Vec<_>>());
        }
        let mut longest = vec![1000];
        while *longest.last().unwrap() > 1 {
            longest.push(slices(0..*longest.last().unwrap()).map(|slice| slice.len()).max().unwrap());
        }
        assert_eq!(longest, [1000, 125, 16, 2, 1]);
    }
}
