//! The relay: PostgreSQL is the truth, RabbitMQ is the road, and this process carries what is due from one to the other.
//!
//! One relay is active, the others stand by. The active one does its work on the very connection that holds the lock, so
//! it cannot go on once the lock is lost. Everything it publishes may arrive twice: it marks after the confirm, never
//! before.
//!
//! A panic concerns one row, or else one step of a round: the step rests for a moment, the others go on, and the relay keeps
//! the lead.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use broker::{MqError, Publisher, PublisherOptions, PublisherState};
use domain::message::event::kind::{CASE_OPENED, CASE_REOPENED};
use domain::message::job::{JobKind, Pace};
use runtime::clock::Clock;
use runtime::error_chain::chain;
use runtime::panics::caught;
use secrecy::SecretString;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::cache::Renewer;
use store::connect::in_time;
use store::tables::{events, jobs};
use store::upkeep::leadership;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

mod audit;
mod dead_letters;
mod due_jobs;
mod outbox;
pub mod retention;
mod road;
mod stats;

use outbox::Outbox;
use retention::Keep;

/// The name in metrics and logs.
const WORKER: &str = "relay";
/// How long a step of a round rests after a panic, or after an error that is neither the server's nor a lock's.
const REST: Duration = Duration::from_secs(5);
/// How long no jobs that can wait go out after a few did.
const IDLE_PAUSE: Duration = Duration::from_millis(500);
/// How often an idle relay looks, and a standby asks for the lock.
const POLL: Duration = Duration::from_millis(200);
const STANDBY: Duration = Duration::from_secs(1);
/// How many rows one round carries.
const BATCH: i64 = 1000;
/// One channel, so that events keep their order, and a round is confirmed as a whole.
pub const PUBLISHING: PublisherOptions = PublisherOptions { channels: 1, group: BATCH as usize, queue: BATCH as usize };
/// A queue longer than this gets no repeats.
const LONG_QUEUE: u32 = 10_000;
/// How long the confirms of a round may take. Meanwhile nothing is asked on the connection that holds the lock, and the
/// server ends it when it is silent for 15 s.
const CONFIRM: Duration = Duration::from_secs(10);
/// How often the backlog is measured, and so how often the connection is used at least.
const MEASURE: Duration = Duration::from_secs(5);

/// What an operator can set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Event types that count as published when nobody listens.
    pub optional_events: HashSet<String>,
    /// After how long an event that nobody would have received is tried again.
    pub unroutable_retry: time::Duration,
    /// How far back events are published again when the broker was wiped.
    pub republish: time::Duration,
    /// How long rows are kept.
    pub keep: Keep,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            optional_events: [CASE_OPENED, CASE_REOPENED].map(str::to_owned).into(),
            unroutable_retry: time::Duration::seconds(30),
            republish: time::Duration::days(7),
            keep: Keep::default(),
        }
    }
}

/// Carries due jobs and new events to the broker.
pub struct Relay {
    /// Where the truth is.
    pub db: PgPool,
    /// Publishes on one channel, so that events keep their order.
    pub publisher: Publisher,
    /// For the session that looks after the road.
    pub amqp_url: SecretString,
    /// The clock.
    pub clock: Clock,
    /// What an operator can set.
    pub settings: Settings,
    /// Passes on which orders have changed.
    pub copies: Renewer,
}

/// The broker was found wiped: the holder of the lock marks everything that was on it as due again, and answers.
type Rebuild = oneshot::Sender<()>;

/// What whoever looks after the road tells whoever carries.
struct Directions {
    /// Requests to rebuild.
    asked: mpsc::Receiver<Rebuild>,
    /// How the road is. Nothing is carried while it is closed: it would have to go out again.
    state: watch::Receiver<RoadState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RoadState {
    Closed,
    Open(Depths),
}

/// How many messages wait in each queue of work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Depths(BTreeMap<&'static str, u32>);

impl Relay {
    /// Leads when nobody else does, until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let active = metrics::gauge!("relay_active");
        while !stop.is_cancelled() {
            active.set(0.0);
            // On the heap, as its parts below: together they are more than a thread's stack bears in a build for tests.
            if let Err(error) = Box::pin(self.lead(stop)).await {
                warn!(error = chain(&error), "The relay lost its footing");
            }
            active.set(0.0);
            tokio::select! { () = tokio::time::sleep(STANDBY) => {}, () = stop.cancelled() => {} }
        }
    }

