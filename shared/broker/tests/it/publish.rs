//! What a confirm proves, under loads and faults for which other publishers have reported false confirms.

use std::time::Duration;

use broker::topology::{self, CALLBACKS, PAYMENT_IN, PAYMENT_JOBS, REFUNDS};
use broker::{Message, PublishError, Publisher, PublisherOptions, PublisherState};
use futures_util::future::join_all;
use lapin::Connection;
use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use runtime::http_server::HttpLimits;
use secrecy::{ExposeSecret, SecretString};
use testkit::{Relay, TestBroker};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

const SOON: Duration = Duration::from_secs(10);
/// The bytes of a heartbeat: more than that is a message.
const HEARTBEAT: usize = 8;
/// For what takes a moment, however busy the machine is.
const LONG: Duration = Duration::from_secs(60);

fn message(exchange: &str, routing_key: &str, id: String) -> Message {
    Message {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        body: id.clone().into(),
        id,
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: Vec::new(),
    }
}

async fn start(broker: &TestBroker, options: PublisherOptions) -> (Publisher, CancellationToken) {
    let stop = CancellationToken::new();
    let publisher = Publisher::start(&broker.uri(), "test", options, stop.clone()).unwrap();
    timeout(SOON, publisher.ready()).await.unwrap();
    (publisher, stop)
}

/// Waits until a publisher has no session. At least 50 ms pass before the next one, so this look finds the gap.
async fn session_ends(publisher: &Publisher) {
    let ended = async {
        while publisher.state() != PublisherState::NoSession {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, ended).await.expect("the session ends");
}

/// A queue that takes one message and nacks the rest.
async fn full_queue(broker: &TestBroker, connection: &Connection, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), durable, arguments).await.unwrap();
    let options = QueueBindOptions::default();
    channel.queue_bind(name.into(), PAYMENT_IN.into(), name.into(), options, FieldTable::default()).await.unwrap();
    let (publisher, stop) = start(broker, PublisherOptions::default()).await;
    publisher.publish(message(PAYMENT_IN, name, "first".to_owned()), SOON).await.unwrap();
    stop.cancel();
    publisher.finished().await;
}

/// The bodies of the messages in a queue.
async fn drain(connection: &Connection, queue: &str) -> Vec<String> {
    let channel = connection.create_channel().await.unwrap();
    let mut bodies = Vec::new();
    while let Some(got) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        bodies.push(String::from_utf8(got.delivery.data).unwrap());
    }
    bodies
}

/// Traps: confirms handed to the wrong publisher on a shared channel, nacks that a "wait for all" hides, and returned
/// messages that ride on a neighbour's confirm. 64 callers, a third of the messages routed, a third nacked, a third
/// unroutable: every caller gets the result of its own message, and the queue holds exactly the confirmed ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_hears_of_his_own_message() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    full_queue(&broker, &admin, "payment.full").await;
    let (publisher, _stop) = start(&broker, PublisherOptions { channels: 3, group: 64, queue: 256 }).await;
    let callers = (0..64).map(|caller| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            let mut confirmed = Vec::new();
            for n in 0..60 {
                let key = [CALLBACKS, "payment.full", "payment.nowhere"][(caller + n) % 3];
                let id = format!("{caller}-{n}");
                let outcome = publisher.publish(message(PAYMENT_IN, key, id.clone()), SOON).await;
                match key {
                    CALLBACKS => confirmed.push(outcome.unwrap().id().to_owned()),
                    "payment.full" => assert_eq!(outcome.unwrap_err(), PublishError::Refused("nack".to_owned())),
                    _ => assert_eq!(outcome.unwrap_err(), PublishError::Unroutable),
                }
            }
            confirmed
        })
    });
    let confirmed = join_all(callers).await.into_iter().flat_map(Result::unwrap);
    let mut confirmed: Vec<String> = confirmed.collect();
    let mut stored = drain(&admin, CALLBACKS).await;
    confirmed.sort();
    stored.sort();
    assert_eq!(confirmed.len(), 64 * 60 / 3);
    assert_eq!(stored, confirmed);
}

