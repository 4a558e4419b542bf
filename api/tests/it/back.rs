//! The buyer is back, or waits: the gateway is queried about the order, once for all visits, processes and routes.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use domain::OrderId;
use domain::message::schedule::HINTS;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::hints::{Hint, hint};
use tokio::time::{Instant, sleep};

use crate::pages::{PLATFORM, returned, with_token};
use crate::world::{PATIENCE, World, signed, wechat_order};

/// An order of a minute ago, whose next check is far away.
async fn pending(world: &World, body: Option<Value>) -> Value {
    let placed = match body {
        None => world.order("u1").await,
        Some(body) => world.create("u1", &uuid::Uuid::now_v7().to_string(), &body).await.json(),
    };
    sqlx::query("update jobs set created_at = created_at - interval '1 minute' where ref_id = $1")
        .bind(placed["order"]["id"].as_str().unwrap())
        .execute(&world.db)
        .await
        .unwrap();
    answered(world).await;
    placed
}

/// The job as the check worker leaves it after the gateway answered "not paid" some time ago.
async fn answered(world: &World) {
    sqlx::query(
        "update jobs set due_at = now() + interval '1 h', lease_until = null, taken_at = now() - interval '1 h', \
         hinted_at = hinted_at - interval '1 h' where kind = 'check'",
    )
    .execute(&world.db)
    .await
    .unwrap();
}

fn id(placed: &Value) -> OrderId {
    OrderId::parse(placed["order"]["id"].as_str().unwrap()).unwrap()
}

/// How many checks were brought forward, of all orders together.
async fn fence(world: &World) -> i64 {
    world.one("select coalesce(sum(fence), 0)::bigint from jobs where kind = 'check'").await
}

async fn is_due(world: &World, order: OrderId) -> bool {
    sqlx::query_scalar("select due_at <= now() from jobs where kind = 'check' and ref_id = $1")
        .bind(order.to_string())
        .fetch_one(&world.db)
        .await
        .unwrap()
}