    /// Waits for the lock, then carries until the connection is lost or `stop`.
    async fn lead(&self, stop: &CancellationToken) -> Result<(), DbError> {
        let mut connection = self.db.acquire().await?.detach();
        in_time(leadership::end_when_silent(&mut connection)).await?;
        while !in_time(leadership::try_lead(&mut connection)).await? {
            tokio::select! { () = tokio::time::sleep(STANDBY) => {}, () = stop.cancelled() => return Ok(()) }
        }
        info!("This relay is the active one");
        metrics::gauge!("relay_active").set(1.0);
        let leading = stop.child_token();
        let (ask, asked) = mpsc::channel(1);
        let (tell, state) = watch::channel(RoadState::Closed);
        let carry = async {
            let ended = Box::pin(self.carry(&mut connection, Directions { asked, state }, &leading)).await;
            leading.cancel();
            ended
        };
        let road = road::Road { relay: self, ask, tell };
        let look_after = broker::supervise("relay-road", &self.amqp_url, leading.clone(), async |broker, stop| {
            Box::pin(road.session(&broker, stop)).await
        });
        let (counting, removing) = (Box::pin(stats::keep(self, &leading)), Box::pin(retention::keep(self, &leading)));
        let linking = Box::pin(audit::keep(self, &leading));
        let (carried, looked_after, (), (), ()) = tokio::join!(carry, look_after, counting, removing, linking);
        if let Err(error) = looked_after {
            warn!(%error, "The road is not looked after");
        }
        carried
    }