#[tokio::test]
async fn many_at_once_are_answered_in_their_order_and_one_channel_keeps_it() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (publisher, _stop) = start(&broker, PublisherOptions { channels: 1, group: 200, queue: 400 }).await;
    let messages = (0..500).map(|n| match n % 10 {
        3 => message(PAYMENT_JOBS, "payment.nowhere", n.to_string()),
        _ => message(PAYMENT_JOBS, REFUNDS, n.to_string()),
    });
    let outcomes = publisher.publish_all(messages.collect(), SOON).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(confirmed) => assert_eq!(confirmed.id(), n.to_string()),
            Err(error) => assert_eq!((error, n % 10), (&PublishError::Unroutable, 3)),
        }
    }
    let expected: Vec<String> = (0..500).filter(|n| n % 10 != 3).map(|n| n.to_string()).collect();
    assert_eq!(drain(&admin, REFUNDS).await, expected);
}

#[tokio::test]
async fn without_a_session_the_answer_is_immediate() {
    let uri = SecretString::from("amqp://u:p@127.0.0.1:1/v");
    let stop = CancellationToken::new();
    let publisher = Publisher::start(&uri, "test", PublisherOptions::default(), stop.clone()).unwrap();
    let began = Instant::now();
    let outcome = publisher.publish(message(PAYMENT_IN, CALLBACKS, "1".to_owned()), SOON).await;
    assert_eq!(outcome.unwrap_err(), PublishError::NoSession);
    assert!(began.elapsed() < Duration::from_secs(2));
    stop.cancel();
    timeout(SOON, publisher.finished()).await.unwrap();
}

#[tokio::test]
async fn a_name_too_long_for_amqp_is_refused_without_a_panic() {
    let broker = TestBroker::new().await;
    let (publisher, _stop) = start(&broker, PublisherOptions::default()).await;
    let outcome = publisher.publish(message(PAYMENT_IN, &"k".repeat(256), "1".to_owned()), SOON).await;
    assert_eq!(outcome.unwrap_err(), PublishError::Invalid("routing key"));
}

/// A frame takes all headers or none; RabbitMQ ends the connection where they do not fit.
#[tokio::test]
async fn the_largest_body_goes_out_with_as_many_headers_as_a_request_may_bring() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (publisher, _stop) = start(&broker, PublisherOptions::default()).await;
    let header = ("content-type".to_owned(), "t".repeat(HttpLimits::default().header_bytes));
    let body = "b".repeat(64 * 1024);
    let large =
        Message { body: body.clone().into(), headers: vec![header], ..message(PAYMENT_IN, CALLBACKS, "1".into()) };
    publisher.publish(large, SOON).await.unwrap();
    assert_eq!(drain(&admin, CALLBACKS).await, [body]);
}

#[tokio::test]
async fn a_missing_exchange_costs_the_session_and_the_next_one_works() {
    let broker = TestBroker::new().await;
    let (publisher, _stop) = start(&broker, PublisherOptions::default()).await;
    let outcome = publisher.publish(message("payment.gone", CALLBACKS, "1".to_owned()), SOON).await;
    assert!(matches!(outcome, Err(PublishError::Lost(_))), "{outcome:?}");
    session_ends(&publisher).await;
    timeout(SOON, publisher.ready()).await.unwrap();
    publisher.publish(message(PAYMENT_IN, CALLBACKS, "2".to_owned()), SOON).await.unwrap();
}

#[tokio::test]
async fn an_exchange_deleted_under_load_loses_nothing_that_was_confirmed() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (publisher, _stop) = start(&broker, PublisherOptions::default()).await;
    let mut confirmed = Vec::new();
    for round in 0..20 {
        if round == 10 {
            let channel = admin.create_channel().await.unwrap();
            channel.exchange_delete(PAYMENT_IN.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        if round == 12 {
            topology::declare(&admin).await.unwrap();
            timeout(SOON, publisher.ready()).await.unwrap();
        }
        let ids = (0..50).map(|n| format!("{round}-{n}"));
        let published = ids.map(|id| publisher.publish(message(PAYMENT_IN, CALLBACKS, id), SOON));
        confirmed.extend(join_all(published).await.into_iter().flatten().map(|done| done.id().to_owned()));
    }
    let mut stored = drain(&admin, CALLBACKS).await;
    stored.sort();
    confirmed.sort();
    assert!(confirmed.len() >= 500, "{}", confirmed.len());
    assert_eq!(stored, confirmed);
}

#[tokio::test]
async fn a_stopping_publisher_finishes_what_is_queued() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (publisher, stop) = start(&broker, PublisherOptions { channels: 1, group: 4, queue: 1024 }).await;
    let handed_in = (0..200).map(|n| publisher.publish(message(PAYMENT_IN, CALLBACKS, n.to_string()), SOON));
    let mut handed_in = Box::pin(join_all(handed_in));
    // One poll hands all of them in.
    assert!(timeout(Duration::ZERO, &mut handed_in).await.is_err());
    stop.cancel();
    let refused = publisher.publish(message(PAYMENT_IN, CALLBACKS, "late".to_owned()), SOON).await;
    assert_eq!(refused.unwrap_err(), PublishError::NoSession);
    assert!(handed_in.await.into_iter().all(|outcome| outcome.is_ok()));
    timeout(SOON, publisher.finished()).await.unwrap();
    assert_eq!(drain(&admin, CALLBACKS).await.len(), 200);
}