/// Hints are sent concurrently with the answer.
async fn becomes_due(world: &World, order: OrderId) {
    let until = Instant::now() + PATIENCE;
    while !is_due(world, order).await {
        assert!(Instant::now() < until, "the gateway is not asked");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn visit(world: &World, path: &str) {
    let answer = world.open(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status().as_u16(), 200, "{path}");
}

/// Each way in which a buyer comes back, with its proof.
fn ways_in(placed: &Value) -> Vec<String> {
    let token = placed["view_token"].as_str().unwrap();
    let mut ways = vec![
        format!("/pay/success?{}", with_token(placed)),
        format!("/pay/cancel?{}", with_token(placed)),
        format!("/v1/orders/{}?view_token={token}", id(placed)),
        format!("/v1/orders/{}/stream?view_token={token}", id(placed)),
    ];
    if placed["order"]["payment_method"] == "alipay" {
        ways.push(format!("/pay/success?{}", returned(PLATFORM, placed["order"]["order_no"].as_str().unwrap())));
    }
    ways
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_way_back_has_the_gateway_queried(db: PgPool) {
    for body in [None, Some(wechat_order())] {
        // A process of its own for each way: what one remembers must not help another.
        for way in 0..ways_in(&pending(&World::new(db.clone()).await, body.clone()).await).len() {
            let world = World::new(db.clone()).await;
            let placed = pending(&world, body.clone()).await;
            visit(&world, &ways_in(&placed)[way]).await;
            becomes_due(&world, id(&placed)).await;
        }
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_crowd_at_every_door_of_two_processes_brings_one_question(db: PgPool) {
    let worlds = [World::new(db.clone()).await, World::new(db).await];
    let placed = pending(&worlds[0], None).await;
    let before = fence(&worlds[0]).await;
    let ways = ways_in(&placed);
    let visits = (0..60).map(|n| {
        let (world, way) = (&worlds[n % 2], &ways[n % ways.len()]);
        // Streams of one order have a limit of their own.
        let read = format!("/v1/orders/{}", id(&placed));
        async move {
            if way.contains("/stream") {
                world.get(&read, "u1").await.status
            } else {
                world.open(Request::get(way).body(Body::empty()).unwrap()).await.status()
            }
        }
    });
    let answers = futures_util::future::join_all(visits).await;
    assert!(answers.iter().all(|status| status.is_success()), "{answers:?}");
    becomes_due(&worlds[0], id(&placed)).await;
    // The statements that come late find the question due.
    for kind in [Hint::Back, Hint::Watched] {
        assert_eq!(hint(&worlds[0].db, &[id(&placed)], kind).await.unwrap(), []);
    }
    assert_eq!(fence(&worlds[0]).await, before + 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn nothing_is_queried_that_was_queried_a_moment_ago_or_cannot_have_been_paid(db: PgPool) {
    let world = World::new(db).await;
    let order = id(&pending(&world, None).await);
    testkit::make_up_facts(&world.db).await;
    let set = async |sql: &'static str| {
        sqlx::query(sql).execute(&world.db).await.unwrap();
    };
    for (sql, hinted) in [
        ("update jobs set taken_at = now() - interval '2.5 s'", false),
        ("update jobs set taken_at = now() - interval '3 s'", true),
        // Due and not published, published, in a worker's hands.
        ("update jobs set due_at = now()", false),
        ("update jobs set due_at = now() - interval '1 s', lease_until = now() + interval '1 minute'", false),
        ("update jobs set created_at = now() - interval '2.5 s'", false),
        // The ingress's own clock does not count.
        ("update payment_orders set created_at = now() + interval '10 minutes'", true),
        ("update payment_orders set status = 'closed', closed_at = now()", false),
        ("update payment_orders set status = 'paid', trade_no = 't1', paid_at = now()", false),
    ] {
        set("update payment_orders set status = 'pending', created_at = now() - interval '1 minute'").await;
        set("update jobs set created_at = now() - interval '1 minute'").await;
        answered(&world).await;
        set(sql).await;
        for kind in [Hint::Back, Hint::Watched] {
            set("update jobs set hint_step = 0, hinted_at = null").await;
            assert_eq!(!hint(&world.db, &[order], kind).await.unwrap().is_empty(), hinted, "{sql} {kind:?}");
            if hinted {
                answered(&world).await;
                set(sql).await;
            }
        }
    }
    assert_eq!(hint(&world.db, &[OrderId::from_u128(7)], Hint::Back).await.unwrap(), [], "an order that is not there");
}

/// Lets that much time pass for the job.
async fn after(world: &World, seconds: f64) {
    sqlx::query(
        "update jobs set due_at = now() + interval '1 h', hinted_at = now() - make_interval(secs => $1), \
         taken_at = now() - make_interval(secs => $1)",
    )
    .bind(seconds)
    .execute(&world.db)
    .await
    .unwrap();
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_is_watched_and_never_paid_is_queried_less_and_less(db: PgPool) {
    let world = World::new(db).await;
    let order = id(&pending(&world, None).await);
    let due = async |kind| !hint(&world.db, &[order], kind).await.unwrap().is_empty();
    assert!(due(Hint::Watched).await);
    for nth in 0..8 {
        let gap = HINTS[nth.min(HINTS.len() - 1)].as_seconds_f64();
        after(&world, gap - 0.5).await;
        assert!(!due(Hint::Watched).await, "{nth}: before {gap} s");
        after(&world, gap + 0.1).await;
        assert!(due(Hint::Watched).await, "{nth}: after {gap} s");
    }
    // The buyer is back: the gaps begin again.
    after(&world, 3.1).await;
    assert!(due(Hint::Back).await);
    after(&world, 3.1).await;
    assert!(due(Hint::Watched).await);
    // However often: at some time it counts as watching, and watching ends.
    let mut given = 0;
    for _ in 0..200 {
        after(&world, 30.1).await;
        given += i32::from(due(Hint::Back).await);
    }
    assert!((20..=80).contains(&given), "{given}");
    after(&world, 3600.0).await;
    assert!(!due(Hint::Back).await && !due(Hint::Watched).await, "the schedule alone goes on");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_open_stream_goes_on_querying_until_it_is_paid(db: PgPool) {
    let world = World::new(db.clone()).await;
    let placed = pending(&world, Some(wechat_order())).await;
    let hub = world.app.hub.clone();
    tokio::spawn(async move { hub.run(db).await });
    let path = format!("/v1/orders/{}/stream", id(&placed));
    let _page = world.open(signed(Method::GET, &path, "u1").body(Body::empty()).unwrap()).await;
    // Once when it is opened, and again and again by itself.
    for _ in 0..3 {
        becomes_due(&world, id(&placed)).await;
        answered(&world).await;
    }
    let before = fence(&world).await;
    world.pay(&id(&placed).to_string()).await;
    let newest = world.app.hub.watch(store::tables::orders::get(&world.db, id(&placed)).await.unwrap().unwrap());
    assert_eq!(newest.unwrap_or_else(|error| panic!("{error}")).newest.borrow().status.as_str(), "paid");
    assert_eq!(hint(&world.db, &[id(&placed)], Hint::Watched).await.unwrap(), []);
    assert_eq!(fence(&world).await, before);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_visit_without_a_proof_queries_nothing(db: PgPool) {
    let world = World::new(db).await;
    let placed = pending(&world, None).await;
    let before = fence(&world).await;
    let order_no = placed["order"]["order_no"].as_str().unwrap();
    for query in [format!("order={}", id(&placed)), format!("out_trade_no={order_no}&sign=x"), String::new()] {
        visit(&world, &format!("/pay/success?{query}")).await;
    }
    world.get(&format!("/v1/orders/{}", id(&placed)), "u2").await.is(404, "order_not_found");
    // Hints that were given before this one have been counted by then.
    visit(&world, &format!("/pay/success?{}", with_token(&placed))).await;
    becomes_due(&world, id(&placed)).await;
    assert_eq!(fence(&world).await, before + 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_whose_close_was_requested_shows_it(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let path = format!("/v1/orders/{}", id(&placed));
    assert_eq!(world.get(&path, "u1").await.json()["close_requested"], json!(false));
    payment_api::routes::orders::request_close_and_check(&world.app, id(&placed)).await.unwrap();
    let fresh = World::new(world.db.clone()).await;
    for seen in [fresh.get(&path, "u1").await.json(), fresh.get("/v1/orders", "u1").await.json()["orders"][0].clone()] {
        assert_eq!((&seen["status"], &seen["close_requested"]), (&json!("pending"), &json!(true)));
        assert_eq!(seen["version"], json!(2), "streams and pages see it as well");
    }
    let page =
        fresh.send(Request::get(format!("/pay/cancel?{}", with_token(&placed))).body(Body::empty()).unwrap()).await;
    assert!(page.body.contains("正在取消订单") && page.body.contains("The order is being cancelled"), "{}", page.body);
    // Asked for again, it changes nothing.
    payment_api::routes::orders::request_close_and_check(&world.app, id(&placed)).await.unwrap();
    assert_eq!(world.one::<i64>("select version from payment_orders").await, 2);
}
