//! Looks after the broker's topology: it detects a wiped broker, causes everything to
//! be published again, and drains the dead letters.

use std::time::Duration;

use broker::topology::{self, Needs};
use broker::{BrokerError, Connection};
use domain::message::job::JobKind;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use store::DbError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::broker_state::{BrokerState, Depths, Rebuild};
use super::dead_letters;
use super::setup::Relay;
use crate::consumer::{self, BatchOptions, ConsumerError};

/// How often the topology is checked.
const LOOK: Duration = Duration::from_secs(5);

pub(super) struct Upkeep<'a> {
    pub relay: &'a Relay,
    /// Sends requests to the task that works on the connection with the lock.
    pub rebuild_requests: mpsc::Sender<Rebuild>,
    /// Reports the state of the topology to that task.
    pub tell: watch::Sender<BrokerState>,
}

impl Upkeep<'_> {
    /// One session with the broker: repairs what is missing, then drains dead letters and repeats the check.
    pub async fn session(&self, broker: &Connection, stop: CancellationToken) -> Result<(), UpkeepError> {
        self.repair(broker).await?;
        let ended = self.drain_and_look(broker, stop).await;
        self.tell.send_replace(BrokerState::Closed);
        ended
    }

    async fn drain_and_look(&self, broker: &Connection, stop: CancellationToken) -> Result<(), UpkeepError> {
        let ended = stop.child_token();
        let look = async {
            let outcome = self.look_until(broker, &ended).await;
            ended.cancel();
            outcome
        };
        let drain = async {
            let options = BatchOptions::in_order(50, Duration::from_millis(50));
            let outcome = consumer::run(broker, topology::DEAD, options, ended.clone(), async |batch| {
                dead_letters::file(self.relay, batch.iter().map(dead_letters::read).collect()).await
            })
            .await;
            ended.cancel();
            outcome
        };
        let (looked, drained) = tokio::join!(look, drain);
        looked?;
        Ok(drained?)
    }

    async fn look_until(&self, broker: &Connection, ended: &CancellationToken) -> Result<(), UpkeepError> {
        loop {
            tokio::select! {
                () = ended.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => self.repair(broker).await?,
            }
        }
    }

    /// Repairs the topology and reports its state.
    async fn repair(&self, broker: &Connection) -> Result<(), UpkeepError> {
        self.mend(broker).await?;
        let mut depths = Depths::default();
        for queue in JobKind::queues() {
            depths.0.insert(queue, depth(broker, queue).await?);
        }
        self.tell.send_replace(BrokerState::Open(depths));
        Ok(())
    }

    /// A missing marker or queue means that the messages on the broker are lost too. The marker is declared last, so a
    /// repair that breaks off starts again.
    async fn mend(&self, broker: &Connection) -> Result<(), UpkeepError> {
        let marked = topology::marker_exists(broker).await?;
        let whole = match topology::check(broker, &Needs::everything()).await {
            Ok(()) => true,
            Err(error @ BrokerError::Topology(_)) => {
                warn!(
                    error = chain(&error),
                    "The topology is not complete; the relay declares what is missing, but policies need `paymentctl broker-setup`"
                );
                false
            }
            Err(error) => return Err(error.into()),
        };
        if marked && whole {
            return Ok(());
        }
        topology::declare(broker).await?;
        crash::at(Point::TopologyDeclared);
        let (done, rebuilt) = oneshot::channel();
        self.rebuild_requests.send(done).await.map_err(|_| UpkeepError::NotLeading)?;
        rebuilt.await.map_err(|_| UpkeepError::NotLeading)?;
        crash::at(Point::TopologyRebuilt);
        Ok(topology::declare_marker(broker).await?)
    }
}

async fn depth(broker: &Connection, queue: &'static str) -> Result<u32, BrokerError> {
    let waiting = topology::depth(broker, queue).await?;
    metrics::gauge!("queue_messages_ready", "queue" => queue).set(f64::from(waiting));
    Ok(waiting)
}

/// The error that ended a session that looks after the topology.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpkeepError {
    /// An error of the broker.
    #[error(transparent)]
    Mq(#[from] BrokerError),
    /// An error of the consumer of dead letters.
    #[error(transparent)]
    Consumer(#[from] ConsumerError<DbError>),
    /// The relay no longer leads.
    #[error("the relay no longer leads")]
    NotLeading,
}
