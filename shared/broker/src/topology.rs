//! The topology: the exchanges, queues, bindings and policies that the service needs, as one table.
//!
//! A deploy step declares it with a user of its own; the services check passively that what they need exists. Every
//! setting that can be a policy is a policy, so that a change never conflicts with an existing queue. The exchange
//! [`MARKER`] is special: only the relay declares it, and its absence shows that the broker was wiped.

use std::fmt;

use domain::message::job::JobKind;
pub use domain::message::job::{PAYMENT_IN, PAYMENT_JOBS};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind, Queue};
use runtime::service::Service;

use crate::error::BrokerError;
use crate::step::step;

/// Where the relay publishes fulfilment events; downstream systems bind queues of their own.
pub const PAYMENT_EVENTS: &str = "payment.events";
/// The queue of callbacks, and its routing key.
pub const CALLBACKS: &str = JobKind::Callback.spec().queue;
/// The queue of refund jobs, and its routing key.
pub const REFUNDS: &str = JobKind::Refund.spec().queue;
/// The queue of checks and look backs, and its routing key.
pub const CHECKS: &str = JobKind::Check.spec().queue;
/// The queue of dead letters.
pub const DEAD: &str = "payment.dead";
/// An exchange whose existence shows that the relay has set up this broker.
pub const MARKER: &str = "payment.marker";

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// By the whole routing key.
    Direct,
    /// By patterns of the routing key.
    Topic,
}

/// A durable exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it routes.
    pub routing: Routing,
}

/// A binding of a queue to an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The exchange.
    pub exchange: &'static str,
    /// The routing key.
    pub routing_key: &'static str,
    /// The queue.
    pub queue: &'static str,
}

/// A policy of the broker: settings for the queues whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name, unique in the virtual host.
    pub name: &'static str,
    /// A regular expression over queue names.
    pub pattern: String,
    /// The queues that it is meant for; a check compares the effective settings of each.
    pub queues: Vec<&'static str>,
    /// The policy with the highest priority is the only one that applies to a queue.
    pub priority: u8,
    /// The settings.
    pub definition: &'static [(&'static str, Setting)],
}

/// The value of a policy's setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Text.
    Text(&'static str),
    /// A whole number.
    Number(i64),
}

/// Every exchange.
pub const EXCHANGES: &[Exchange] = &[
    Exchange { name: PAYMENT_IN, routing: Routing::Direct },
    Exchange { name: PAYMENT_JOBS, routing: Routing::Direct },
    Exchange { name: PAYMENT_EVENTS, routing: Routing::Topic },
];

/// Every queue. All are durable quorum queues: a message is replicated and on disk before its publish is confirmed.
pub fn queues() -> Vec<&'static str> {
    [JobKind::queues(), vec![DEAD]].concat()
}

/// Every binding. Dead letters arrive through the default exchange, which needs no binding.
pub fn bindings() -> Vec<Binding> {
    let specs = JobKind::queues().into_iter().filter_map(JobKind::of_queue).map(JobKind::spec);
    specs.map(|spec| Binding { exchange: spec.exchange, routing_key: spec.queue, queue: spec.queue }).collect()
}

/// The policies, for the management API.
///
/// `at-least-once` needs `reject-publish`, and holds a message in its queue until the dead-letter queue has it. When a
/// worker crashes, its whole prefetch comes one step closer to the delivery limit, so the limit is generous. The
/// dead-letter queue itself has no further dead-letter queue: at its default limit of 20, RabbitMQ 4 would drop
/// messages. So its limit is too high to be reached.
pub fn policies() -> [Policy; 2] {
    [
        Policy {
            name: "payment-work",
            pattern: any_of(&JobKind::queues()),
            queues: JobKind::queues(),
            priority: 10,
            definition: &[
                ("delivery-limit", Setting::Number(20)),
                ("dead-letter-exchange", Setting::Text("")),
                ("dead-letter-routing-key", Setting::Text(DEAD)),
                ("dead-letter-strategy", Setting::Text("at-least-once")),
                ("overflow", Setting::Text("reject-publish")),
            ],
        },
        Policy {
            name: "payment-dead",
            pattern: any_of(&[DEAD]),
            queues: vec![DEAD],
            priority: 10,
            definition: &[("delivery-limit", Setting::Number(1_000_000_000))],
        },
    ]
}

/// A regular expression that matches exactly this name.
pub(crate) fn literally(name: &str) -> String {
    name.chars()
        .flat_map(|c| (!c.is_ascii_alphanumeric() && c.is_ascii()).then_some('\\').into_iter().chain([c]))
        .collect()
}

