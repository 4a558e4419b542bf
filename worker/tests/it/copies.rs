//! A changed order is written to Redis, by the worker that changed it and by the relay.

use std::time::Duration;

use domain::{OrderId, PaymentMethod};
use sqlx::PgPool;
use store::MIGRATOR;
use store::cache::redis::Script;
use store::cache::{CopiesKey, Redis, RedisConfig, Renewer};
use tokio::time::{Instant, sleep};

use crate::support::World;

/// Redis, with keys of this test's own.
pub async fn redis(db: &PgPool) -> Redis {
    let prefix = format!("{}:", db.connect_options().get_database().unwrap());
    let config = RedisConfig::new(testkit::env("REDIS_URL"), prefix).unwrap();
    Redis::connect(&config.with_copies_key(CopiesKey::new(&[7; 32]))).await
}

/// Waits until Redis has this version of an order.
pub async fn until_passed_on(redis: &Redis, id: OrderId, version: i64) {
    let key = [redis.key(&format!("payment_order:{id}"))];
    let known = Script::new("return redis.call('HGET', KEYS[1], 'version')");
    let patience = Instant::now() + Duration::from_secs(30);
    while redis.run::<Option<i64>>(&known, &key, &[]).await.ok().flatten() != Some(version) {
        assert!(Instant::now() < patience, "version {version} was not passed on");
        sleep(Duration::from_millis(20)).await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_that_a_callback_settles_is_passed_on(db: PgPool) {
    let redis = redis(&db).await;
    let mut world = World::new(db);
    world.worker.copies = Renewer::new(Some(redis.clone()));
    let order = world.pending_order(PaymentMethod::Alipay, "12.34").await;
    world.settle(vec![world.paid(&order)]).await;
    until_passed_on(&redis, order.id, 2).await;
}
