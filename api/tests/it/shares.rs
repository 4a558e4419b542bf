//! How many slots one client may hold at once: only requests in progress hold slots, and other clients find free ones.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::world::{Mood, PATIENCE, Setup, World, creation, signed, wechat_order};

/// A body that never comes.
fn stalled() -> Body {
    awaited_in_vain(&Arc::default())
}

/// The same, and it counts when it is waited for.
fn awaited_in_vain(awaited: &Arc<AtomicUsize>) -> Body {
    let awaited = awaited.clone();
    Body::from_stream(stream::once(async move {
        awaited.fetch_add(1, Ordering::SeqCst);
        pending::<Result<Vec<u8>, std::io::Error>>().await
    }))
}

async fn world(db: PgPool, set: impl FnOnce(&mut Setup)) -> World {
    let mut setup = Setup::default();
    set(&mut setup);
    World::with(db, setup).await
}

fn closing(id: &str, user: &str) -> Request<Body> {
    signed(Method::POST, &format!("/v1/orders/{id}/close"), user).body(Body::empty()).unwrap()
}

/// Until the last slot of the process, or what else is counted, is free or taken.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Trap: the request of a client that disconnects is no longer counted, but its work continues.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn work_that_outlives_its_request_holds_its_slot(db: PgPool) {
    let world = world(db, |setup| setup.settings.requests = 1).await;
    let id = world.placed("u1").await;
    let requested = "select count(*) from jobs where payload ? 'close'";
    tokio::select! {
        biased;
        answer = world.send(closing(&id, "u1")) => panic!("it waits for the worker: {}", answer.body),
        () = until("the close is asked for", async || world.one::<i64>(requested).await == 1) => {}
    }
    // The client has hung up. Its close is waited for all the same, and counts.
    world.get("/v1/orders", "u2").await.is(503, "overloaded");
    world.close_locally(&id).await;
    until("the slot is free", async || world.get("/v1/orders", "u2").await.status.as_u16() == 200).await;
}

/// Trap: each close of one order requests it again, and waits for its own result.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn many_closes_of_one_order_are_one(db: PgPool) {
    // All of them may wait.
    let world = world(db, |setup| setup.settings.requests = 512).await;
    let id = world.placed("u1").await;
    let waiting = &world.app.in_hand.waiting;
    let free = waiting.available_permits();
    let before: i64 = world.one("select fence from jobs where kind = 'check'").await;
    let worker = async {
        let requested = "select count(*) from jobs where payload ? 'close'";
        until("the close is asked for", async || world.one::<i64>(requested).await == 1).await;
        until("all of them wait", async || waiting.available_permits() == free - 50).await;
        assert_eq!(world.one::<i64>("select fence from jobs where kind = 'check'").await, before + 1, "asked once");
        world.close_locally(&id).await;
    };
    let (answers, ()) = tokio::join!(join_all((0..50).map(|_| world.send(closing(&id, "u1")))), worker);
    for answer in answers {
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("closed")), "{}", answer.body);
    }
    let after: i64 = world.one("select coalesce(max(fence), -1) from jobs where kind = 'check'").await;
    assert!([-1, before + 1].contains(&after), "still once: {before}, then {after}");
    world.send(closing(&id, "u2")).await.is(404, "order_not_found");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_user_has_so_many_requests_in_hand_and_leaves_the_others_theirs(db: PgPool) {
    let world = world(db, |setup| setup.settings.requests_in_hand = 2).await;
    world.gateway.is(Mood::Waits);
    let slow = |key: &'static str| world.send(creation("u1", key, &wechat_order()));
    let rest = async {
        for _ in 0..2 {
            world.gateway.is_called().await;
        }
        let third = world.get("/v1/orders", "u1").await;
        third.is(429, "too_many_requests");
        assert_eq!(third.header("retry-after"), "1");
        assert_eq!(world.get("/v1/orders", "u2").await.status.as_u16(), 200);
        world.gateway.is(Mood::Works);
        world.gateway.let_go();
        world.gateway.let_go();
    };
    let (one, two, ()) = tokio::join!(slow("k1"), slow("k2"), rest);
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (201, 201));
    assert_eq!(world.get("/v1/orders", "u1").await.status.as_u16(), 200, "given back");
}