/// A regular expression that matches these names, all of which begin with `payment.`, and no others.
pub(crate) fn any_of(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| literally(name.trim_start_matches("payment."))).collect();
    match &names[..] {
        [name] => format!(r"^payment\.{name}$"),
        _ => format!(r"^payment\.({})$", names.join("|")),
    }
}

/// What a process needs to find at the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Exchanges it publishes to.
    pub exchanges: Vec<&'static str>,
    /// Queues it consumes.
    pub queues: Vec<&'static str>,
}

impl Needs {
    /// What this process needs. The ingress only publishes callbacks; a worker consumes its queues; the relay needs
    /// everything; the operators' tool needs all queues.
    pub fn of(service: Service) -> Needs {
        match service {
            Service::PaymentApi => Needs { exchanges: vec![PAYMENT_IN], queues: Vec::new() },
            Service::CallbackWorker | Service::CheckWorker | Service::RefundWorker => {
                let mut queues: Vec<&str> =
                    JobKind::of_worker(service.as_str()).into_iter().map(|kind| kind.spec().queue).collect();
                queues.dedup();
                Needs { exchanges: Vec::new(), queues }
            }
            Service::Relay => Needs::everything(),
            Service::PaymentCtl => Needs { exchanges: Vec::new(), queues: queues() },
        }
    }

    /// Every exchange and queue of the table.
    pub fn everything() -> Needs {
        Needs { exchanges: EXCHANGES.iter().map(|exchange| exchange.name).collect(), queues: queues() }
    }
}

/// How an object differs from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// It does not exist. Declaring it corrects that.
    Missing,
    /// It exists with other properties. Only a person can correct that.
    Conflict,
    /// This user has no permission for it.
    Forbidden,
}

/// One object that differs from the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyFault {
    /// How it differs.
    pub difference: Difference,
    /// The object, such as `queue payment.callbacks`.
    pub object: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Everything that is wrong with the topology, one line each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopologyFaults(pub Vec<TopologyFault>);

impl fmt::Display for TopologyFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            let line = if n == 0 { "" } else { "\n" };
            write!(f, "{line}{}: {}; {}", fault.object, fault.wrong, fault.remedy)?;
        }
        Ok(())
    }
}

/// Declares exchanges, queues and bindings. It does not change objects that exist as they should, and never deletes
/// one.
///
/// # Errors
/// [`BrokerError::Topology`] names every object that could not be declared; all objects are tried first.
pub async fn declare(connection: &Connection) -> Result<(), BrokerError> {
    let mut faults = Faults::default();
    for exchange in EXCHANGES {
        let declared = declare_exchange(connection, exchange.name, exchange.routing.kind(), false).await;
        faults.collect(format!("exchange {}", exchange.name), declared)?;
    }
    for queue in queues() {
        faults.collect(format!("queue {queue}"), declare_queue(connection, queue, false).await.map(drop))?;
    }
    for binding in &bindings() {
        let object = format!("binding {} → {} ({})", binding.exchange, binding.queue, binding.routing_key);
        // A queue or exchange of the wrong kind was named above; binding it would hide what is wrong.
        faults.collect(object, bind(connection, binding).await)?;
    }
    faults.finish()
}

/// Checks whether everything that a process needs exists, without changing anything.
///
/// Every user can see whether an object exists. Only a user with the `configure` right can check that it is of the
/// right kind: declaring an existing object compares it and changes nothing. For other users, the deploy step is the
/// check.
///
/// # Errors
/// [`BrokerError::Topology`] names everything that is missing, conflicting or out of reach.
pub async fn check(connection: &Connection, needs: &Needs) -> Result<(), BrokerError> {
    let mut faults = Faults::default();
    for exchange in EXCHANGES.iter().filter(|exchange| needs.exchanges.contains(&exchange.name)) {
        let (name, kind) = (exchange.name, exchange.routing.kind());
        let mut found = declare_exchange(connection, name, kind.clone(), true).await;
        if found.is_ok() {
            found = unless_refused(declare_exchange(connection, name, kind, false).await);
        }
        faults.collect(format!("exchange {name}"), found)?;
    }
    for queue in &needs.queues {
        let mut found = declare_queue(connection, queue, true).await.map(drop);
        if found.is_ok() {
            found = unless_refused(declare_queue(connection, queue, false).await.map(drop));
        }
        faults.collect(format!("queue {queue}"), found)?;
    }
    faults.finish()
}

/// How many messages of a queue wait for a consumer. Messages that a consumer has already received do not count.
///
/// # Errors
/// When there is no such queue, or the broker does not answer.
pub async fn depth(connection: &Connection, queue: &str) -> Result<u32, BrokerError> {
    Ok(declare_queue(connection, queue, true).await?.message_count())
}

