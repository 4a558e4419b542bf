//! Each rule by itself.

use std::time::Duration;

use domain::{ExtraState, OrderId, OrderStatus, PaymentMethod};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use store::cache::redis::{CallError, Script};
use store::cache::{Cache, Changed, FRESH, Redis, Renewer};
use store::tables::orders;
use tokio::time::sleep;

use super::{World, connected, counted, eventually, recorder, relay, version};

/// Until what was committed before must be seen, with room for two clocks that count milliseconds.
pub async fn a_second() {
    // Real time: copies grow old by the clocks of Redis and of the process.
    sleep(FRESH + Duration::from_millis(20)).await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_copy_comes_from_memory_then_redis_then_the_database(db: PgPool) {
    let (recorder, handle) = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new(db);
    let (one, other) = (Cache::new(Some(world.redis().await)), Cache::new(Some(world.redis().await)));
    // One that does not change, so that the machine may take its time.
    let id = world.refunded().await;
    let hits = |layer: &str| counted(&handle, &["cache_requests_total", r#"cache="order""#, layer, r#"outcome="hit""#]);
    // The other one has not read the order yet, and whose it is only PostgreSQL says.
    let first = [(&one, "database"), (&one, "memory"), (&other, "database"), (&other, "memory")];
    let later = [(&one, "database"), (&one, "memory"), (&other, "redis"), (&other, "memory")];
    for looks in [first, later] {
        for (cache, from) in looks {
            let before = hits(from);
            assert_eq!(version(cache, &world, id).await, 3);
            assert_eq!(hits(from), before + 1, "{from}\n{}", handle.render());
        }
        a_second().await;
    }
    assert!(one.orders.get(&world.db, runtime::clock::Clock::system().fresh_id()).await.unwrap().is_none());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_is_stored_names_neither_payer_nor_parameters(db: PgPool) {
    let world = World::new(db);
    let redis = world.redis().await;
    let cache = Cache::new(Some(redis.clone()));
    let id = world.order().await;
    version(&cache, &world, id).await;
    let key = redis.key(&format!("payment_order:{id}"));
    let read = Script::new("return {redis.call('HGET', KEYS[1], 'data'), redis.call('PTTL', KEYS[1])}");
    let (data, lives): (String, i64) = redis.run(&read, &[key], &[]).await.unwrap();
    assert!(data.contains(&id.to_string()) && data.contains("u1"), "{data}");
    for secret in ["the-payer", "openid", "prepay", "198.51.100.7"] {
        assert!(!data.contains(secret), "{data}");
    }
    assert!((3_500_000..=3_600_000).contains(&lives), "{lives}");
}

/// A change never reaches Redis: its old copy is ignored all the same.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_change_that_was_not_passed_on_is_seen_within_a_second(db: PgPool) {
    let world = World::new(db);
    let caches = [Cache::new(Some(world.redis().await)), Cache::new(Some(world.redis().await)), Cache::default()];
    let id = world.order().await;
    for cache in &caches {
        version(cache, &world, id).await;
    }
    world.step(id).await;
    a_second().await;
    for cache in &caches {
        assert_eq!(version(cache, &world, id).await, 2);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_change_that_is_passed_on_is_seen_at_once_where_memory_is_empty(db: PgPool) {
    let world = World::new(db);
    let (mine, theirs) = (Cache::new(Some(world.redis().await)), Cache::new(Some(world.redis().await)));
    let id = world.order().await;
    version(&mine, &world, id).await;
    world.step(id).await;
    mine.orders.renew(&world.db, Changed::Ids(vec![id])).await;
    assert_eq!(version(&mine, &world, id).await, 2, "who changes it sees it");
    assert_eq!(version(&theirs, &world, id).await, 2);
}

/// What Redis holds of an order.
async fn stored(redis: &Redis, id: OrderId) -> Option<i64> {
    let known = Script::new("return redis.call('HGET', KEYS[1], 'version')");
    redis.run(&known, &[redis.key(&format!("payment_order:{id}"))], &[]).await.unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_older_version_takes_no_newer_ones_place(db: PgPool) {
    let world = World::new(db);
    let (redis, id) = (world.redis().await, world.order().await);
    // A process that reads in this schema reads outdated rows.
    for sql in ["create schema behind", "create table behind.payment_orders as select * from payment_orders"] {
        sqlx::query(sql).execute(&world.db).await.unwrap();
    }
    let options = (*world.db.connect_options()).clone().options([("search_path", "behind,public")]);
    let behind = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    world.step(id).await;
    let cache = Cache::new(Some(redis.clone()));
    assert_eq!(version(&cache, &world, id).await, 2);
    let other = Cache::new(Some(redis.clone()));
    other.orders.renew(&behind, Changed::Ids(vec![id])).await;
    assert_eq!(stored(&redis, id).await, Some(2), "in Redis");
    cache.orders.renew(&behind, Changed::Ids(vec![id])).await;
    assert_eq!(version(&cache, &world, id).await, 2, "in memory");
    // The control: that is how an older version would get there.
    world.wipe(&redis).await;
    other.orders.renew(&behind, Changed::Ids(vec![id])).await;
    assert_eq!(stored(&redis, id).await, Some(1));
}

/// A write that hangs on its way arrives after a wipe, when there is nothing left to compare it with.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_copy_that_arrives_late_is_not_shown(db: PgPool) {
    let world = World::new(db);
    let (redis, between, id) = (world.redis().await, relay().await, world.order().await);
    let slow = world.redis_at(between.port()).await;
    // So that Redis knows the programs.
    version(&Cache::new(Some(redis.clone())), &world, id).await;

    // The renewal has asked for its moment and waits for the table; then the way to Redis hangs, and it writes.
    let mut lock = world.db.begin().await.unwrap();
    sqlx::query("lock table payment_orders in access exclusive mode").execute(&mut *lock).await.unwrap();
    let renewer = Renewer::new(Some(slow));
    renewer.renew(&world.db, Changed::Ids(vec![id]));
    eventually("the renewal waits", async || {
        let waiting = "select count(*) from pg_locks where not granted and database = \
                       (select oid from pg_database where datname = current_database())";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&world.db).await.unwrap() > 0
    })
    .await;
    between.hold(true);
    let before = between.from_clients();
    lock.rollback().await.unwrap();
    between.hears_more_than(before).await;

    world.step(id).await;
    a_second().await;
    world.wipe(&redis).await;
    between.hold(false);
    eventually("version 1 has arrived", async || stored(&redis, id).await == Some(1)).await;
    assert_eq!(version(&Cache::new(Some(redis.clone())), &world, id).await, 2);
    assert_eq!(stored(&redis, id).await, Some(2));
}

/// As a page that shows `paid` from the stream, and then asks for the order.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_was_shown_by_another_way_is_the_least_that_is_shown(db: PgPool) {
    let world = World::new(db);
    let id = world.order().await;
    for cache in [Cache::new(Some(world.redis().await)), Cache::default()] {
        let known = version(&cache, &world, id).await;
        world.step(id).await;
        let shown = orders::get(&world.db, id).await.unwrap().unwrap();
        cache.orders.saw(&shown);
        assert_eq!(version(&cache, &world, id).await, known + 1);
    }
}

/// A second payment can come for an order that has been refunded, and its buyer has to see it.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_comes_after_a_refund_is_seen_everywhere_within_a_second(db: PgPool) {
    let world = World::new(db);
    let id = world.refunded().await;
    let redis = world.redis().await;
    let caches = [Cache::new(Some(redis.clone())), Cache::new(Some(redis.clone())), Cache::default()];
    for cache in &caches {
        assert_eq!(version(cache, &world, id).await, 3);
    }
    sqlx::query("update payment_orders set extra_state = 'held', extra_amount = 1.00, version = version + 1")
        .execute(&world.db)
        .await
        .unwrap();
    a_second().await;
    for cache in &caches {
        let shown = cache.orders.get(&world.db, id).await.unwrap().unwrap();
        assert_eq!((shown.order().status, shown.order().extra_state), (OrderStatus::Refunded, Some(ExtraState::Held)));
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_configuration_is_in_force_everywhere_within_a_second(db: PgPool) {
    let world = World::new(db);
    let caches = [Cache::new(Some(world.redis().await)), Cache::new(Some(world.redis().await)), Cache::default()];
    let enabled =
        async |cache: &Cache| cache.config.get(&world.db).await.unwrap().rules(PaymentMethod::Alipay).unwrap().enabled;
    for cache in &caches {
        assert!(enabled(cache).await);
    }
    sqlx::query("update payment_config set enabled = false, version = version + 1").execute(&world.db).await.unwrap();
    a_second().await;
    for cache in &caches {
        assert!(!enabled(cache).await, "nobody passed it on");
    }
    sqlx::query("update payment_config set enabled = true, version = version + 1").execute(&world.db).await.unwrap();
    caches[0].config.renew(&world.db).await;
    assert!(enabled(&caches[0]).await, "whoever changes it sees it");
}

/// It costs the limit once, and then nothing until it answers again.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_redis_that_hangs_costs_its_limit_once(db: PgPool) {
    let (recorder, handle) = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new(db);
    let (between, id) = (relay().await, world.order().await);
    let redis = world.redis_at(between.port()).await;
    let cache = Cache::new(Some(redis.clone()));
    between.hold(true);
    assert_eq!(version(&cache, &world, id).await, 1);
    assert!(!redis.is_connected());
    let answer = redis.run::<i64>(&Script::new("return 1"), &[], &[]).await;
    assert!(matches!(answer, Err(CallError::Away)), "{answer:?}");
    a_second().await;
    for _ in 0..10 {
        assert_eq!(version(&cache, &world, id).await, 1);
    }
    assert_eq!(counted(&handle, &["redis_errors_total", "slow"]), 1, "{}", handle.render());
    between.hold(false);
    connected(redis.clone()).await;
    between.cut();
    eventually("the cut is noticed", async || redis.run::<i64>(&Script::new("return 1"), &[], &[]).await.is_err())
        .await;
    connected(redis).await;
}
