//! The permissions at the broker are those of the table, and not wider. The end-to-end tests prove that they suffice:
//! there every process logs in as itself.

use std::time::Duration;

use broker::topology::{self, Needs};
use broker::{BrokerError, Connection};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use runtime::service::Service::{self, CallbackWorker, CheckWorker, PaymentApi, RefundWorker, Relay};
use testkit::TestBroker;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);
const REFUSED: u16 = 403;

/// An action of a user at the broker.
#[derive(Debug, Clone, Copy)]
enum Act {
    Publish(&'static str),
    Consume(&'static str),
    Get(&'static str),
    Purge(&'static str),
    DeleteQueue(&'static str),
    DeleteExchange(&'static str),
    /// Declares a queue of its own.
    Declare(&'static str),
    /// Binds a queue to an exchange.
    Bind(&'static str, &'static str),
}

/// Actions, each with the processes that may do it.
const ACTS: &[(Act, &[Service])] = &[
    (Act::Publish(topology::PAYMENT_IN), &[PaymentApi, Relay]),
    (Act::Publish(topology::PAYMENT_JOBS), &[Relay]),
    (Act::Publish(topology::PAYMENT_EVENTS), &[Relay]),
    // The default exchange reaches every queue.
    (Act::Publish(""), &[]),
    (Act::Publish("amq.topic"), &[]),
    (Act::Consume(topology::CALLBACKS), &[CallbackWorker]),
    (Act::Consume(topology::CHECKS), &[CheckWorker]),
    (Act::Consume(topology::REFUNDS), &[RefundWorker]),
    (Act::Consume(topology::DEAD), &[Relay]),
    (Act::Get(topology::CALLBACKS), &[CallbackWorker]),
    (Act::Get(topology::DEAD), &[Relay]),
    (Act::Purge(topology::DEAD), &[Relay]),
    (Act::Declare("mine"), &[]),
    (Act::Declare("payment.mine"), &[]),
    (Act::Declare("payment.callbacks2"), &[]),
    (Act::Bind(topology::PAYMENT_EVENTS, topology::CHECKS), &[]),
    (Act::Bind(topology::PAYMENT_EVENTS, topology::CALLBACKS), &[]),
    (Act::Bind(topology::PAYMENT_IN, topology::DEAD), &[]),
    (Act::Bind(topology::PAYMENT_IN, topology::CALLBACKS), &[Relay]),
    // Last, because they take effect. The process that may declare the topology may also delete it.
    (Act::DeleteQueue(topology::CHECKS), &[Relay]),
    (Act::DeleteExchange(topology::PAYMENT_EVENTS), &[Relay]),
];

#[tokio::test]
async fn a_user_is_refused_what_is_not_his_business() {
    let broker = TestBroker::new().await;
    let mut wrong = Vec::new();
    // The relay last: what it may delete, the others must find.
    for service in Service::ALL.iter().filter(|service| **service != Relay).chain(&[Relay]) {
        let connection = broker::open(&broker.uri_for(*service).await, "test").await.unwrap();
        for (act, allowed) in ACTS {
            let done = do_it(&connection, *act).await;
            match (allowed.contains(service), &done) {
                (true, Ok(())) => {}
                (false, Err(error)) if error.reply_code() == Some(REFUSED) => {}
                _ => wrong.push(format!("{service}: {act:?}: {done:?}")),
            }
        }
        broker::close(&connection).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Does the action on a separate channel, which a refusal closes.
async fn do_it(connection: &Connection, act: Act) -> Result<(), BrokerError> {
    let channel = broker::step("opening a channel", connection.create_channel()).await?;
    match act {
        Act::Publish(exchange) => publish(&channel, exchange).await,
        Act::Consume(queue) => {
            let options = BasicConsumeOptions::default();
            let consume = channel.basic_consume(queue.into(), "test".into(), options, FieldTable::default());
            broker::step("consuming", consume).await.map(drop)
        }
        Act::Get(queue) => {
            broker::step("getting", channel.basic_get(queue.into(), BasicGetOptions::default())).await.map(drop)
        }
        Act::Purge(queue) => {
            broker::step("purging", channel.queue_purge(queue.into(), QueuePurgeOptions::default())).await.map(drop)
        }
        Act::DeleteQueue(queue) => {
            broker::step("deleting", channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await.map(drop)
        }
        Act::DeleteExchange(exchange) => {
            broker::step("deleting", channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default())).await
        }
        Act::Declare(queue) => {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            broker::step("declaring", channel.queue_declare(queue.into(), options, FieldTable::default()))
                .await
                .map(drop)
        }
        Act::Bind(exchange, queue) => {
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            broker::step("binding", channel.queue_bind(queue.into(), exchange.into(), queue.into(), options, none))
                .await
        }
    }
}

/// A refused publish closes the channel, and its confirm returns the error.
async fn publish(channel: &Channel, exchange: &str) -> Result<(), BrokerError> {
    broker::step("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let publish = channel.basic_publish(exchange.into(), "nowhere".into(), options, b"", properties);
    broker::step("publishing", async { publish.await?.await }).await.map(drop)
}

/// The check at the start works with the least permissions, and so does the relay's repair of the topology.
#[tokio::test]
async fn each_process_finds_what_it_needs_and_the_relay_can_declare_it() {
    let broker = TestBroker::new().await;
    for service in Service::ALL.iter().copied() {
        let connection = broker::open(&broker.uri_for(service).await, "test").await.unwrap();
        let checked = topology::check(&connection, &Needs::of(service)).await;
        checked.unwrap_or_else(|error| panic!("{service}: {error}"));
        broker::close(&connection).await;
    }
    let empty = TestBroker::empty().await;
    let relay = broker::open(&empty.uri_for(Relay).await, "test").await.unwrap();
    assert!(!topology::marker_exists(&relay).await.unwrap());
    topology::declare(&relay).await.unwrap();
    topology::check(&relay, &Needs::everything()).await.unwrap();
    topology::declare_marker(&relay).await.unwrap();
    for queue in topology::queues() {
        assert_eq!(topology::depth(&relay, queue).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_missing_object_is_distinguished_from_a_missing_right() {
    let broker = TestBroker::empty().await;
    let api = broker::open(&broker.uri_for(PaymentApi).await, "test").await.unwrap();
    let BrokerError::Topology(faults) = topology::check(&api, &Needs::of(PaymentApi)).await.unwrap_err() else {
        panic!()
    };
    let differences: Vec<_> = faults.0.iter().map(|fault| fault.difference).collect();
    assert_eq!(differences, [topology::Difference::Missing]);
    timeout(SOON, broker::close(&api)).await.unwrap();
}
