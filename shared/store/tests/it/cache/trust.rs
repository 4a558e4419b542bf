//! A writer to Redis without our key shows nothing to a reader, and gives no order to another user.

use domain::{OrderId, UserId};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use store::cache::redis::Script;
use store::cache::{Cache, Changed, CopiesKey, Redis, RedisConfig};

use super::rules::a_second;
use super::{World, counted, recorder, version};

/// The fields of a copy in Redis.
type Fields = (String, String, String);

impl World {
    fn key(&self, redis: &Redis, id: OrderId) -> [String; 1] {
        [redis.key(&format!("payment_order:{id}"))]
    }

    async fn fields(&self, redis: &Redis, id: OrderId) -> Fields {
        let read = Script::new("return redis.call('HMGET', KEYS[1], 'version', 'moment', 'data')");
        redis.run(&read, &self.key(redis, id), &[]).await.unwrap()
    }

    /// Writes a copy like an attacker who has the password of Redis. The moment is the present time of Redis.
    async fn forge(&self, redis: &Redis, id: OrderId, data: &str) {
        let write = Script::new(
            "local time = redis.call('TIME')
             local now = time[1] * 1000 + math.floor(time[2] / 1000)
             redis.call('HSET', KEYS[1], 'version', '99', 'moment', now, 'data', ARGV[1])",
        );
        redis.run::<()>(&write, &self.key(redis, id), &[data.to_owned()]).await.unwrap();
    }

    async fn owner(&self, cache: &Cache, id: OrderId) -> UserId {
        cache.orders.get(&self.db, id).await.unwrap().unwrap().order().user_id.clone()
    }

    /// A database in which every order belongs to `owner`.
    async fn of_another(&self, owner: &str) -> PgPool {
        let table = "create table other.payment_orders as select * from payment_orders";
        for sql in ["create schema other", table] {
            sqlx::query(sql).execute(&self.db).await.unwrap();
        }
        sqlx::query("update other.payment_orders set user_id = $1").bind(owner).execute(&self.db).await.unwrap();
        let options = (*self.db.connect_options()).clone().options([("search_path", "other,public")]);
        PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
    }
}

/// Every copy that can be made without the key: another text, another moment, another place, another release.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_copy_that_we_did_not_make_counts_as_absent(db: PgPool) {
    let (recorder, handle) = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new(db);
    let redis = world.redis().await;
    let (id, other) = (world.order().await, world.refunded().await);
    let cache = Cache::new(Some(redis.clone()));
    let forged = || counted(&handle, &["cache_requests_total", r#"layer="redis""#, r#"outcome="forged""#]);
    let unfit = || counted(&handle, &["cache_requests_total", r#"layer="redis""#, r#"outcome="unfit""#]);
    version(&cache, &world, id).await;
    version(&cache, &world, other).await;
    let (_, _, genuine) = world.fields(&redis, id).await;
    let (_, _, of_other) = world.fields(&redis, other).await;
    let json = genuine.splitn(3, '.').nth(2).unwrap().to_owned();
    let paid = |text: &str| text.replace("\"pending\"", "\"paid\"").replace("\"version\":1", "\"version\":99");
    assert_ne!(paid(&genuine), genuine);
    for (data, as_forged) in
        [(genuine.clone(), true), (paid(&genuine), true), (of_other, true), (paid(&json), false), (json, false)]
    {
        a_second().await;
        let before = (forged(), unfit());
        world.forge(&redis, id, &data).await;
        let shown = cache.orders.get(&world.db, id).await.unwrap().unwrap();
        assert_eq!((shown.order().version, shown.order().status.as_str()), (1, "pending"), "{data}");
        let after = (before.0 + u64::from(as_forged), before.1 + u64::from(!as_forged));
        assert_eq!((forged(), unfit()), after, "{data}\n{}", handle.render());
    }
}

/// Even a copy with a valid tag proves nothing about the owner of an order.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn whose_an_order_is_is_never_read_from_redis(db: PgPool) {
    let world = World::new(db);
    let (redis, id) = (world.redis().await, world.order().await);
    let (knows, is_new) = (Cache::new(Some(redis.clone())), Cache::new(Some(redis.clone())));
    let owner = world.owner(&knows, id).await;
    let elsewhere = world.of_another("u2").await;
    for cache in [&knows, &is_new] {
        a_second().await;
        // The control: the copy there is genuine, fresh, and of another user.
        Cache::new(Some(redis.clone())).orders.renew(&elsewhere, Changed::Ids(vec![id])).await;
        assert!(world.fields(&redis, id).await.2.contains("\"u2\""));
        assert_eq!(world.owner(cache, id).await, owner);
    }
}

/// As after a change of the key in one process.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn processes_with_different_keys_do_not_believe_each_other(db: PgPool) {
    let world = World::new(db);
    let id = world.refunded().await;
    let config = RedisConfig::new(testkit::env("REDIS_URL"), world.prefix.clone()).unwrap();
    let other = Redis::connect(&config.clone().with_copies_key(CopiesKey::new(&[8; 32]))).await;
    let (here, there) = (Cache::new(Some(world.redis().await)), Cache::new(Some(other)));
    for cache in [&here, &there, &here, &there] {
        assert_eq!(version(cache, &world, id).await, 3);
        a_second().await;
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_key_redis_holds_no_copies(db: PgPool) {
    let world = World::new(db);
    let id = world.order().await;
    let config = RedisConfig::new(testkit::env("REDIS_URL"), world.prefix.clone()).unwrap();
    let cache = Cache::new(Some(Redis::connect(&config).await));
    version(&cache, &world, id).await;
    cache.orders.renew(&world.db, Changed::Ids(vec![id])).await;
    cache.config.get(&world.db).await.unwrap();
    let redis = world.redis().await;
    let keys = Script::new("return #redis.call('KEYS', ARGV[1] .. '*')");
    assert_eq!(redis.run::<i64>(&keys, &[], std::slice::from_ref(&world.prefix)).await.unwrap(), 0);
}
