//! The relay: PostgreSQL holds the truth, RabbitMQ transports messages, and this process publishes due jobs and new
//! events from one to the other.
//!
//! One relay is active, the others are on standby. The active relay works on the same connection that holds the lock,
//! so it cannot continue after the lock is lost. Every message may arrive twice, because the relay marks it as
//! published only after the confirm.
//!
//! A panic affects one row, or else one step of a round. That step rests for a moment, the others continue, and the
//! relay stays the leader.

use std::collections::HashMap;
use std::time::Duration;

use broker::PublisherState;
use domain::message::job::JobKind;
use runtime::error_chain::chain;
use runtime::panics::caught;
use sqlx::PgConnection;
use store::DbError;
use store::connect::in_time;
use store::tables::{self, jobs};
use store::upkeep::leadership;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

mod audit;
mod broker_state;
mod dead_letters;
mod due_jobs;
mod limits;
mod outbox;
pub mod retention;
mod setup;
mod stats;
mod upkeep;

pub use limits::PUBLISHING;
pub use setup::{Relay, Settings};

use broker_state::{BrokerState, Rebuild};
use limits::WORKER;
use outbox::Outbox;

/// How long a step of a round rests after a panic, or after an error that comes neither from an unavailable server nor
/// from another transaction.
const REST: Duration = Duration::from_secs(5);
/// The pause between two publishes of jobs that can wait.
const IDLE_PAUSE: Duration = Duration::from_millis(500);
/// How often an idle relay looks for work.
const POLL: Duration = Duration::from_millis(200);
/// How often a standby tries to get the lock.
const STANDBY: Duration = Duration::from_secs(1);
/// How often the relay measures the backlog. So the connection is used at least this often.
const MEASURE: Duration = Duration::from_secs(5);

/// The messages from the task that looks after the topology to the task that publishes.
struct Directions {
    /// Requests to rebuild.
    rebuilds: mpsc::Receiver<Rebuild>,
    /// The state of the topology. While it is closed, nothing is published, because it would have to be published
    /// again.
    state: watch::Receiver<BrokerState>,
}