    /// Round after round: what is due goes out; between rounds it may be told that the broker was wiped.
    async fn carry(
        &self,
        connection: &mut PgConnection,
        mut directions: Directions,
        leading: &CancellationToken,
    ) -> Result<(), DbError> {
        let mut nudges = in_time(events::listen(&self.db)).await?;
        let mut outbox = Outbox::default();
        // By the monotonic clock: when the wall clock is set back, the connection is used all the same.
        let mut measured: Option<Instant> = None;
        let mut steps = Steps::default();
        let mut last_idle: Option<Instant> = None;
        while !leading.is_cancelled() {
            if measured.is_none_or(|at| at.elapsed() > MEASURE) {
                measured = Some(Instant::now());
                steps.take("measure", self.measure(connection)).await?;
            }
            let state = directions.state.borrow_and_update().clone();
            // While the publisher cannot publish, leasing and giving back would only write.
            if let RoadState::Open(depths) = state
                && directions.asked.is_empty()
                && self.publisher.state() == PublisherState::Ready
            {
                let events = steps.take("outbox", outbox.carry(self, connection)).await?;
                let mut jobs = 0;
                for (kind, depth) in depths.when_due() {
                    jobs += steps.take(kind.as_str(), due_jobs::carry(self, connection, (kind, depth))).await?;
                }
                // Jobs that can wait go out when no other is due, and only while those of their queue come to their turn
                // soon: a few, and the next few after a pause, since the depth is known with a delay.
                if jobs == 0 && last_idle.is_none_or(|at| at.elapsed() >= IDLE_PAUSE) {
                    last_idle = Some(Instant::now());
                    for (kind, depth) in depths.when_idle() {
                        steps.take(kind.as_str(), due_jobs::carry(self, connection, (kind, depth))).await?;
                    }
                }
                if events + jobs > 0 {
                    continue;
                }
            }
            tokio::select! {
                () = leading.cancelled() => {}
                Some(done) = directions.asked.recv() => {
                    // Those events are unpublished with the others.
                    outbox = Outbox::default();
                    let rebuild = async { self.rebuild(connection).await.map(Some) };
                    if steps.take("rebuild", rebuild).await?.is_some() {
                        // Whoever asked has gone with its session: the next session asks again.
                        let _ = done.send(());
                    }
                    // Else `done` is dropped, which ends the session, and the next one asks again.
                }
                nudge = nudges.try_recv() => { nudge?; }
                // An error: the one who looks after the road has ended, and so will this.
                Ok(()) = directions.state.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        Ok(())
    }

    /// Whatever the broker held is due again: leases end, and recent events count as unpublished.
    async fn rebuild(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        let since = self.clock.now() - self.settings.republish;
        let jobs = jobs::clear_leases(connection).await?;
        let events = events::unpublish(connection, since).await?;
        if jobs + events == 0 {
            info!("The broker is new, and nothing had been published");
            return Ok(());
        }
        metrics::counter!("relay_rebuilds_total").increment(1);
        warn!(jobs, events, "The broker was wiped: {jobs} jobs and {events} events go out again");
        Ok(())
    }

    async fn measure(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        let (count, oldest) = events::backlog(&mut *connection).await?;
        metrics::gauge!("events_unpublished").set(count as f64);
        metrics::gauge!("events_oldest_unpublished_seconds").set(oldest.as_seconds_f64());
        for kind in JobKind::ALL.iter().copied() {
            let (count, oldest) = jobs::backlog(&mut *connection, kind).await?;
            metrics::gauge!("jobs_due", "kind" => kind.as_str()).set(count as f64);
            metrics::gauge!("jobs_oldest_due_seconds", "kind" => kind.as_str()).set(oldest.as_seconds_f64());
        }
        Ok(())
    }
}

impl Depths {
    /// The kinds of jobs that go out when they are due, each with how many messages wait in its queue.
    fn when_due(&self) -> impl Iterator<Item = (JobKind, u32)> {
        self.by_kind().filter(|(kind, _)| kind.spec().pace == Pace::WhenDue)
    }

    /// The kinds of jobs that wait until their queue is short, where it is short.
    fn when_idle(&self) -> impl Iterator<Item = (JobKind, u32)> {
        let short =
            |(kind, depth): &(JobKind, u32)| kind.spec().pace != Pace::WhenDue && *depth < due_jobs::SHORT_QUEUE;
        self.by_kind().filter(short)
    }

    fn by_kind(&self) -> impl Iterator<Item = (JobKind, u32)> {
        let depth = |kind: JobKind| self.0.get(kind.spec().queue).copied().unwrap_or_default();
        JobKind::ALL.iter().map(move |kind| (*kind, depth(*kind)))
    }
}

/// The steps of the rounds: until when those rest that met a defect.
#[derive(Default)]
struct Steps(HashMap<&'static str, Instant>);

impl Steps {
    /// Takes a step, unless it rests. Only a server that is away costs the lead. Another transaction in the way puts the step
    /// off to the next round; after a panic, or an error of some row, the step rests and the others go on.
    async fn take<T: Default>(
        &mut self,
        step: &'static str,
        work: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        if self.0.get(step).is_some_and(|until| Instant::now() < *until) {
            return Ok(T::default());
        }
        match caught(in_time(Box::pin(work))).await {
            Ok(Err(error @ DbError::Again(_))) => {
                metrics::counter!("relay_rounds_put_off_total").increment(1);
                warn!(error = chain(&error), "Another transaction was in the way; the next round does it");
                return Ok(T::default());
            }
            Ok(Err(error @ DbError::Unavailable(_))) => return Err(error),
            Ok(Err(error)) => {
                metrics::counter!("relay_steps_failed_total", "step" => step).increment(1);
                error!(step, error = chain(&error), "The relay's step {step} failed; it rests, and the others go on");
            }
            Ok(outcome) => return outcome,
            Err(panic) => drop(panic.noted(WORKER, step, &format_args!("the step {step}"))),
        }
        self.0.insert(step, Instant::now() + REST);
        Ok(T::default())
    }
}

/// Why a look after the road ended.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// The broker.
    #[error(transparent)]
    Mq(#[from] MqError),
    /// The consumer of dead letters.
    #[error(transparent)]
    Consumer(#[from] crate::consumer::ConsumerError<DbError>),
    /// The relay no longer leads.
    #[error("the relay no longer leads")]
    NotLeading,
}
