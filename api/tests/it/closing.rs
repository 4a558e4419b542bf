//! Closing and syncing: the API only requests; the worker changes the order.

use std::time::Duration;

use axum::http::Method;
use domain::OrderId;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::orders;
use tokio::time::Instant;

use crate::support::Who;
use crate::world::{Answer, PATIENCE, World};

/// Waits until the check job has this request.
async fn requested(world: &World, what: &Value) {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let found: Option<i64> = sqlx::query_scalar("select id from jobs where kind = 'check' and payload = $1")
            .bind(what)
            .fetch_optional(&world.db)
            .await
            .unwrap();
        if found.is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody asked for {what}");
}

async fn close(world: &World, id: &str) -> Answer {
    world.request(Who::User("u1"), Method::POST, &format!("/v1/orders/{id}/close"), None).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_is_closed_by_the_worker(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    let worker = async {
        requested(&world, &json!({ "close": true })).await;
        assert_eq!(world.one::<i64>("select count(*) from jobs where due_at <= now()").await, 1, "brought forward");
        world.close_locally(&id).await;
    };
    let (answer, ()) = tokio::join!(close(&world, &id), worker);
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("closed")), "{}", answer.body);
    let again = close(&world, &id).await;
    assert_eq!((again.status.as_u16(), again.body), (200, answer.body));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_that_is_faster_wins(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    let worker = async {
        requested(&world, &json!({ "close": true })).await;
        world.pay(&id).await;
    };
    let (answer, ()) = tokio::join!(close(&world, &id), worker);
    answer.is(409, "order_already_paid");
    insta::assert_json_snapshot!(answer.json());
    close(&world, &id).await.is(409, "order_already_paid");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_worker_the_answer_says_where_to_look(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    let (closed, synced) = tokio::join!(close(&world, &id), async {
        requested(&world, &json!({ "close": true })).await;
        world.request(Who::Admin("a1"), Method::POST, &format!("/v1/admin/orders/{id}/sync"), None).await
    });
    for answer in [&closed, &synced] {
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
        assert_eq!(answer.header("location"), format!("/v1/orders/{id}"));
    }
    assert_eq!((&closed.json()["status"], &synced.json()["answered"]), (&json!("pending"), &json!(false)));
    assert_eq!(world.count("jobs").await, 1, "one check of an order, however often it is asked for");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_sync_shows_both_sides_and_what_changed(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    let path = format!("/v1/admin/orders/{id}/sync");
    let order = OrderId::parse(&id).unwrap();
    for (pays, state) in [(true, "SUCCESS"), (false, "REFUND")] {
        let worker = async {
            requested(&world, &json!({ "sync": true })).await;
            if pays {
                world.pay(&id).await;
            }
            let mut tx = world.db.begin().await.unwrap();
            orders::note_check(&mut tx, order, state, Clock::system().now()).await.unwrap();
            sqlx::query("delete from jobs").execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        let (answer, ()) = tokio::join!(world.request(Who::Admin("a1"), Method::POST, &path, None), worker);
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
        let view = answer.json();
        assert_eq!((&view["gateway"]["state"], &view["answered"]), (&json!(state), &json!(true)));
        let before = if pays { "pending" } else { "paid" };
        assert_eq!((&view["before"]["status"], &view["after"]["status"]), (&json!(before), &json!("paid")));
        let mut changed: Vec<&str> = view["changed"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        changed.sort_unstable();
        let expected = ["paid_at", "status", "trade_no", "updated_at", "version"];
        assert_eq!(changed, if pays { &expected[..] } else { &[] });
    }
    let none = format!("/v1/admin/orders/{}/sync", "0".repeat(32));
    world.request(Who::Admin("a1"), Method::POST, &none, None).await.is(404, "order_not_found");
    let entries = "select string_agg(subject || ' ' || act || ' ' || object, ', ') from audit_log";
    assert_eq!(world.one::<String>(entries).await, format!("a1 order.synced order:{id}, a1 order.synced order:{id}"));
}
