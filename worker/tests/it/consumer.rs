//! Batches on a real broker: what is acknowledged, and what is delivered again.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::time::Duration;

use broker::topology::{self, CALLBACKS, DEAD};
use broker::{BrokerError, Connection, Delivery, Message, Publisher, PublisherOptions, Subscription};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use secrecy::{ExposeSecret, SecretString};
use testkit::{Relay, TestBroker};
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use worker::consumer::{self, Ack, BatchOptions, ConsumerError, Defect};

const SOON: Duration = Duration::from_secs(60);
/// Long enough for a full batch on a busy machine.
const OPTIONS: BatchOptions = BatchOptions::in_order(20, Duration::from_millis(500));

/// A broker whose callback queue holds the messages `0` to `number - 1`.
async fn with_messages(number: usize) -> (TestBroker, Connection) {
    with_messages_in(CALLBACKS, number).await
}

/// The same, and the messages are in this queue.
async fn with_messages_in(queue: &str, number: usize) -> (TestBroker, Connection) {
    let broker = TestBroker::new().await;
    let connection = broker.admin().await;
    let stop = CancellationToken::new();
    // One channel keeps the order.
    let options = PublisherOptions { channels: 1, ..PublisherOptions::default() };
    let publisher = Publisher::start(&broker.uri(), "test", options, stop.clone()).unwrap();
    publisher.ready().await;
    let message = |n: usize| Message {
        exchange: String::new(),
        routing_key: queue.to_owned(),
        id: n.to_string(),
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: Vec::new(),
        body: n.to_string().into(),
    };
    let published = publisher.publish_all((0..number).map(message).collect(), SOON).await;
    assert!(published.iter().all(Result::is_ok));
    stop.cancel();
    publisher.finished().await;
    (broker, connection)
}

fn numbers(batch: &[Delivery]) -> Vec<usize> {
    batch.iter().map(|delivery| String::from_utf8_lossy(&delivery.data).parse().unwrap()).collect()
}

/// Waits until this is so.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Everything that lies in a queue, with its redelivered flag: waits for as many as are expected, then a moment for
/// more.
async fn left(connection: &Connection, queue: &str, expected: usize) -> Vec<(usize, bool)> {
    let mut subscription = Subscription::open(connection, queue, 1000).await.unwrap();
    let mut left = Vec::new();
    loop {
        let wait = if left.len() < expected { Duration::from_secs(30) } else { Duration::from_millis(300) };
        let Ok(delivery) = timeout(wait, subscription.next()).await else { break };
        let delivery = delivery.unwrap().unwrap();
        left.push((numbers(std::slice::from_ref(&delivery))[0], delivery.redelivered));
    }
    left.sort_unstable();
    left
}

#[tokio::test]
async fn batches_are_settled_in_order_and_dead_ones_leave_for_the_dead_letters() {
    let (broker, connection) = with_messages(150).await;
    let stop = CancellationToken::new();
    let (settled, largest) = (RefCell::new(Vec::new()), Cell::new(0));
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, stop.clone(), async |batch| {
        let numbers = numbers(batch);
        largest.set(largest.get().max(numbers.len()));
        let acks = numbers.iter().map(|n| if n % 7 == 0 { Ack::Dead } else { Ack::Done }).collect();
        settled.borrow_mut().extend(numbers);
        if settled.borrow().len() == 150 {
            stop.cancel();
        }
        Ok::<_, io::Error>(acks)
    });
    timeout(SOON, run).await.unwrap().unwrap();
    assert_eq!(settled.into_inner(), (0..150).collect::<Vec<_>>());
    assert_eq!(largest.get(), OPTIONS.max);
    assert_eq!(left(&connection, CALLBACKS, 0).await, []);
    let expected: Vec<usize> = (0..150).filter(|n| n % 7 == 0).collect();
    let dead: Vec<usize> = left(&connection, DEAD, expected.len()).await.into_iter().map(|(n, _)| n).collect();
    assert_eq!(dead, expected);
    drop(broker);
}

#[tokio::test]
async fn a_batch_that_fails_is_tried_again_in_hand_and_costs_no_delivery() {
    let (_broker, connection) = with_messages(5).await;
    let (stop, tries) = (CancellationToken::new(), Cell::new(0));
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, stop.clone(), async |batch| {
        assert!(batch.iter().all(|delivery| !delivery.redelivered));
        tries.set(tries.get() + 1);
        if tries.get() < 4 {
            return Err(io::Error::other("the database is away"));
        }
        stop.cancel();
        Ok(vec![Ack::Done; batch.len()])
    });
    timeout(SOON, run).await.unwrap().unwrap();
    assert_eq!(left(&connection, CALLBACKS, 0).await, []);
}

