//! Copies of orders on a real Redis behind fault proxies that delay, cut and hang. Whatever happens to Redis, no user
//! sees an older version after a newer one, nor a version that was replaced more than a second ago.

mod random;
mod rules;
mod trust;

use std::time::Duration;

use domain::{Money, OrderId, OrderStatus, Scene, TradeNo, UserId};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use runtime::clock::Clock;
use secrecy::SecretString;
use sqlx::PgPool;
use store::cache::redis::Script;
use store::cache::{Cache, CopiesKey, Redis, RedisConfig};
use store::tables::orders::{self, Created, NewOrder, Order, Paid};
use testkit::Relay;
use tokio::time::{Instant, sleep};
use url::Url;

/// For what takes a moment, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database with orders, and the keys that belong to it.
struct World {
    db: PgPool,
    prefix: String,
}

impl World {
    fn new(db: PgPool) -> World {
        let prefix = format!("{}:", db.connect_options().get_database().unwrap());
        World { db, prefix }
    }

    /// Redis at this port of the machine.
    async fn redis_at(&self, port: u16) -> Redis {
        let mut url = Url::parse(&testkit::env("REDIS_URL")).unwrap();
        url.set_port(Some(port)).unwrap();
        let config = RedisConfig::new(SecretString::from(String::from(url)), self.prefix.clone()).unwrap();
        connected(Redis::connect(&config.with_copies_key(CopiesKey::new(&[7; 32]))).await).await
    }

    /// Redis itself.
    async fn redis(&self) -> Redis {
        self.redis_at(port()).await
    }

    async fn order(&self) -> OrderId {
        // Amounts go back of which no refund knows.
        testkit::make_up_facts(&self.db).await;
        let new = NewOrder {
            user_id: UserId::parse("u1").unwrap(),
            scene: Scene::Jsapi,
            client_ip: Some([198, 51, 100, 7].into()),
            prepay: serde_json::json!({ "payer": { "openid": "the-payer" } }),
            ..testkit::new_order()
        };
        assert!(matches!(
            orders::create(&self.db, std::slice::from_ref(&new)).await.unwrap()[..],
            [Created::Unanswered]
        ));
        new.id
    }

    /// Moves the order one step: to paid, then to and fro between refund states. Returns the committed version.
    async fn step(&self, id: OrderId) -> i64 {
        let mut tx = self.db.begin().await.unwrap();
        let order = orders::lock_one(&mut tx, id).await.unwrap().unwrap();
        match order.status {
            OrderStatus::Pending => pay(&mut tx, &order).await,
            OrderStatus::Refunding => turn(&mut tx, &order, OrderStatus::PartiallyRefunded).await,
            _ => turn(&mut tx, &order, OrderStatus::Refunding).await,
        }
        tx.commit().await.unwrap();
        order.version + 1
    }

    /// An order that stays as it is: of version 3.
    async fn refunded(&self) -> OrderId {
        let id = self.order().await;
        self.step(id).await;
        let mut tx = self.db.begin().await.unwrap();
        let order = orders::lock_one(&mut tx, id).await.unwrap().unwrap();
        turn(&mut tx, &order, OrderStatus::Refunded).await;
        tx.commit().await.unwrap();
        id
    }

    /// Deletes every key of this test in Redis.
    async fn wipe(&self, redis: &Redis) {
        let wipe = "redis.call('DEL', 'none', unpack(redis.call('KEYS', ARGV[1] .. '*')))";
        let _ = redis.run::<()>(&Script::new(wipe), &[], std::slice::from_ref(&self.prefix)).await;
    }
}

async fn pay(tx: &mut sqlx::PgConnection, order: &Order) {
    let now = Clock::system().now();
    let trade_no = TradeNo::parse(order.id.to_string()).unwrap();
    orders::mark_paid(tx, &[Paid { id: order.id, trade_no, paid_at: now }], now).await.unwrap();
}

async fn turn(tx: &mut sqlx::PgConnection, order: &Order, to: OrderStatus) {
    let returned = if to == OrderStatus::Refunded { order.amount } else { Money::from_fen(1).unwrap() };
    orders::mark_by_refunds(tx, order, to, returned, Clock::system().now()).await.unwrap();
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connected(redis: Redis) -> Redis {
    eventually("a connection to Redis", async || redis.is_connected()).await;
    redis
}

/// A fault proxy in front of Redis.
async fn relay() -> Relay {
    Relay::to(format!("127.0.0.1:{}", port())).await
}

fn port() -> u16 {
    Url::parse(&testkit::env("REDIS_URL")).unwrap().port().unwrap()
}

/// Counts what happens in this thread, which is all of a test.
fn recorder() -> (PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// The sum of the series that hold all of `parts`.
fn counted(handle: &PrometheusHandle, parts: &[&str]) -> u64 {
    let text = handle.render();
    let lines = text.lines().filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

async fn version(cache: &Cache, world: &World, id: OrderId) -> i64 {
    cache.orders.get(&world.db, id).await.unwrap().unwrap().order().version
}
