//! The relay between a real database and a real broker.

mod audit;
mod dead_letters;
mod forged;
mod planted;

use std::time::Duration;

use broker::consume::headers;
use broker::topology::{self, Needs};
use broker::{Connection, Delivery, Publisher, PublisherOptions, PublisherState, Subscription, callback_from};
use domain::OrderId;
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::event::Event;
use domain::message::job::{JobKind, JobMessage};
use lapin::options::{
    BasicRejectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use runtime::clock::Clock;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use store::MIGRATOR;
use store::cache::Renewer;
use store::tables::{events as outbox, jobs};
use testkit::{Relay as Between, TestBroker};
use tokio_util::sync::CancellationToken;
use worker::relay::{PUBLISHING, Relay, Settings};

use crate::copies::{redis, until_passed_on};
use crate::support::World;

/// The holder of the active relay's lock.
const LEADER: &str = "select pid from pg_locks where locktype = 'advisory' and granted and database = \
                      (select oid from pg_database where datname = current_database())";
const LEADERS: &str = "select count(*) from pg_locks where locktype = 'advisory' and granted and database = \
                       (select oid from pg_database where datname = current_database())";
/// 1 once the active relay has measured the backlog a second after the jobs became due, which is several rounds later.
const GOES_ROUND: &str = "select count(*) from pg_stat_activity join pg_locks using (pid)
    where locktype = 'advisory' and granted and database = (select oid from pg_database where datname = current_database())
      and query_start > (select max(due_at) from jobs) + interval '1 s'";
/// Long enough for a busy machine; every wait ends as soon as what it waits for is there.
const PATIENCE: Duration = Duration::from_secs(60);

struct Setup {
    db: PgPool,
    broker: TestBroker,
    admin: Connection,
    stop: CancellationToken,
}

/// The id of the event in a message.
fn event_id(delivery: &Delivery) -> Option<&str> {
    headers(delivery).find(|(name, _)| *name == "cloudEvents:id").map(|(_, value)| value)
}

impl Setup {
    /// Adds events of orders that do not exist: the relay does not need the orders.
    async fn new(db: PgPool) -> Setup {
        testkit::make_up_facts(&db).await;
        let broker = TestBroker::new().await;
        let admin = broker.admin().await;
        Setup { db, broker, admin, stop: CancellationToken::new() }
    }

    /// A downstream queue that receives what its binding selects.
    async fn downstream(&self, name: &str, binding: &str) {
        let channel = self.admin.create_channel().await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.into(), options, FieldTable::default()).await.unwrap();
        let events = topology::PAYMENT_EVENTS.into();
        channel
            .queue_bind(name.into(), events, binding.into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    /// The ids of the next `count` messages of a queue, in the order of arrival.
    async fn next_ids(&self, queue: &str, count: usize) -> Vec<String> {
        let mut subscription = Subscription::open(&self.admin, queue, 1000).await.unwrap();
        let mut ids = Vec::new();
        while ids.len() < count {
            let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
            let delivery = next.unwrap_or_else(|_| panic!("only {ids:?} in {queue}")).unwrap().unwrap();
            ids.push(event_id(&delivery).unwrap_or("no event").to_owned());
        }
        ids
    }

    fn start(&self) {
        self.start_with(Settings::default());
    }

    fn start_with(&self, settings: Settings) {
        self.start_through(settings, (*self.db.connect_options()).clone(), &self.broker.uri());
    }

    /// A relay as a process has it: a runtime and a pool of its own. It reaches the database by `database`, and
    /// publishes to `broker` with the publisher that is returned.
    fn start_through(&self, settings: Settings, database: PgConnectOptions, broker: &SecretString) -> Publisher {
        let (hand_out, publisher) = std::sync::mpsc::channel();
        let (uri, broker, stop) = (self.broker.uri(), broker.clone(), self.stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let db = PgPoolOptions::new().max_connections(4).connect_lazy_with(database);
                let done = CancellationToken::new();
                let publisher = Publisher::start(&broker, "relay-publisher", PUBLISHING, done.clone()).unwrap();
                hand_out.send(publisher.clone()).unwrap();
                let copies = Renewer::new(Some(redis(&db).await));
                let relay = Relay { db, publisher, amqp_url: uri, clock: Clock::system(), settings, copies };
                relay.run(&stop).await;
                done.cancel();
            });
        });
        publisher.recv().expect("the relay has a publisher")
    }

    async fn write(&self, new: &[Event]) {
        let mut connection = self.db.acquire().await.unwrap();
        outbox::append(&mut connection, new, Clock::system().now()).await.unwrap();
    }

    /// Publishes in this order, as any user could who may write to the broker.
    async fn publish(&self, messages: Vec<broker::Message>) {
        let stop = CancellationToken::new();
        let publisher = Publisher::start(&self.broker.uri(), "test", PUBLISHING, stop.clone()).unwrap();
        publisher.ready().await;
        for outcome in publisher.publish_all(messages, PATIENCE).await {
            outcome.unwrap();
        }
        stop.cancel();
        publisher.finished().await;
    }

    /// Rejects the next `count` messages of a queue. They stay rejected while the returned value lives.
    async fn reject(&self, queue: &str, count: usize) -> Subscription {
        let mut subscription = Subscription::open(&self.admin, queue, 100).await.unwrap();
        for _ in 0..count {
            let delivery = tokio::time::timeout(PATIENCE, subscription.next()).await.unwrap().unwrap().unwrap();
            assert!(delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap());
        }
        subscription
    }

    /// The server process whose session holds the lock of the active relay.
    async fn leader(&self) -> i32 {
        sqlx::query_scalar(LEADER).fetch_one(&self.db).await.unwrap()
    }

    /// Waits until a query counts `wanted`.
    async fn until(&self, sql: &'static str, wanted: i64) {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap();
            if count == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < patience, "{sql}: {count}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn event(id: &str, kind: &'static str, order: Option<u128>) -> Event {
    Event { event_id: id.to_owned(), kind, order_id: order.map(OrderId::from_u128), data: json!({ "id": id }) }
}