#[tokio::test]
async fn what_cannot_be_settled_goes_back_when_the_worker_stops() {
    let (_broker, connection) = with_messages(5).await;
    let stop = CancellationToken::new();
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, stop.clone(), async |_| {
        stop.cancel();
        Err(io::Error::other("the database is away"))
    });
    let ended = timeout(SOON, run).await.unwrap();
    assert!(matches!(ended, Err(ConsumerError::Settle(_))), "{ended:?}");
    assert_eq!(left(&connection, CALLBACKS, 5).await, [(0, true), (1, true), (2, true), (3, true), (4, true)]);
}

#[tokio::test]
async fn a_panic_or_a_wrong_number_of_answers_concerns_one_delivery_alone() {
    let (_broker, connection) = with_messages(60).await;
    let (stop, settled, alone) = (CancellationToken::new(), RefCell::new(HashSet::new()), Cell::new(0));
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, stop.clone(), async |batch| {
        assert!(batch.iter().all(|delivery| !delivery.redelivered), "nothing goes back");
        let numbers = numbers(batch);
        alone.set(alone.get() + usize::from(numbers == [4]));
        assert!(!numbers.contains(&4), "planted");
        if numbers.contains(&27) {
            return Ok(vec![Ack::Done; batch.len() + 1]);
        }
        settled.borrow_mut().extend(numbers);
        if settled.borrow().contains(&59) {
            stop.cancel();
        }
        Ok::<_, io::Error>(vec![Ack::Done; batch.len()])
    });
    timeout(SOON, run).await.unwrap().unwrap();
    assert_eq!(settled.into_inner(), (0..60).filter(|n| ![4, 27].contains(n)).collect::<HashSet<_>>());
    assert_eq!(alone.get(), 3, "a panic can pass, so it is tried a few times");
    assert_eq!(left(&connection, CALLBACKS, 0).await, []);
    assert_eq!(left(&connection, DEAD, 2).await.into_iter().map(|(n, _)| n).collect::<Vec<_>>(), [4, 27]);
}

/// There is no further queue for a dead letter: one that panics stays in its queue, and the session ends.
#[tokio::test]
async fn a_dead_letter_that_panics_stays_in_its_queue() {
    let (_broker, connection) = with_messages_in(DEAD, 3).await;
    let stop = CancellationToken::new();
    let panics = async |_: &[Delivery]| -> Result<Vec<Ack>, io::Error> { panic!("a defect") };
    let ended = consumer::run(&connection, DEAD, OPTIONS, stop.clone(), panics).await;
    assert!(matches!(ended, Err(ConsumerError::DeadLetter(Defect::Panicked(_)))), "{ended:?}");
    let miscounts = async |_: &[Delivery]| Ok::<_, io::Error>(Vec::new());
    let ended = consumer::run(&connection, DEAD, OPTIONS, stop, miscounts).await;
    let miscounted = Defect::Miscounted { answers: 0, deliveries: 1 };
    assert!(matches!(&ended, Err(ConsumerError::DeadLetter(defect)) if *defect == miscounted), "{ended:?}");
    assert_eq!(left(&connection, DEAD, 3).await, [(0, true), (1, true), (2, true)]);
}

/// Prefetched deliveries are settled when a stop comes; the other messages stay in the queue; none is both.
#[tokio::test]
async fn a_stop_finishes_what_was_delivered_and_leaves_the_rest() {
    let (_broker, connection) = with_messages(300).await;
    let (stop, settled) = (CancellationToken::new(), RefCell::new(HashSet::new()));
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, stop.clone(), async |batch| {
        stop.cancel();
        if settled.borrow().is_empty() {
            // The lane has all that it prefetches: this batch and the next one.
            until("two batches are delivered", async || {
                topology::depth(&connection, CALLBACKS).await.unwrap() as usize == 300 - 2 * OPTIONS.max
            })
            .await;
        }
        settled.borrow_mut().extend(numbers(batch));
        Ok::<_, io::Error>(vec![Ack::Done; batch.len()])
    });
    timeout(SOON, run).await.unwrap().unwrap();
    let settled = settled.into_inner();
    assert!(settled.len() > OPTIONS.max && settled.len() < 300, "{}", settled.len());
    let left = left(&connection, CALLBACKS, 300 - settled.len()).await;
    let left: HashSet<usize> = left.into_iter().map(|(n, _)| n).collect();
    assert!(left.is_disjoint(&settled));
    assert_eq!(left.len() + settled.len(), 300);
}

