//! Checks whether the broker answers and has everything that the service needs.

use broker::AmqpConfig;
use broker::topology::{self, Difference, Needs, TopologyFaults};
use broker::{BrokerError, Connection};
use domain::message::job::JobKind;
use runtime::error_chain::chain;
use runtime::service::Service;
use secrecy::SecretString;

use super::check::{Check, State};
use crate::deploy::broker_setup;

const POLICIES: &str = "broker policies";
const REPLICAS: &str = "broker replicas";

/// Checks the broker. `None` means that the variable cannot be read; `Some(None)` means that it is not set.
pub(super) async fn look(amqp: Option<Option<AmqpConfig>>, management: Option<SecretString>) -> Vec<Check> {
    let amqp = match amqp {
        None => return Vec::new(),
        Some(None) => return vec![Check::skipped("broker", "set AMQP_URL to the address of paymentctl's user")],
        Some(Some(amqp)) => amqp,
    };
    let connection = match broker::open(&amqp.url, Service::PaymentCtl.as_str()).await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![Check::failed(
                "broker",
                chain(&error),
                "check AMQP_URL, and that the broker runs and knows this user",
            )];
        }
    };
    let vhost = connection.status().vhost().to_string();
    let mut checks = vec![Check::ok("broker", format!("it answers, in vhost {vhost}"))];
    let objects = objects(topology::check(&connection, &Needs::everything()).await);
    let whole = objects.iter().all(|check| check.state != State::Failed);
    checks.extend(objects);
    checks.extend(marker(&connection).await);
    if whole {
        checks.extend(workers(&connection).await);
    }
    broker::close(&connection).await;
    checks.extend(match management {
        _ if !whole => vec![Check::skipped(POLICIES, "mend the topology first")],
        None => vec![Check::skipped(POLICIES, "set RABBITMQ_MANAGEMENT_URL to a user who sees the queues")],
        Some(management) => {
            let mut checks = policies(&management, vhost.clone()).await;
            checks.push(replicas(&management, vhost).await);
            checks
        }
    });
    checks
}

/// One line for each object that differs from the topology.
fn objects(checked: Result<(), BrokerError>) -> Vec<Check> {
    const NAME: &str = "broker topology";
    let TopologyFaults(faults) = match checked {
        Ok(()) => {
            let (exchanges, queues) = (topology::EXCHANGES.len(), topology::queues().len());
            return vec![Check::ok(NAME, format!("{exchanges} exchanges and {queues} queues are there"))];
        }
        Err(BrokerError::Topology(faults)) => faults,
        Err(error) => return vec![Check::failed(NAME, chain(&error), "check that the broker stays up")],
    };
    let check = |fault: topology::TopologyFault| match fault.difference {
        // The user may not see the object, which says nothing about the object itself.
        Difference::Forbidden => Check::warning(fault.object, fault.wrong, fault.remedy),
        Difference::Missing | Difference::Conflict => Check::failed(fault.object, fault.wrong, fault.remedy),
    };
    faults.into_iter().map(check).collect()
}

/// Whether a worker receives from each queue of jobs.
async fn workers(connection: &Connection) -> Vec<Check> {
    const NAME: &str = "workers";
    let mut checks = Vec::new();
    for queue in JobKind::queues() {
        let seen = async {
            let consumers = topology::consumers(connection, queue).await?;
            Ok::<_, BrokerError>((consumers, topology::depth(connection, queue).await?))
        };
        match seen.await {
            Ok((0, waiting)) => {
                let worker = JobKind::ALL.iter().find(|kind| kind.spec().queue == queue).map(|kind| kind.spec().worker);
                let waiting = match waiting {
                    1 => "1 message waits".to_owned(),
                    number => format!("{number} messages wait"),
                };
                let said = format!("no worker receives from it; {waiting}");
                let remedy = format!("start {}, or read its log: it may lack rights here", worker.unwrap_or("it"));
                checks.push(Check::warning(format!("queue {queue}"), said, remedy));
            }
            Ok(_) => {}
            // A user without the right to see the queue is no fault.
            Err(_) => return Vec::new(),
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, "each queue of jobs has one that receives from it"));
    }
    checks
}

/// The relay sets the marker once it has declared the topology.
async fn marker(connection: &Connection) -> Option<Check> {
    const NAME: &str = "broker marker";
    match topology::marker_exists(connection).await {
        Ok(true) => Some(Check::ok(NAME, "the relay knows this broker")),
        Ok(false) => {
            let remedy = "start a relay; it publishes again the events that this broker lost";
            Some(Check::warning(NAME, "no relay has been here since the broker was made or wiped", remedy))
        }
        // A user without the right to see the marker is no fault.
        Err(_) => None,
    }
}

/// A queue on only one node of a cluster is no safer than without a cluster.
async fn replicas(management: &SecretString, vhost: String) -> Check {
    match broker_setup::thin_queues(management, vhost).await {
        Ok(thin) if thin.is_empty() => Check::ok(REPLICAS, "each queue lives on as many nodes as it should"),
        Ok(thin) => Check::warning(REPLICAS, thin.join("; "), "until then the loss of one more node may stop a queue"),
        Err(error) => Check::warning(REPLICAS, format!("{error:#}"), "check RABBITMQ_MANAGEMENT_URL and its user"),
    }
}

async fn policies(management: &SecretString, vhost: String) -> Vec<Check> {
    match broker_setup::wrong_policies(management, vhost).await {
        Ok(wrong) if wrong.is_empty() => vec![Check::ok(POLICIES, "those of the topology are in effect")],
        Ok(wrong) => {
            let remedy = "then run `paymentctl broker-setup`";
            wrong.into_iter().map(|wrong| Check::failed(POLICIES, wrong, remedy)).collect()
        }
        Err(error) => vec![Check::failed(POLICIES, format!("{error:#}"), "check RABBITMQ_MANAGEMENT_URL and its user")],
    }
}