const UNPUBLISHED: &str = "select count(*) from events where published_at is null";

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_of_an_order_arrive_in_order_and_are_marked_after_the_confirm(db: PgPool) {
    let setup = Setup::new(db).await;
    setup.downstream("shop.all", "#").await;
    let kinds = ["order.paid", "order.closed", "case.opened"];
    let ids: Vec<String> = (0..60).map(|n| format!("e{n:02}")).collect();
    let all: Vec<Event> = ids.iter().enumerate().map(|(n, id)| event(id, kinds[n % 3], Some(n as u128 / 20))).collect();
    setup.write(&all).await;
    setup.start();
    let arrived = setup.next_ids("shop.all", 60).await;
    for order in 0..3 {
        let of_order = &ids[order * 20..order * 20 + 20];
        let seen: Vec<&String> = arrived.iter().filter(|id| of_order.contains(id)).collect();
        assert_eq!(seen, of_order.iter().collect::<Vec<_>>());
    }
    setup.until(UNPUBLISHED, 0).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_without_a_queue_waits_with_those_behind_it_and_no_others(db: PgPool) {
    let setup = Setup::new(db).await;
    setup.downstream("shop.closed", "order.closed").await;
    setup
        .write(&[
            event("paid-1", "order.paid", Some(1)),
            event("closed-1", "order.closed", Some(1)),
            event("closed-2", "order.closed", Some(2)),
            event("case", "case.opened", None),
        ])
        .await;
    setup.start_with(Settings { unroutable_retry: time::Duration::milliseconds(300), ..Settings::default() });
    // The case event is optional, so it counts as published although no queue is bound.
    setup.until("select count(*) from events where published_at is not null", 2).await;
    setup.until("select count(*) from events where retry_at is not null and event_id = 'paid-1'", 1).await;
    assert_eq!(setup.next_ids("shop.closed", 1).await, ["closed-2"]);
    setup.downstream("shop.paid", "order.paid").await;
    assert_eq!(setup.next_ids("shop.paid", 1).await, ["paid-1"]);
    setup.until(UNPUBLISHED, 0).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_standby_takes_over_when_the_active_relay_loses_its_connection(db: PgPool) {
    let setup = Setup::new(db).await;
    setup.downstream("shop.all", "#").await;
    setup.start();
    setup.start();
    for round in 0..5 {
        setup.until(LEADERS, 1).await;
        let id = format!("e{round}");
        setup.write(&[event(&id, "order.paid", Some(round))]).await;
        setup.until(UNPUBLISHED, 0).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted and database = \
             (select oid from pg_database where datname = current_database())",
        )
        .execute(&setup.db)
        .await
        .unwrap();
    }
    assert_eq!(setup.next_ids("shop.all", 5).await, ["e0", "e1", "e2", "e3", "e4"]);
}

/// A host that vanishes does not close its session: it stays open at the server, and silent.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_standby_takes_over_when_the_host_of_the_active_relay_vanishes(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    setup.downstream("shop.all", "#").await;
    let options = (*db.connect_options()).clone();
    let between = Between::to(format!("{}:{}", options.get_host(), options.get_port())).await;
    let vanishing = options.clone().host("127.0.0.1").port(between.port()).application_name("vanishing");
    setup.start_through(Settings::default(), vanishing, &setup.broker.uri());
    let leads = "select count(*) from pg_locks join pg_stat_activity using (pid)
        where locktype = 'advisory' and granted and database = (select oid from pg_database where datname = current_database())
          and application_name = 'vanishing'";
    setup.until(leads, 1).await;
    setup.start();
    between.hold(true);
    setup.write(&[event("e1", "order.paid", Some(1))]).await;
    // 15 s of silence, and a second until the standby asks.
    setup.until(leads, 0).await;
    setup.until(UNPUBLISHED, 0).await;
    assert_eq!(setup.next_ids("shop.all", 1).await, ["e1"]);
}