/// Trap: an ack for a delivery of a session that is over looks like success. Here the connection is cut while a batch
/// is being settled; the run ends with an error and every message comes again.
#[tokio::test]
async fn an_ack_that_came_too_late_is_an_error_and_the_messages_come_again() {
    let (broker, admin) = with_messages(5).await;
    let uri = url::Url::parse(broker.uri().expose_secret()).unwrap();
    let relay = Relay::to(format!("127.0.0.1:{}", uri.port().unwrap())).await;
    let mut through = uri.clone();
    through.set_port(Some(relay.port())).unwrap();
    let connection = broker::open(&SecretString::from(String::from(through)), "test").await.unwrap();
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, CancellationToken::new(), async |batch| {
        relay.cut();
        until("the connection is lost", async || !connection.status().connected()).await;
        Ok::<_, io::Error>(vec![Ack::Done; batch.len()])
    });
    let ended = timeout(SOON, run).await.unwrap();
    assert!(matches!(ended, Err(ConsumerError::Stale | ConsumerError::Mq(_))), "{ended:?}");
    assert_eq!(left(&admin, CALLBACKS, 5).await.len(), 5);
}

#[tokio::test]
async fn a_queue_deleted_under_the_consumer_ends_the_run() {
    let (_broker, connection) = with_messages(0).await;
    let delete = async {
        let channel = connection.create_channel().await.unwrap();
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let consumers = async || {
            let queue = channel.queue_declare(CALLBACKS.into(), passive, FieldTable::default()).await.unwrap();
            queue.consumer_count()
        };
        until("a consumer", async || consumers().await == 1).await;
        channel.queue_delete(CALLBACKS.into(), Default::default()).await.unwrap();
    };
    let settle = async |batch: &[Delivery]| Ok::<_, io::Error>(vec![Ack::Done; batch.len()]);
    let run = consumer::run(&connection, CALLBACKS, OPTIONS, CancellationToken::new(), settle);
    let (ended, deleted) = tokio::join!(timeout(SOON, run), timeout(SOON, delete));
    let (ended, ()) = (ended.unwrap(), deleted.unwrap());
    assert!(matches!(ended, Err(ConsumerError::Mq(BrokerError::Cancelled(_)))), "{ended:?}");
}

#[tokio::test]
async fn two_lanes_have_two_batches_in_hand_at_once() {
    let (_broker, connection) = with_messages(80).await;
    let (stop, both, settled) = (CancellationToken::new(), Barrier::new(2), RefCell::new(HashSet::new()));
    let options = BatchOptions { lanes: 2, ..BatchOptions::in_order(20, Duration::from_secs(10)) };
    let run = consumer::run(&connection, CALLBACKS, options, stop.clone(), async |batch| {
        // Two lanes pass this barrier together; one alone cannot.
        both.wait().await;
        settled.borrow_mut().extend(numbers(batch));
        if settled.borrow().len() == 80 {
            stop.cancel();
        }
        Ok::<_, io::Error>(vec![Ack::Done; batch.len()])
    });
    timeout(SOON, run).await.unwrap().unwrap();
    assert_eq!(settled.into_inner(), (0..80).collect::<HashSet<_>>());
    assert_eq!(left(&connection, CALLBACKS, 0).await, []);
}

/// One lane fails while the other one has a batch in hand, which it still settles; what neither settled comes again.
#[tokio::test]
async fn a_lane_that_fails_ends_the_others_and_takes_nothing_from_them() {
    let (_broker, connection) = with_messages_in(DEAD, 300).await;
    let (both, calls, panics, settled) = (Barrier::new(2), Cell::new(0), Cell::new(0), RefCell::new(HashSet::new()));
    let options = BatchOptions { lanes: 2, ..OPTIONS };
    let run = consumer::run(&connection, DEAD, options, CancellationToken::new(), async |batch| {
        calls.set(calls.get() + 1);
        if calls.get() <= 2 {
            both.wait().await;
        }
        if numbers(batch).contains(&0) {
            panics.set(panics.get() + 1);
            panic!("planted");
        }
        // Once with its batch, and three times alone: then its lane has failed.
        until("the other lane has failed", async || panics.get() == 4).await;
        settled.borrow_mut().extend(numbers(batch));
        Ok::<_, io::Error>(vec![Ack::Done; batch.len()])
    });
    let ended = timeout(SOON, run).await.unwrap();
    assert!(matches!(ended, Err(ConsumerError::DeadLetter(_))), "{ended:?}");
    let settled = settled.into_inner();
    assert!(settled.len() >= OPTIONS.max && settled.len() < 300, "{}", settled.len());
    let left: HashSet<usize> = left(&connection, DEAD, 300 - settled.len()).await.into_iter().map(|(n, _)| n).collect();
    assert!(left.is_disjoint(&settled));
    assert_eq!(left.len() + settled.len(), 300);
}