#[tokio::test]
async fn a_publisher_ends_with_its_last_handle() {
    let broker = TestBroker::new().await;
    let (publisher, _stop) = start(&broker, PublisherOptions::default()).await;
    let finished = publisher.finished();
    drop(publisher);
    timeout(SOON, finished).await.unwrap();
}

/// A fault proxy to the broker, and the address that leads through it.
async fn relayed(broker: &TestBroker) -> (Relay, SecretString) {
    let uri = Url::parse(broker.uri().expose_secret()).unwrap();
    let relay = Relay::to(format!("127.0.0.1:{}", uri.port().unwrap())).await;
    let mut through = uri.clone();
    through.set_port(Some(relay.port())).unwrap();
    (relay, SecretString::from(String::from(through)))
}

/// A broker that hangs: callers get their answer in time, the bounded queue refuses what is too much, messages whose
/// callers have gone are not sent late. Once the broker has been silent for long, the publisher reports it at once,
/// after one wait for the whole group.
#[tokio::test]
async fn a_hanging_broker_keeps_no_caller_waiting() {
    let broker = TestBroker::new().await;
    let admin = broker.admin().await;
    let (relay, through) = relayed(&broker).await;
    let stop = CancellationToken::new();
    let options = PublisherOptions { channels: 1, group: 8, queue: 16 };
    let publisher = Publisher::start(&through, "test", options, stop.clone()).unwrap();
    timeout(LONG, publisher.ready()).await.unwrap();
    relay.hold(true);
    let (began, known) = (Instant::now(), relay.from_clients());
    let publish = |id: String, wait| publisher.publish(message(PAYMENT_IN, CALLBACKS, id), wait);

    // One thread: all eight are handed in before the publisher takes any, so they are one group. Their callers wait.
    let group = join_all((0..8).map(|n| publish(format!("first-{n}"), LONG)));
    let rest = async {
        relay.hears_more_than(known + HEARTBEAT).await;
        // The group is on its way, and its confirms stay away for five seconds.
        join_all((0..40).map(|n| publish(n.to_string(), Duration::from_millis(200)))).await
    };
    let given_up = async {
        session_ends(&publisher).await;
        began.elapsed()
    };
    let (group, rest, given_up) = tokio::join!(group, rest, given_up);

    // Those behind the group have had their answer before the session was given up, each by the end of its own time.
    let full = rest.iter().filter(|outcome| matches!(outcome, Err(PublishError::QueueFull))).count();
    let late = rest.iter().filter(|outcome| matches!(outcome, Err(PublishError::TimedOut))).count();
    assert_eq!((full, late), (40 - 16, 16), "{rest:?}");
    // The group has waited once. Without heartbeats the client library itself would have ended this after some 20 s.
    assert!(group.iter().all(Result::is_err), "{group:?}");
    assert!(group.iter().any(|outcome| matches!(outcome, Err(PublishError::TimedOut))), "{group:?}");
    assert!((broker::STEP..3 * broker::STEP).contains(&given_up), "{given_up:?}");
    assert_eq!(publish("mute".to_owned(), LONG).await.unwrap_err(), PublishError::NoSession);

    relay.hold(false);
    timeout(LONG, publisher.ready()).await.unwrap();
    publish("after".to_owned(), LONG).await.unwrap();
    // What was on the wire may have arrived; what only waited in the queue has not.
    let stored = drain(&admin, CALLBACKS).await;
    assert!(stored.contains(&"after".to_owned()), "{stored:?}");
    assert!(stored.iter().all(|id| id.starts_with("first-") || id == "after"), "{stored:?}");
}

