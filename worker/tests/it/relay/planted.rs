//! Planted faults in the relay: only the one event, job or dead letter is affected, and the relay stays the leader.

use std::sync::Arc;
use std::time::Duration;

use broker::{callback_from, callback_message, topology};
use domain::OrderStatus::Paid;
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::event::Event;
use runtime::crash::{Fault, Point, plant};
use sqlx::PgPool;
use store::MIGRATOR;
use worker::consumer::{self, BatchOptions};

use super::{PATIENCE, Setup, UNPUBLISHED, event};
use crate::support::World;

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_that_panics_waits_with_those_behind_it_among_2000(db: PgPool) {
    let setup = Setup::new(db).await;
    setup.downstream("shop.all", "#").await;
    // 500 orders with four events each, and one more before those of order 7.
    let mut all: Vec<Event> = vec![event("bad", "order.paid", Some(7))];
    all.extend((0..2000u128).map(|n| event(&format!("e{n:04}"), "order.paid", Some(n % 500))));
    setup.write(&all).await;
    let bad = plant(Point::OutboxTaken, "bad", Fault::Panic);
    setup.start();
    setup.until(UNPUBLISHED, 5).await;
    let leader = setup.leader().await;
    let waits = "select count(*) from events where published_at is null and retry_at > now() + interval '4 min'";
    setup.until(waits, 1).await;
    let unpublished = "select event_id from events where published_at is null order by seq";
    let unpublished: Vec<String> = sqlx::query_scalar(unpublished).fetch_all(&setup.db).await.unwrap();
    assert_eq!(unpublished, ["bad", "e0007", "e0507", "e1007", "e1507"]);
    assert_eq!(topology::depth(&setup.admin, "shop.all").await.unwrap(), 1996);
    assert_eq!(bad.met(), 1, "it is not tried in each round");
    drop(bad);
    sqlx::query("update events set retry_at = now() where event_id = 'bad'").execute(&setup.db).await.unwrap();
    setup.until(UNPUBLISHED, 0).await;
    assert_eq!(setup.leader().await, leader, "the lead was never given up");
}