impl Relay {
    /// Leads whenever no other relay does, until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let active = metrics::gauge!("relay_active");
        while !stop.is_cancelled() {
            active.set(0.0);
            // On the heap, like its parts below: in a test build, together they are too large for a thread's stack.
            if let Err(error) = Box::pin(self.lead(stop)).await {
                warn!(error = chain(&error), "The relay cannot lead now; it tries again");
            }
            active.set(0.0);
            tokio::select! { () = tokio::time::sleep(STANDBY) => {}, () = stop.cancelled() => {} }
        }
    }

    /// Waits for the lock, then publishes until `stop` or until the connection is lost.
    async fn lead(&self, stop: &CancellationToken) -> Result<(), DbError> {
        let mut connection = self.db.acquire().await?.detach();
        in_time(leadership::end_when_silent(&mut connection)).await?;
        while !in_time(leadership::try_lead(&mut connection)).await? {
            tokio::select! { () = tokio::time::sleep(STANDBY) => {}, () = stop.cancelled() => return Ok(()) }
        }
        info!("This relay is the active one");
        metrics::gauge!("relay_active").set(1.0);
        let leading = stop.child_token();
        let (rebuild_requests, rebuilds) = mpsc::channel(1);
        let (tell, state) = watch::channel(BrokerState::Closed);
        let publishing = async {
            let ended = Box::pin(self.publish_rounds(&mut connection, Directions { rebuilds, state }, &leading)).await;
            leading.cancel();
            ended
        };
        let upkeep = upkeep::Upkeep { relay: self, rebuild_requests, tell };
        let look_after = broker::supervise("relay-upkeep", &self.amqp_url, leading.clone(), async |broker, stop| {
            Box::pin(upkeep.session(&broker, stop)).await
        });
        let (counting, removing) = (
            Box::pin(stats::count(self, &leading)),
            Box::pin(retention::purge(&self.db, &self.clock, self.settings.periods, &leading)),
        );
        let linking = Box::pin(audit::link(self, &leading));
        let (published, looked_after, (), (), ()) = tokio::join!(publishing, look_after, counting, removing, linking);
        if let Err(error) = looked_after {
            warn!(error = chain(&error), "The broker's topology is no longer looked after");
        }
        published
    }

    /// Publishes what is due, round after round. Between rounds it handles requests to rebuild after the broker was
    /// wiped.
    async fn publish_rounds(
        &self,
        connection: &mut PgConnection,
        mut directions: Directions,
        leading: &CancellationToken,
    ) -> Result<(), DbError> {
        let mut nudges = in_time(tables::events::listen(&self.db)).await?;
        let mut outbox = Outbox::default();
        // By the monotonic clock, so that the connection is used regularly even if the wall clock is set back.
        let mut measured: Option<Instant> = None;
        let mut steps = Steps::default();
        let mut last_idle: Option<Instant> = None;
        while !leading.is_cancelled() {
            if measured.is_none_or(|at| at.elapsed() > MEASURE) {
                measured = Some(Instant::now());
                steps.take("measure", self.measure(connection)).await?;
            }
            let state = directions.state.borrow_and_update().clone();
            // While the publisher cannot publish, leasing jobs and returning them would only cause writes.
            if let BrokerState::Open(depths) = state
                && directions.rebuilds.is_empty()
                && self.publisher.state() == PublisherState::Ready
            {
                let events = steps.take("outbox", outbox.publish_events(self, connection)).await?;
                let mut jobs = 0;
                for (kind, depth) in depths.when_due() {
                    jobs += steps.take(kind.as_str(), due_jobs::publish_due(self, connection, kind, depth)).await?;
                }
                // Jobs that can wait are published when no other job is due, and only while their queue is short. The
                // relay publishes a few and then pauses, because it learns the depth of the queue with a delay.
                let idle: Vec<_> = depths.when_idle().collect();
                if jobs == 0 && !idle.is_empty() && last_idle.is_none_or(|at| at.elapsed() >= IDLE_PAUSE) {
                    last_idle = Some(Instant::now());
                    for (kind, depth) in idle {
                        steps.take(kind.as_str(), due_jobs::publish_due(self, connection, kind, depth)).await?;
                    }
                }
                if events + jobs > 0 {
                    continue;
                }
            }
            tokio::select! {
                () = leading.cancelled() => {}
                Some(done) = directions.rebuilds.recv() => {
                    // The rebuild marks these events as unpublished, like the others.
                    outbox = Outbox::default();
                    let rebuild = async { self.rebuild(connection).await.map(Some) };
                    if steps.take("rebuild", rebuild).await?.is_some() {
                        // If the requesting session is gone, the next session requests it again.
                        let _ = done.send(());
                    }
                    // Else `done` is dropped. That ends the session, and the next one requests it again.
                }
                nudge = nudges.try_recv() => { nudge?; }
                // An error means that the task that looks after the topology has ended; this task will end too.
                Ok(()) = directions.state.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        Ok(())
    }

    /// Makes everything due again that the broker held: ends the leases, and marks recent events as unpublished.
    async fn rebuild(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        let since = self.clock.now() - self.settings.republish;
        let jobs = jobs::clear_leases(connection).await?;
        let events = tables::events::unpublish(connection, since).await?;
        if jobs + events == 0 {
            info!("The broker is new, and nothing was published before");
            return Ok(());
        }
        metrics::counter!("relay_rebuilds_total").increment(1);
        warn!(jobs, events, "The broker was wiped: {jobs} jobs and {events} events will be published again");
        Ok(())
    }

    async fn measure(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        let (count, oldest) = tables::events::backlog(&mut *connection).await?;
        metrics::gauge!("events_unpublished").set(count as f64);
        metrics::gauge!("events_oldest_unpublished_seconds").set(oldest.as_seconds_f64());
        let (count, oldest) = tables::refund_requests::backlog(&mut *connection).await?;
        metrics::gauge!("refund_requests_open").set(count as f64);
        metrics::gauge!("refund_request_oldest_seconds").set(oldest.as_seconds_f64());
        for kind in JobKind::ALL.iter().copied() {
            let (count, oldest) = jobs::backlog(&mut *connection, kind).await?;
            metrics::gauge!("jobs_due", "kind" => kind.as_str()).set(count as f64);
            metrics::gauge!("jobs_oldest_due_seconds", "kind" => kind.as_str()).set(oldest.as_seconds_f64());
        }
        Ok(())
    }
}

/// The steps of the rounds that rest after a defect, each with the end of its rest.
#[derive(Default)]
struct Steps(HashMap<&'static str, Instant>);

impl Steps {
    /// Runs a step, unless it rests. Only an unavailable server ends the leadership. If another transaction is in the
    /// way, the step waits for the next round. After a panic, or any other error, the step rests and the others
    /// continue.
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
                warn!(error = chain(&error), "Another transaction was in the way; the next round will repeat the step");
                return Ok(T::default());
            }
            Ok(Err(error @ DbError::Unavailable(_))) => return Err(error),
            Ok(Err(error)) => {
                metrics::counter!("relay_steps_failed_total", "step" => step).increment(1);
                error!(step, error = chain(&error), "The relay's step {step} failed; it rests, the others continue");
            }
            Ok(outcome) => return outcome,
            Err(panic) => drop(panic.noted(WORKER, step, &format_args!("the step {step}"))),
        }
        self.0.insert(step, Instant::now() + REST);
        Ok(T::default())
    }
}
