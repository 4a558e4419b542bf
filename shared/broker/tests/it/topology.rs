//! Sessions, topology, and callbacks as messages, on a real broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use broker::topology::{self, Needs};
use broker::{
    BrokerError, Connection, DeadLetter, LetterOf, Publisher, PublisherOptions, Subscription, callback_from,
    callback_message,
};
use bytes::Bytes;
use domain::message::callback::Callback;
use domain::{AccountName, PaymentMethod};
use lapin::ExchangeKind;
use lapin::options::{
    BasicAckOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use runtime::service::Service;
use secrecy::{ExposeSecret, SecretString};
use testkit::TestBroker;
use time::macros::datetime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_topology_is_this_table() {
    insta::assert_debug_snapshot!((
        topology::EXCHANGES,
        topology::queues(),
        topology::bindings(),
        topology::policies()
    ));
}

#[tokio::test]
async fn declaring_twice_changes_nothing_and_a_service_finds_what_it_needs() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    topology::declare(&admin).await.unwrap();
    let service = broker::open(&broker.uri(), "test").await.unwrap();
    for process in Service::ALL.iter().copied() {
        topology::check(&service, &Needs::of(process)).await.unwrap();
    }
}

#[tokio::test]
async fn everything_that_is_missing_is_named_at_once() {
    let broker = TestBroker::empty().await;
    let service = broker::open(&broker.uri(), "test").await.unwrap();
    let error = topology::check(&service, &Needs::everything()).await.unwrap_err();
    insta::assert_snapshot!(error);
}

#[tokio::test]
async fn every_conflict_is_named_at_once_and_the_rest_is_declared() {
    let broker = TestBroker::empty().await;
    let admin = broker.admin().await;
    let channel = admin.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    for queue in [topology::CALLBACKS, topology::DEAD] {
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
    }
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (name, kind) = (topology::PAYMENT_EVENTS.into(), ExchangeKind::Fanout);
    channel.exchange_declare(name, kind, durable, FieldTable::default()).await.unwrap();
    let BrokerError::Topology(declared) = topology::declare(&admin).await.unwrap_err() else { panic!("another error") };
    let objects: Vec<_> = declared.0.iter().map(|fault| fault.object.as_str()).collect();
    assert_eq!(objects, ["exchange payment.events", "queue payment.callbacks", "queue payment.dead"]);
    // A service that may configure sees the same conflicts, and only those: the rest was declared.
    let service = broker::open(&broker.uri(), "test").await.unwrap();
    let BrokerError::Topology(seen) = topology::check(&service, &Needs::everything()).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(seen, declared);
}

#[tokio::test]
async fn a_service_with_least_rights_can_check_and_learns_what_it_may_not_touch() {
    let broker = TestBroker::new().await;
    let url = testkit::env("AMQP_URL");
    let user = url.split_once("//").and_then(|(_, rest)| rest.split_once(':')).unwrap().0;
    broker.grant(user, ["^$", r"^payment\.in$", "^$"]).await;
    let service = broker::open(&broker.uri(), "test").await.unwrap();
    topology::check(&service, &Needs::of(Service::PaymentApi)).await.unwrap();
}