/// How many consumers a queue has, as far as our node can see. If our node is cut off from the queue's leader, it sees
/// none.
///
/// # Errors
/// When there is no such queue, or the broker does not answer.
pub async fn consumers(connection: &Connection, queue: &str) -> Result<u32, BrokerError> {
    Ok(declare_queue(connection, queue, true).await?.consumer_count())
}

/// Whether the relay has set this broker up before: false on a new or wiped one.
///
/// # Errors
/// When the broker does not answer; a missing marker is no error.
pub async fn marker_exists(connection: &Connection) -> Result<bool, BrokerError> {
    match declare_exchange(connection, MARKER, ExchangeKind::Direct, true).await {
        Ok(()) => Ok(true),
        Err(error) if error.reply_code() == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Declares the marker. Only the relay calls this, after it has restored the topology and marked everything as due
/// again.
///
/// # Errors
/// When the broker refuses, or does not answer.
pub async fn declare_marker(connection: &Connection) -> Result<(), BrokerError> {
    declare_exchange(connection, MARKER, ExchangeKind::Direct, false).await
}

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;

impl Routing {
    fn kind(self) -> ExchangeKind {
        match self {
            Routing::Direct => ExchangeKind::Direct,
            Routing::Topic => ExchangeKind::Topic,
        }
    }
}

/// Opens a separate channel for each object, because a refusal closes its channel, and only that one.
async fn fresh(connection: &Connection) -> Result<Channel, BrokerError> {
    step("opening a channel", connection.create_channel()).await
}

async fn declare_exchange(
    connection: &Connection,
    name: &str,
    kind: ExchangeKind,
    passive: bool,
) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    let channel = fresh(connection).await?;
    step("declaring an exchange", channel.exchange_declare(name.into(), kind, options, FieldTable::default())).await
}

async fn declare_queue(connection: &Connection, name: &str, passive: bool) -> Result<Queue, BrokerError> {
    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let channel = fresh(connection).await?;
    step("declaring a queue", channel.queue_declare(name.into(), options, arguments)).await
}

async fn bind(connection: &Connection, binding: &Binding) -> Result<(), BrokerError> {
    let channel = fresh(connection).await?;
    let (queue, exchange, key) = (binding.queue.into(), binding.exchange.into(), binding.routing_key.into());
    step(
        "binding a queue",
        channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()),
    )
    .await
}

/// Ignores a refused access: a user without the `configure` right cannot compare an object, which is no fault of it.
fn unless_refused(compared: Result<(), BrokerError>) -> Result<(), BrokerError> {
    match compared {
        Err(error) if error.reply_code() == Some(ACCESS_REFUSED) => Ok(()),
        other => other,
    }
}

#[derive(Default)]
struct Faults(Vec<TopologyFault>);

impl Faults {
    /// Records a refusal of this object and continues; returns any other error, such as one of the connection.
    fn collect(&mut self, object: String, result: Result<(), BrokerError>) -> Result<(), BrokerError> {
        let Err(error) = result else { return Ok(()) };
        let (difference, wrong, remedy) = match (error.reply_code(), &error) {
            (Some(NOT_FOUND), _) => {
                (Difference::Missing, "it does not exist".to_owned(), "run `paymentctl broker-setup`")
            }
            (Some(ACCESS_REFUSED), _) => (
                Difference::Forbidden,
                "this user has no permission for it".to_owned(),
                "grant it, or use another user",
            ),
            (Some(PRECONDITION_FAILED), BrokerError::Amqp { source, .. }) => (
                Difference::Conflict,
                format!("it exists with other properties ({})", reason(source)),
                "empty and delete it, then run `paymentctl broker-setup`",
            ),
            _ => return Err(error),
        };
        self.0.push(TopologyFault { difference, object, wrong, remedy });
        Ok(())
    }

    fn finish(self) -> Result<(), BrokerError> {
        if self.0.is_empty() { Ok(()) } else { Err(BrokerError::Topology(TopologyFaults(self.0))) }
    }
}

/// The broker's own description of a conflict.
fn reason(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A typo in the table would leave a kind without a worker.
    #[test]
    fn each_kind_of_job_has_a_worker_that_consumes_its_queue() {
        for spec in JobKind::ALL.iter().map(|kind| kind.spec()) {
            let worker: Service = spec.worker.parse().unwrap();
            assert!(Needs::of(worker).queues.contains(&spec.queue), "{worker}");
        }
    }

    #[test]
    fn a_pattern_matches_our_names_and_no_other() {
        assert_eq!(any_of(&["payment.a.b"]), r"^payment\.a\.b$");
        assert_eq!(any_of(&["payment.a", "payment.b"]), r"^payment\.(a|b)$");
    }
}