/// No type of ours reads such a row: the text of an order that is none, and a moment that no clock reaches.
#[sqlx::test(migrator = "MIGRATOR")]
async fn rows_that_cannot_be_read_wait_alone(db: PgPool) {
    let setup = Setup::new(db).await;
    setup.downstream("shop.all", "#").await;
    let ids: Vec<String> = (0..20).map(|n| format!("e{n:02}")).collect();
    let all: Vec<Event> = ids.iter().enumerate().map(|(n, id)| event(id, "order.paid", Some(n as u128 / 4))).collect();
    setup.write(&all).await;
    sqlx::raw_sql(
        "update events set order_id = repeat('z', 32) where event_id in ('e05', 'e06');
         update events set occurred_at = 'infinity' where event_id = 'e12'",
    )
    .execute(&setup.db)
    .await
    .unwrap();
    setup.start();
    // Those two and the one behind the first; the moment, and the three behind it.
    setup.until(UNPUBLISHED, 6).await;
    let leader = setup.leader().await;
    let mut arrived = setup.next_ids("shop.all", 14).await;
    arrived.sort();
    let gone: Vec<&String> =
        ids.iter().filter(|id| !["e05", "e06", "e12", "e13", "e14", "e15"].contains(&id.as_str())).collect();
    assert_eq!(arrived.iter().collect::<Vec<_>>(), gone);
    setup.write(&[event("later", "order.paid", Some(99))]).await;
    setup.until("select count(*) from events where event_id = 'later' and published_at is not null", 1).await;
    assert_eq!(setup.leader().await, leader);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_due_job_that_panics_is_left_to_its_lease_among_2000(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db.clone()).await;
    let callback = world.paid(&world.pending_order(Alipay, "8").await);
    sqlx::query("delete from jobs").execute(&db).await.unwrap();
    let payload = serde_json::to_value(&callback).unwrap();
    sqlx::query(
        "insert into jobs (kind, payload, due_at, created_at)
         select 'callback', $1, now() - interval '1 hour', now() from generate_series(1, 2001)",
    )
    .bind(payload)
    .execute(&db)
    .await
    .unwrap();
    // One that can be read as no callback, and whose case the database refuses.
    sqlx::raw_sql(
        "insert into jobs (kind, payload, due_at, created_at) values ('callback', '{\"refused\": 1}', now(), now());
         alter table cases add constraint refused check (not evidence ? 'refused')",
    )
    .execute(&db)
    .await
    .unwrap();
    let bad: i64 =
        sqlx::query_scalar("select id from jobs order by id offset 1000 limit 1").fetch_one(&db).await.unwrap();
    let planted = plant(Point::RelayLeased, &bad.to_string(), Fault::Panic);
    setup.start();
    setup.until("select count(*) from jobs where publishes = 1 and lease_until is not null", 2002).await;
    let leader = setup.leader().await;
    let patience = tokio::time::Instant::now() + PATIENCE;
    while topology::depth(&setup.admin, topology::CALLBACKS).await.unwrap() != 2000 {
        assert!(tokio::time::Instant::now() < patience, "the genuine ones are not all in the queue");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(planted.met(), 1);
    drop(planted);
    // Its lease ends, and it goes out.
    sqlx::query("update jobs set lease_until = now() where id = $1").bind(bad).execute(&db).await.unwrap();
    setup.until("select count(*) from jobs where publishes = 2", 1).await;
    assert_eq!(setup.leader().await, leader);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dead_letter_that_panics_is_filed_with_its_bytes_and_stops_no_other(db: PgPool) {
    let setup = Setup::new(db).await;
    let letter = |n: usize| broker::Message {
        exchange: String::new(),
        routing_key: topology::DEAD.to_owned(),
        id: format!("letter-{n}"),
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: Vec::new(),
        body: n.to_string().into(),
    };
    let panics = plant(Point::LetterOpened, "letter-3", Fault::Panic);
    let fails = plant(Point::LetterOpened, "letter-7", Fault::Error);
    setup.publish((0..60).map(letter).collect()).await;
    setup.start();
    setup.until("select count(*) from cases where kind = 'dead_letter'", 60).await;
    assert!(panics.met() > 0 && fails.met() > 0);
    let bare: Vec<(serde_json::Value, Vec<u8>)> = sqlx::query_as(
        "select evidence, body from cases join dead_letters on case_id = id
         where subject_ref not like 'letter-%' order by body",
    )
    .fetch_all(&setup.db)
    .await
    .unwrap();
    let of = |bytes: &[u8]| {
        (serde_json::json!({ "size": 1, "digest": domain::message::callback::digest(bytes) }), bytes.to_vec())
    };
    assert_eq!(bare, [of(b"3"), of(b"7")]);
}

/// From the queue to the case: genuine callbacks settle, the one that panics comes again as a job, and its case says
/// so.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_that_always_panics_ends_as_a_case_that_says_so(db: PgPool) {
    let world = Arc::new(World::new(db.clone()));
    let setup = Setup::new(db.clone()).await;
    let (mut callbacks, mut orders) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let order = world.pending_order(if n % 2 == 0 { Alipay } else { Wechat }, "1.50").await;
        callbacks.push(callback_message(&world.paid(&order), format!("c{n}")));
        orders.push(order);
    }
    let _sown = plant(Point::CallbackMoved, orders[11].order_no.as_str(), Fault::Panic);
    setup.publish(callbacks).await;
    setup.start();
    let connection = broker::open(&setup.broker.uri(), "test").await.unwrap();
    let options = BatchOptions::in_order(400, Duration::from_millis(20));
    let settled = consumer::run(&connection, topology::CALLBACKS, options, setup.stop.child_token(), async |batch| {
        assert!(batch.iter().all(|delivery| !delivery.redelivered), "nothing goes back");
        world.worker.settle(batch.iter().map(callback_from).collect()).await
    });
    let watch = async {
        setup.until("select count(*) from payment_orders where status = 'paid'", 29).await;
        for attempt in 1..=5 {
            let sql = "select coalesce(max(attempts), 0)::bigint from jobs where kind = 'callback'";
            setup.until(sql, attempt).await;
            let soon = "update jobs set due_at = now() where kind = 'callback'";
            sqlx::query(soon).execute(&setup.db).await.unwrap();
        }
        setup.until("select count(*) from cases where kind = 'dead_letter'", 1).await;
        setup.stop.cancel();
    };
    let (settled, ()) = tokio::join!(tokio::time::timeout(PATIENCE, settled), watch);
    settled.unwrap().unwrap();
    let case: serde_json::Value = sqlx::query_scalar("select evidence from cases").fetch_one(&db).await.unwrap();
    assert_eq!(case["job"]["last_error"], "settling panicked: planted at callback.moved", "{case}");
    assert_eq!(case["job"]["attempts"], 6);
    assert_eq!(world.count("callback jobs").await, 0, "its case holds it now");
    for (n, order) in orders.iter().enumerate() {
        assert_eq!(world.status(order).await == Paid, n != 11, "{n}");
    }
}