/// Trap: a few users at one address hold every slot.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn many_users_at_one_address_leave_the_others_theirs(db: PgPool) {
    let world = world(db, |setup| (setup.settings.requests, setup.settings.requests_in_hand) = (12, 1)).await;
    world.gateway.is(Mood::Waits);
    let slow = |user: &'static str| world.send(creation(user, "k", &wechat_order()));
    let rest = async {
        for _ in 0..3 {
            world.gateway.is_called().await;
        }
        world.get("/v1/orders", "u4").await.is(429, "too_many_requests");
        let mut elsewhere = signed(Method::GET, "/v1/orders", "u4").body(Body::empty()).unwrap();
        let address = SocketAddr::from(([198, 51, 100, 8], 40_000));
        elsewhere.extensions_mut().insert(ConnectInfo(address));
        assert_eq!(world.send(elsewhere).await.status.as_u16(), 200);
        world.gateway.is(Mood::Works);
        (0..3).for_each(|_| world.gateway.let_go());
    };
    let (one, two, three, ()) = tokio::join!(slow("u1"), slow("u2"), slow("u3"), rest);
    for answer in [one, two, three] {
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.body);
    }
    assert_eq!(world.get("/v1/orders", "u4").await.status.as_u16(), 200, "given back");
}

/// Trap: closes wait for the worker, from many addresses and for many users, and hold every slot.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn closes_that_wait_leave_slots_to_the_others(db: PgPool) {
    let world = world(db, |setup| setup.settings.requests = 4).await;
    let ids = [world.placed("u1").await, world.placed("u2").await];
    let requested = "select count(*) from payment_orders where close_requested_at is not null";
    let first = async {
        let answer = world.send(closing(&ids[0], "u1")).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("closed")), "{}", answer.body);
    };
    let rest = async {
        until("the first is asked for", async || world.one::<i64>(requested).await == 1).await;
        for _ in 0..2 {
            // Had it waited, the first would have waited in vain meanwhile.
            let second = world.send(closing(&ids[1], "u2")).await;
            assert_eq!((second.status.as_u16(), &second.json()["status"]), (202, &json!("pending")), "{}", second.body);
            assert_eq!(second.json()["close_requested"], true, "{}", second.body);
        }
        assert_eq!(world.one::<i64>(requested).await, 2);
        world.close_locally(&ids[0]).await;
    };
    tokio::join!(first, rest);
}

/// Trap: bodies that trickle in hold the slots of all.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_body_that_does_not_come_holds_no_slot(db: PgPool) {
    let world = world(db, |setup| (setup.settings.requests, setup.settings.callbacks) = (1, 1)).await;
    let awaited = Arc::new(AtomicUsize::new(0));
    let slow = || {
        let request = signed(Method::POST, "/v1/orders", "u1").header("idempotency-key", "k1");
        world.send(request.header("content-type", "application/json").body(awaited_in_vain(&awaited)).unwrap())
    };
    let path = "/v1/callbacks/alipay/main";
    let slow_callback = || world.send(Request::post(path).body(awaited_in_vain(&awaited)).unwrap());
    let quick = async {
        until("each body is waited for", async || awaited.load(Ordering::SeqCst) == 16).await;
        for _ in 0..3 {
            assert_eq!(world.get("/v1/orders", "u2").await.status.as_u16(), 200);
            let forged = world.send(Request::post(path).body(Body::from("sign=x&sign_type=RSA2")).unwrap()).await;
            assert_eq!(forged.status.as_u16(), 401, "worked on: {}", forged.body);
        }
    };
    let (slow, slow_callbacks, ()) =
        tokio::join!(join_all((0..8).map(|_| slow())), join_all((0..8).map(|_| slow_callback())), quick);
    assert!(slow.iter().all(|answer| answer.status.as_u16() == 408), "{:?}", slow.iter().map(|a| a.status).max());
    assert!(slow_callbacks.iter().all(|answer| answer.status.as_u16() == 408));
}

/// Bodies of callbacks have a bound for each address, though they hold no slot.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn one_address_sends_so_many_bodies_at_once(db: PgPool) {
    let world = world(db, |_| {}).await;
    let path = "/v1/callbacks/alipay/main";
    let slow = (0..80).map(|_| world.send(Request::post(path).body(stalled()).unwrap()));
    let statuses: Vec<u16> = join_all(slow).await.iter().map(|answer| answer.status.as_u16()).collect();
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((count(408), count(429)), (64, 16));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_user_has_so_many_streams_whatever_their_orders(db: PgPool) {
    let world = world(db, |setup| (setup.settings.streams_per_user, setup.settings.streams) = (2, 100)).await;
    let placed = [world.placed("u1").await, world.placed("u1").await, world.placed("u1").await];
    let path = |id: &str| signed(Method::GET, &format!("/v1/orders/{id}/stream"), "u1").body(Body::empty()).unwrap();
    let mut open = vec![world.open(path(&placed[0])).await, world.open(path(&placed[1])).await];
    assert!(open.iter().all(|stream| stream.status().as_u16() == 200));
    world.send(path(&placed[2])).await.is(429, "too_many_streams");
    let other = world.placed("u2").await;
    let others = signed(Method::GET, &format!("/v1/orders/{other}/stream"), "u2").body(Body::empty()).unwrap();
    assert_eq!(world.open(others).await.status().as_u16(), 200);
    open.pop();
    assert_eq!(world.open(path(&placed[2])).await.status().as_u16(), 200);
}