#[tokio::test]
async fn the_marker_is_absent_until_it_is_set() {
    let broker = TestBroker::new().await;
    let service = broker::open(&broker.uri(), "test").await.unwrap();
    assert!(!topology::marker_exists(&service).await.unwrap());
    topology::declare_marker(&service).await.unwrap();
    assert!(topology::marker_exists(&service).await.unwrap());
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let broker = TestBroker::empty().await;
    let uri = broker.uri().expose_secret().replace("@127", "hidden@127");
    assert!(uri.contains("hidden"));
    let error = broker::open(&SecretString::from(uri), "test").await.unwrap_err();
    assert!(matches!(error, BrokerError::Unreachable(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
    assert!(error.to_string().contains("the broker refuses the user payment: its password is wrong"), "{error}");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_is_dead() {
    let broker = TestBroker::empty().await;
    let uri = format!("amqp://u:p@127.0.0.1:1/{},{}", broker.vhost(), broker.uri().expose_secret());
    broker::open(&SecretString::from(uri), "test").await.unwrap();
}

/// Trap: a consumer stream that stays pending for ever after a channel error. Here the queue is deleted under the
/// consumer, then the connection is closed under it; each time the session ends and the next one consumes.
#[tokio::test]
async fn a_session_is_rebuilt_when_its_queue_or_its_connection_goes() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (begun, sessions) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = CancellationToken::new();
    let (tried, seen) = (begun.clone(), sessions.clone());
    let (uri, token) = (broker.uri(), stop.clone());
    let supervised = tokio::spawn(async move {
        let session = |connection: Arc<Connection>, stop: CancellationToken| {
            let (tried, seen) = (tried.clone(), seen.clone());
            async move {
                tried.fetch_add(1, Ordering::SeqCst);
                let mut subscription = Subscription::open(&connection, topology::CALLBACKS, 10).await?;
                seen.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    next = subscription.next() => next.map(drop),
                    () = stop.cancelled() => Ok(()),
                }
            }
        };
        broker::supervise("test", &uri, token, session).await
    });
    reaches(&sessions, 1).await;
    let channel = admin.create_channel().await.unwrap();
    channel.queue_delete(topology::CALLBACKS.into(), QueueDeleteOptions::default()).await.unwrap();
    // The session has ended, and the next one looks for the queue in vain.
    reaches(&begun, 2).await;
    topology::declare(&admin).await.unwrap();
    reaches(&sessions, 2).await;
    // The plug-in learns of connections every few seconds, so this is asked again until it has an effect.
    let (deadline, known) = (Instant::now() + 2 * SOON, begun.load(Ordering::SeqCst));
    while begun.load(Ordering::SeqCst) == known {
        assert!(Instant::now() < deadline, "the closed connection ends no session");
        broker.close_connections().await;
        sleep(Duration::from_millis(100)).await;
    }
    reaches(&sessions, 3).await;
    stop.cancel();
    timeout(SOON, supervised).await.unwrap().unwrap().unwrap();
}

/// Trap: a handshake of the library that is dropped halfway leaves its thread behind, which panics when the process ends.
#[tokio::test]
async fn a_handshake_that_has_begun_comes_to_its_end_before_the_session_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = SecretString::from(format!("amqp://u:p@{}/%2f", listener.local_addr().unwrap()));
    let stop = CancellationToken::new();
    let supervise = |uri: SecretString| {
        let token = stop.clone();
        tokio::spawn(async move { broker::supervise("test", &uri, token, async |_, _| Err(BrokerError::Lost)).await })
    };
    let supervised = supervise(uri);
    let without_handshake = supervise(SecretString::from("amqp://u:p@127.0.0.1:1/v"));
    let (mut look, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    look.write_all(&[1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let (handshake, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    stop.cancel();
    // One that waits for no handshake ends at once.
    timeout(SOON, without_handshake).await.unwrap().unwrap().unwrap();
    assert!(!supervised.is_finished(), "the handshake was dropped");
    drop(handshake);
    timeout(SOON, supervised).await.unwrap().unwrap().unwrap();
}

async fn reaches(count: &AtomicUsize, least: usize) {
    let wait = async {
        while count.load(Ordering::SeqCst) < least {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not {least} within {SOON:?}"));
}

fn callback() -> Callback {
    Callback {
        method: PaymentMethod::Wechat,
        account: AccountName::parse("main").unwrap(),
        headers: vec![
            ("wechatpay-nonce".to_owned(), "x-y, z".to_owned()),
            ("wechatpay-signature".to_owned(), "s".repeat(400)),
        ],
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
        received_at: datetime!(2026-01-02 03:04:05.123456789 UTC),
        job_id: Some(i64::MAX),
    }
}

#[tokio::test]
async fn a_callback_arrives_as_it_was_sent_and_a_stranger_is_malformed() {
    let broker = TestBroker::new().await;
    let (admin, stop) = (broker.admin().await, CancellationToken::new());
    let publisher = Publisher::start(&broker.uri(), "test", PublisherOptions::default(), stop).unwrap();
    publisher.ready().await;
    let with_job = callback();
    let without_job = Callback { job_id: None, ..callback() };
    let mut stranger = callback_message(&with_job, "3".to_owned());
    stranger.body = Bytes::from(String::from_utf8_lossy(&stranger.body).replacen("account", "stranger", 1));
    let sent = [callback_message(&with_job, "1".to_owned()), callback_message(&without_job, "2".to_owned()), stranger];
    for message in sent {
        publisher.publish(message, SOON).await.unwrap();
    }
    let mut subscription = Subscription::open(&admin, topology::CALLBACKS, 10).await.unwrap();
    for expected in [with_job, without_job] {
        let delivery = subscription.next().await.unwrap().unwrap();
        let arrived = callback_from(&delivery).unwrap();
        assert!(arrived == expected, "{arrived:?}");
    }
    let delivery = subscription.next().await.unwrap().unwrap();
    let error = callback_from(&delivery).unwrap_err().to_string();
    assert!(error.starts_with("the message is malformed: missing field `account`"), "{error}");
}

#[tokio::test]
async fn a_rejected_message_is_a_dead_letter_that_tells_where_it_came_from() {
    let broker = TestBroker::new().await;
    let (admin, stop) = (broker.admin().await, CancellationToken::new());
    let publisher = Publisher::start(&broker.uri(), "test", PublisherOptions::default(), stop).unwrap();
    publisher.ready().await;
    publisher.publish(callback_message(&callback(), "m1".to_owned()), SOON).await.unwrap();
    let mut work = Subscription::open(&admin, topology::CALLBACKS, 1).await.unwrap();
    let mut dead = Subscription::open(&admin, topology::DEAD, 1).await.unwrap();
    work.next().await.unwrap().unwrap().reject(Default::default()).await.unwrap();
    let letter = timeout(SOON, dead.next()).await.unwrap().unwrap().unwrap();
    letter.ack(BasicAckOptions::default()).await.unwrap();
    let letter = DeadLetter::from_delivery(&letter);
    assert_eq!(letter.message_id.as_deref(), Some("m1"));
    assert_eq!(letter.queue.as_deref(), Some(topology::CALLBACKS));
    assert_eq!(letter.reason.as_deref(), Some("rejected"));
    assert_eq!(letter.origin.as_deref(), Some("payment.in/payment.callbacks"));
    assert_eq!(letter.of(), Some(LetterOf::Callback(callback())));
    let channel = admin.create_channel().await.unwrap();
    let left = channel.queue_purge(topology::CALLBACKS.into(), QueuePurgeOptions::default()).await.unwrap();
    assert_eq!(left, 0);
}