/// Trap: a message that is given up on before it is written can go out all the same, and take another one's return with
/// it. So the confirms of those beside it prove nothing, however good they look.
#[tokio::test]
async fn a_group_that_was_given_up_in_part_proves_nothing() {
    let broker = TestBroker::new().await;
    let (relay, through) = relayed(&broker).await;
    let options = PublisherOptions { channels: 1, group: 100, queue: 100 };
    let publisher = Publisher::start(&through, "test", options, CancellationToken::new()).unwrap();
    timeout(LONG, publisher.ready()).await.unwrap();
    relay.hold(true);
    // More than the sockets on the way take: the first are written, the last are not.
    let body = bytes::Bytes::from(vec![b'b'; 512 * 1024]);
    let given_up = CancellationToken::new();
    let publish = async |n: usize| {
        let large = Message { body: body.clone(), ..message(PAYMENT_IN, CALLBACKS, n.to_string()) };
        let outcome = publisher.publish(large, LONG).await;
        given_up.cancel();
        outcome
    };
    // One thread: all are handed in before the publisher takes any, so they are one group. While the broker is silent,
    // only a message that was given up gets an answer.
    let group = join_all((0..100).map(publish));
    let release = async {
        given_up.cancelled().await;
        relay.hold(false);
    };
    let (outcomes, ()) = tokio::join!(group, release);
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(PublishError::TimedOut))), "{outcomes:?}");
    assert!(matches!(outcomes[0], Err(PublishError::Lost(_))), "confirmed, and no proof: {:?}", outcomes[0]);
}

/// `connection.blocked` (10, 60) or `connection.unblocked` (10, 61), as the broker sends them on channel 0.
fn notice(blocked: bool) -> Vec<u8> {
    let payload: &[u8] = if blocked { b"\x00\x0a\x00\x3c\x04disk" } else { b"\x00\x0a\x00\x3d" };
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\x01\x00\x00", &length[..], payload, b"\xce"].concat()
}

/// Trap: publishes and confirms wait for ever while the broker blocks the connection. Here callers get an error at
/// once, also those whose message is on the way; the session outlives a block longer than any step may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_blocks_callers_get_an_error_at_once() {
    let broker = TestBroker::new().await;
    let (relay, through) = relayed(&broker).await;
    let publisher = Publisher::start(&through, "test", PublisherOptions::default(), CancellationToken::new()).unwrap();
    timeout(SOON, publisher.ready()).await.unwrap();
    let connections = relay.accepted();
    relay.hold(true);
    let known = relay.from_clients();
    let on_the_way = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish(message(PAYMENT_IN, CALLBACKS, "1".to_owned()), LONG).await }
    });
    relay.hears_more_than(known + HEARTBEAT).await;
    relay.inject(notice(true));
    // Long before its own time is over.
    let outcome = timeout(broker::STEP, on_the_way).await.unwrap().unwrap();
    assert_eq!(outcome.unwrap_err(), PublishError::Blocked);
    assert_eq!(publisher.state(), PublisherState::Blocked);
    let began = Instant::now();
    let outcome = publisher.publish(message(PAYMENT_IN, CALLBACKS, "2".to_owned()), SOON).await;
    assert_eq!(outcome.unwrap_err(), PublishError::Blocked);
    assert!(began.elapsed() < Duration::from_secs(2));
    // Real time: the block has to last longer than any step may take.
    sleep(broker::STEP + Duration::from_secs(1)).await;
    relay.inject(notice(false));
    relay.hold(false);
    timeout(SOON, publisher.ready()).await.unwrap();
    publisher.publish(message(PAYMENT_IN, CALLBACKS, "3".to_owned()), SOON).await.unwrap();
    assert_eq!(relay.accepted(), connections);
    // The first was on the way and arrives late: a caller that stored it elsewhere has made a duplicate, not a loss.
    assert_eq!(drain(&broker.admin().await, CALLBACKS).await, ["1", "3"]);
}