/// The worker that changed the order may have died before it renewed the copy.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_whose_event_goes_out_is_passed_on(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    setup.downstream("shop.all", "#").await;
    let order = World::new(db.clone()).pending_order(Alipay, "12.34").await;
    let about = Event { order_id: Some(order.id), ..event("e1", "order.paid", None) };
    setup.write(&[about]).await;
    setup.start();
    until_passed_on(&redis(&db).await, order.id, 1).await;
    assert_eq!(setup.next_ids("shop.all", 1).await, ["e1"]);
}

/// While the broker is unavailable nothing can be published; the active relay stays active.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_closed_topology_does_not_cost_the_lead(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    let nowhere = SecretString::from("amqp://u:p@127.0.0.1:1/v");
    let (options, stop) = ((*db.connect_options()).clone(), setup.stop.clone());
    let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
    let publisher = Publisher::start(&nowhere, "relay-publisher", PublisherOptions::default(), stop.clone()).unwrap();
    let relay = Relay {
        db: pool,
        publisher,
        amqp_url: nowhere,
        clock: Clock::system(),
        settings: Settings::default(),
        copies: Renewer::default(),
    };
    let watch = async {
        setup.until(LEADERS, 1).await;
        let leader = setup.leader().await;
        // Real time: the server ends a silent session after 15 s.
        tokio::time::sleep(Duration::from_secs(17)).await;
        assert_eq!(setup.leader().await, leader);
        setup.stop.cancel();
    };
    tokio::join!(relay.run(&stop), watch);
}

