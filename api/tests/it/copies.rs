//! An order that is shown from a copy: only to its owner, and never older than what this process has shown or done.

use axum::body::Body;
use axum::http::{Method, Request};
use domain::OrderId;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::cache::redis::Script;
use store::cache::{CopiesKey, Redis, RedisConfig};

use crate::support::Who::{self, Admin, User};
use crate::world::{Setup, World};

pub async fn redis(db: &PgPool) -> Redis {
    let prefix = format!("{}:", db.connect_options().get_database().unwrap());
    let config = RedisConfig::new(testkit::env("REDIS_URL"), prefix).unwrap();
    Redis::connect(&config.with_copies_key(CopiesKey::new(&[7; 32]))).await
}

async fn with_redis(db: PgPool, redis: &Redis) -> World {
    World::with(db, Setup { redis: Some(redis.clone()), ..Setup::default() }).await
}

impl World {
    async fn shown(&self, who: Who, id: &str) -> Value {
        self.request(who, Method::GET, &format!("/v1/orders/{id}"), None).await.json()
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_copy_is_shown_to_its_owner_alone(db: PgPool) {
    let redis = redis(&db).await;
    let (world, other) = (with_redis(db.clone(), &redis).await, with_redis(db, &redis).await);
    let placed = world.order("u1").await;
    let id = placed["order"]["id"].as_str().unwrap();
    // Into all layers, and then from each: memory here, Redis there.
    for world in [&world, &world, &other, &other] {
        assert_eq!(world.shown(User("u1"), id).await, placed["order"]);
        world.request(User("u2"), Method::GET, &format!("/v1/orders/{id}"), None).await.is(404, "order_not_found");
        let staff = world.request(Admin("a1"), Method::GET, &format!("/v1/orders/{id}"), None).await;
        assert_eq!(staff.json(), placed["order"], "the merchant sees every order");
        let token = world.order("u1").await["view_token"].as_str().unwrap().to_owned();
        let with_token = Request::get(format!("/v1/orders/{id}?view_token={token}")).body(Body::empty()).unwrap();
        world.send(with_token).await.is(404, "order_not_found");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_user_who_changes_an_order_is_shown_the_change(db: PgPool) {
    for redis in [None, Some(redis(&db).await)] {
        let world = World::with(db.clone(), Setup { redis, ..Setup::default() }).await;
        let id = world.paid("u1").await;
        assert_eq!(world.shown(User("u1"), &id).await["status"], "paid");
        let requested = world.refund("u1", &id, &format!("k-{id}"), &json!({})).await;
        assert_eq!(requested.status.as_u16(), 202, "{}", requested.body);
        assert_eq!(world.shown(User("u1"), &id).await["status"], "refunding");
    }
}

/// As a frontend does: it lists, and then looks.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_list_raises_what_is_shown(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    assert_eq!(world.shown(User("u1"), &id).await["status"], "pending");
    world.pay(&id).await;
    let listed = world.get("/v1/orders", "u1").await.json();
    assert_eq!(listed["orders"][0]["status"], "paid");
    assert_eq!(world.shown(User("u1"), &id).await["status"], "paid");
}

/// There is no worker here, so the sync waits for its five seconds.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_sync_rewrites_the_copies(db: PgPool) {
    let redis = redis(&db).await;
    let world = with_redis(db, &redis).await;
    let id = world.placed("u1").await;
    world.pay(&id).await;
    let key = [redis.key(&format!("payment_order:{}", OrderId::parse(&id).unwrap()))];
    let version = Script::new("return redis.call('HGET', KEYS[1], 'version')");
    assert_eq!(redis.run::<Option<i64>>(&version, &key, &[]).await.unwrap(), None);
    let synced = world.request(Admin("a1"), Method::POST, &format!("/v1/admin/orders/{id}/sync"), None).await;
    assert_eq!(synced.status.as_u16(), 202, "{}", synced.body);
    assert_eq!(redis.run::<Option<i64>>(&version, &key, &[]).await.unwrap(), Some(2));
}

/// One process changes the rules; another, which gets no notification, applies them soon.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn rules_are_in_force_in_every_process_within_a_second(db: PgPool) {
    let redis = redis(&db).await;
    let here = with_redis(db.clone(), &redis).await;
    let there = [with_redis(db.clone(), &redis).await, World::new(db).await];
    for world in &there {
        world.order("u1").await;
    }
    let off = json!({ "version": 1, "enabled": false });
    here.request(Admin("a1"), Method::PATCH, "/v1/admin/config/alipay", Some(&off)).await;
    let changed = tokio::time::Instant::now();
    here.create("u1", "k1", &crate::world::alipay_order()).await.is(409, "method_disabled");
    for world in &there {
        loop {
            let began = tokio::time::Instant::now();
            let answer = world.create("u1", &uuid::Uuid::now_v7().to_string(), &crate::world::alipay_order()).await;
            if answer.status.as_u16() == 409 {
                break answer.is(409, "method_disabled");
            }
            assert!(began < changed + store::cache::FRESH + std::time::Duration::from_millis(20));
        }
    }
}