/// Another session locks the row of an event. The relay stays active, continues where it can, and publishes nothing
/// twice.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_lock_in_the_way_costs_neither_the_lead_nor_a_repeat(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    setup.downstream("shop.all", "#").await;
    setup.write(&[event("locked", "order.paid", Some(1)), event("beside", "order.paid", Some(2))]).await;
    let mut held = db.begin().await.unwrap();
    sqlx::query("select 1 from events where event_id = 'locked' for update").execute(&mut *held).await.unwrap();
    let impatient = (*db.connect_options()).clone().options([("lock_timeout", "200ms")]);
    setup.start_through(Settings::default(), impatient, &setup.broker.uri());
    // Both are out; neither can be marked.
    let mut shop = Subscription::open(&setup.admin, "shop.all", 100).await.unwrap();
    let mut next_id = async || {
        let delivery = tokio::time::timeout(PATIENCE, shop.next()).await.ok()?.unwrap().unwrap();
        event_id(&delivery).map(str::to_owned)
    };
    assert_eq!([next_id().await.unwrap(), next_id().await.unwrap()], ["locked", "beside"]);
    let leader = setup.leader().await;
    setup.write(&[event("behind", "order.paid", Some(3))]).await;
    // Jobs go on.
    World::new(db.clone()).pending_order(Alipay, "8").await;
    sqlx::query("update jobs set due_at = now()").execute(&db).await.unwrap();
    setup.until("select count(*) from jobs where fence > 0", 1).await;
    // Some rounds later it still leads, and has published nothing again. A round takes the events before the jobs.
    for _ in 0..5 {
        sqlx::query("update jobs set due_at = now(), lease_until = null, fence = 0").execute(&db).await.unwrap();
        setup.until("select count(*) from jobs where fence > 0", 1).await;
    }
    assert_eq!(setup.leader().await, leader);
    held.rollback().await.unwrap();
    setup.until(UNPUBLISHED, 0).await;
    assert_eq!(setup.leader().await, leader);
    assert_eq!(next_id().await.unwrap(), "behind", "and before it no repeat");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stored_callback_goes_to_its_queue_and_other_jobs_stay(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db).await;
    let order = world.pending_order(Wechat, "8").await;
    let callback = world.paid(&order);
    jobs::store_callback(&setup.db, &callback).await.unwrap();
    sqlx::query("update jobs set due_at = now() - interval '1 hour'").execute(&setup.db).await.unwrap();
    sqlx::query(
        "insert into jobs (kind, payload, due_at, created_at) values ('callback', '{\"no\": 1}', now(), now())",
    )
    .execute(&setup.db)
    .await
    .unwrap();
    setup.start();
    let consumer = broker::open(&setup.broker.uri(), "test").await.unwrap();
    let mut queue = Subscription::open(&consumer, topology::CALLBACKS, 10).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, queue.next()).await.unwrap().unwrap().unwrap();
    let arrived = callback_from(&delivery).unwrap();
    assert_eq!((&arrived.body, &arrived.account), (&callback.body, &callback.account));
    assert_eq!(arrived.header("wechatpay-signature"), callback.header("wechatpay-signature"));
    assert!(arrived.job_id.is_some());
    // The row stays, leased, until a worker reaches a verdict; the unreadable one became a case; the check is kept.
    setup.until("select count(*) from jobs where kind = 'callback' and lease_until > now() + interval '30 s'", 1).await;
    setup.until("select count(*) from cases where kind = 'dead_letter'", 1).await;
    assert_eq!(world.count("jobs").await, 2);
    assert_eq!(world.settle(vec![arrived]).await.len(), 1);
    assert_eq!(world.count("work").await, 0);
}

/// The check workers also query paid orders again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_look_back_goes_to_the_queue_of_the_checks_when_it_is_due(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db.clone()).await;
    let order = world.pending_order(Wechat, "8").await;
    world.settle(vec![world.paid(&order)]).await;
    testkit::jobs::come_due(&db, Some(JobKind::LookBack)).await;
    setup.start();
    let consumer = broker::open(&setup.broker.uri(), "test").await.unwrap();
    let mut queue = Subscription::open(&consumer, topology::CHECKS, 10).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, queue.next()).await.unwrap().unwrap().unwrap();
    let nudge: JobMessage = serde_json::from_slice(&delivery.data).unwrap();
    let row: (i64, String) = sqlx::query_as("select id, kind from jobs where ref_id = $1")
        .bind(order.id.to_string())
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(row, (nudge.id, JobKind::LookBack.to_string()));
}

/// What the broker sends on channel 0 when it takes no more messages (`connection.blocked`), and when it does again.
fn notice(blocked: bool) -> Vec<u8> {
    let payload: &[u8] = if blocked { b"\x00\x0a\x00\x3c\x04disk" } else { b"\x00\x0a\x00\x3d" };
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\x01\x00\x00", &length[..], payload, b"\xce"].concat()
}

/// To lease, fail and return jobs five times a second would only load the database.
#[sqlx::test(migrator = "MIGRATOR")]
async fn while_the_broker_blocks_nothing_is_leased_and_then_everything_goes_out(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    setup.downstream("shop.all", "#").await;
    let target = url::Url::parse(setup.broker.uri().expose_secret()).unwrap();
    let between = Between::to(format!("127.0.0.1:{}", target.port().unwrap())).await;
    let mut through = target;
    through.set_port(Some(between.port())).unwrap();
    let through = SecretString::from(String::from(through));
    let publisher = setup.start_through(Settings::default(), (*db.connect_options()).clone(), &through);
    // One event shows that the publisher is connected and idle again.
    setup.write(&[event("before", "order.paid", Some(1))]).await;
    setup.until(UNPUBLISHED, 0).await;
    between.inject(notice(true));
    let patience = tokio::time::Instant::now() + PATIENCE;
    while publisher.state() != PublisherState::Blocked {
        assert!(tokio::time::Instant::now() < patience, "the publisher does not hear of the block");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let order = World::new(db).pending_order(Alipay, "8").await;
    sqlx::query("update jobs set due_at = now()").execute(&setup.db).await.unwrap();
    setup.write(&[event("during", "order.paid", Some(2))]).await;
    setup.until(GOES_ROUND, 1).await;
    let fences: Vec<i64> = sqlx::query_scalar("select fence from jobs").fetch_all(&setup.db).await.unwrap();
    assert_eq!(fences, [0], "the check of order {} was never leased", order.order_no);
    setup.until(UNPUBLISHED, 1).await;
    between.inject(notice(false));
    setup.until(UNPUBLISHED, 0).await;
    setup.until("select count(*) from jobs where fence > 0", 1).await;
    assert_eq!(setup.next_ids("shop.all", 2).await, ["before", "during"]);
}

/// We do not trust the queue: text that PostgreSQL cannot store, and a dead letter that it refuses for any reason.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wiped_broker_is_rebuilt_and_everything_goes_out_again(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db).await;
    setup.downstream("shop.all", "#").await;
    // Downstream needs a moment to set itself up again; meanwhile its events are unroutable.
    setup.start_with(Settings { unroutable_retry: time::Duration::milliseconds(300), ..Settings::default() });
    let order = world.pending_order(Alipay, "8").await;
    setup.write(&[event("e1", "order.paid", Some(1))]).await;
    jobs::store_callback(&setup.db, &world.paid(&order)).await.unwrap();
    setup.until(UNPUBLISHED, 0).await;
    setup.until("select count(*) from jobs where kind = 'callback' and lease_until is not null", 1).await;
    assert_eq!(setup.next_ids("shop.all", 1).await, ["e1"]);

    // What an empty data directory looks like from outside: no queue, no exchange, no marker, and no session.
    let channel = setup.admin.create_channel().await.unwrap();
    for queue in [topology::CALLBACKS, topology::REFUNDS, topology::CHECKS, topology::DEAD, "shop.all"] {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    for exchange in [topology::PAYMENT_IN, topology::PAYMENT_JOBS, topology::PAYMENT_EVENTS, topology::MARKER] {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
    // Downstream sets itself up again; the rest is the relay's.
    let patience = tokio::time::Instant::now() + PATIENCE;
    while topology::check(&setup.admin, &Needs::everything()).await.is_err() {
        assert!(tokio::time::Instant::now() < patience, "the relay did not rebuild");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setup.downstream("shop.all", "#").await;
    assert_eq!(setup.next_ids("shop.all", 1).await, ["e1"]);
    let mut queue = Subscription::open(&setup.admin, topology::CALLBACKS, 10).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, queue.next()).await.unwrap().unwrap().unwrap();
    assert!(callback_from(&delivery).unwrap().job_id.is_some());
    assert!(topology::marker_exists(&setup.admin).await.unwrap());
}
