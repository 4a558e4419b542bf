//! Batches: set-based, concurrent, and split when one callback is refused or delayed.

use std::sync::Arc;
use std::time::Duration;

use domain::OrderStatus::{Paid, Pending};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::callback::Callback;
use gateway_sim::notify::Overrides;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};
use store::tables::orders::Order;
use store::{DbError, MIGRATOR};
use tokio::time::Instant;
use worker::callbacks::CallbackWorker;
use worker::consumer::Ack;

use crate::support::World;

#[sqlx::test(migrator = "MIGRATOR")]
async fn many_workers_with_the_same_callbacks_in_any_order_settle_each_once(db: PgPool) {
    let world = Arc::new(World::new(db));
    let mut callbacks = Vec::new();
    for n in 0..40 {
        let order = world.pending_order(if n % 2 == 0 { Alipay } else { Wechat }, "1.50").await;
        callbacks.push(world.paid(&order));
    }
    let workers = (0..8).map(|n| {
        let (world, mut batch) = (world.clone(), callbacks.clone());
        batch.rotate_left(n * 5);
        if n % 2 == 1 {
            batch.reverse();
        }
        tokio::spawn(async move { world.settle(batch).await })
    });
    for worker in workers.collect::<Vec<_>>() {
        assert_eq!(worker.await.unwrap(), vec![Ack::Done; 40]);
    }
    assert_eq!(world.verdicts().await, vec![("settled".to_owned(), 8); 40]);
    assert_eq!(world.events().await.len(), 40);
    assert_eq!(world.count("work").await, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn one_callback_that_the_database_refuses_delays_no_other(db: PgPool) {
    let world = World::new(db);
    let (mut callbacks, mut good) = (Vec::new(), Vec::new());
    for n in 0..9 {
        let order = world.pending_order(Wechat, "1.50").await;
        // An authentic id longer than the column: nothing that a batch should end on.
        let id = (n == 4).then(|| "x".repeat(129));
        let refused = id.is_some();
        callbacks.push(world.notice_of(&world.paid_trade(&order), &Overrides { id, ..Overrides::default() }));
        if refused {
            assert_eq!(world.status(&order).await, Pending);
        } else {
            good.push(order);
        }
    }
    let acks = world.settle(callbacks).await;
    for (n, ack) in acks.iter().enumerate() {
        assert_eq!(*ack, if n == 4 { Ack::Dead } else { Ack::Done }, "{n}");
    }
    for order in good {
        assert_eq!(world.status(&order).await, Paid);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_no_callback_is_dead_and_the_rest_settles(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "1.50").await;
    let batch = vec![Err("no header"), Ok(world.paid(&order)), Err("no header")];
    let acks = world.worker.settle(batch).await.unwrap();
    assert_eq!(acks, [Ack::Dead, Ack::Done, Ack::Dead]);
    assert_eq!(world.status(&order).await, Paid);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_absent_database_is_an_error_and_not_a_verdict(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Alipay, "1.50").await;
    let callback = world.paid(&order);
    db.close().await;
    assert!(world.worker.settle(vec![Ok::<_, String>(callback)]).await.is_err());
}

/// Makes the database answer every change of an order with this error code.
async fn refuse_with(db: &PgPool, code: &str) {
    let sql = format!(
        "create or replace function refuse() returns trigger language plpgsql as
           $$ begin raise exception 'not now' using errcode = '{code}'; end $$;
         create or replace trigger refuse before update on payment_orders for each row execute function refuse()"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await.unwrap();
}

async fn refuse_no_more(db: &PgPool) {
    sqlx::raw_sql("drop trigger refuse on payment_orders").execute(db).await.unwrap();
}

/// No right, no such table or column yet, a disk that fails, a defect of the server: no callback is to blame for it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_the_surroundings_is_an_error_and_not_a_verdict(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Alipay, "1.50").await;
    let (callback, other) = (world.paid(&order), world.paid(&world.pending_order(Wechat, "1.50").await));
    for code in ["42501", "42P01", "42703", "58030", "53100", "XX000", "F0000"] {
        refuse_with(&db, code).await;
        for batch in [vec![callback.clone()], vec![callback.clone(), other.clone()]] {
            let settled = world.worker.settle(batch.into_iter().map(Ok::<_, String>).collect()).await;
            assert!(matches!(settled, Err(DbError::Unavailable(_))), "{code}: {settled:?}");
        }
    }
    refuse_no_more(&db).await;
    assert_eq!(world.settle(vec![callback, other]).await, [Ack::Done; 2]);
    assert_eq!(world.status(&order).await, Paid);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_value_or_a_constraint_is_the_callbacks_own_fault(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Alipay, "1.50").await;
    for code in ["22001", "22P05", "23514", "23P01"] {
        refuse_with(&db, code).await;
        assert_eq!(world.settle(vec![world.paid(&order)]).await, [Ack::Dead], "{code}");
    }
}

/// A world whose worker has the pool of a process, time-outs included.
async fn with_time_outs(db: &PgPool) -> World {
    let mut url = url::Url::parse(&testkit::env("DATABASE_URL")).unwrap();
    url.set_path(db.connect_options().get_database().unwrap());
    let pool = store::connect::connect(&SecretString::from(String::from(url)), "callback-worker", 4).await.unwrap();
    let world = World::new(db.clone());
    World { worker: CallbackWorker { db: pool, ..world.worker }, ..world }
}

/// Orders at both gateways, and the callbacks that pay them.
async fn payable(world: &World, count: usize) -> (Vec<Order>, Vec<Callback>) {
    let mut orders = Vec::new();
    for n in 0..count {
        orders.push(world.pending_order(if n % 2 == 0 { Alipay } else { Wechat }, "1.50").await);
    }
    let callbacks = orders.iter().map(|order| world.paid(order)).collect();
    (orders, callbacks)
}

/// Locks these orders like a person at an SQL prompt who forgets to commit.
async fn hold(db: &PgPool, orders: &[Order]) -> Transaction<'static, Postgres> {
    let ids: Vec<String> = orders.iter().map(|order| order.id.to_string()).collect();
    let mut held = db.begin().await.unwrap();
    let lock = sqlx::query("select 1 from payment_orders where id = any($1::bpchar[]) for update").bind(&ids);
    assert_eq!(lock.execute(&mut *held).await.unwrap().rows_affected(), orders.len() as u64);
    held
}

/// The callbacks that are stored in `jobs`, as the relay publishes them.
pub async fn stored(world: &World) -> Vec<Callback> {
    let sql = "select id, payload from jobs where kind = 'callback' order by id";
    let rows: Vec<(i64, serde_json::Value)> = sqlx::query_as(sql).fetch_all(&world.db).await.unwrap();
    let read = |(id, payload)| Callback { job_id: Some(id), ..serde_json::from_value(payload).unwrap() };
    rows.into_iter().map(read).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_locked_order_delays_its_own_callback_alone(db: PgPool) {
    let world = with_time_outs(&db).await;
    let (orders, callbacks) = payable(&world, 10).await;
    let locked = &orders[6..7];
    let held = hold(&db, locked).await;
    let began = Instant::now();
    assert_eq!(world.settle(callbacks).await, [Ack::Done; 10], "nothing goes back, nothing is given up");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    for (n, order) in orders.iter().enumerate() {
        assert_eq!(world.status(order).await, if n == 6 { Pending } else { Paid }, "{n}");
    }
    let due = "select count(*) from jobs where kind = 'callback' and due_at between now() and now() + interval '11 s'";
    assert_eq!(sqlx::query_scalar::<_, i64>(due).fetch_one(&db).await.unwrap(), 1, "it comes again soon");

    // It comes while the order is still locked: its row stays, once, and says why. The row itself may be locked too.
    assert_eq!(world.settle(stored(&world).await).await, [Ack::Done]);
    let mut row = db.begin().await.unwrap();
    sqlx::query("select 1 from jobs where kind = 'callback' for update").execute(&mut *row).await.unwrap();
    assert_eq!(world.settle(stored(&world).await).await, [Ack::Done]);
    row.rollback().await.unwrap();
    let (attempts, why): (i32, String) =
        sqlx::query_as("select attempts, last_error from jobs where kind = 'callback'").fetch_one(&db).await.unwrap();
    assert_eq!(attempts, 0, "waiting is no failure");
    assert!(why.contains("another transaction was in the way") && why.contains("lock timeout"), "{why}");

    held.rollback().await.unwrap();
    assert_eq!(world.settle(stored(&world).await).await, [Ack::Done]);
    assert_eq!(world.status(&locked[0]).await, Paid);
    assert_eq!(world.count("callback jobs").await, 0);
    assert_eq!(world.events().await.len(), 10, "one order.paid each");
}

/// A batch finishes within the time that a stop allows, however many orders are locked.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_batch_of_locked_orders_ends_in_bounded_time_and_loses_nothing(db: PgPool) {
    let world = with_time_outs(&db).await;
    let (orders, callbacks) = payable(&world, 80).await;
    let held = hold(&db, &orders).await;
    let began = Instant::now();
    assert_eq!(world.settle(callbacks).await, [Ack::Done; 80]);
    assert!(began.elapsed() < runtime::shutdown::GRACE, "{:?}", began.elapsed());
    held.rollback().await.unwrap();
    let stored = stored(&world).await;
    assert_eq!(stored.len(), 80);
    assert_eq!(world.settle(stored).await, [Ack::Done; 80]);
    for order in &orders {
        assert_eq!(world.status(order).await, Paid);
    }
    assert_eq!(world.count("work").await, 0);
}

/// Together they exceed the time limit of a statement at each try; in parts they do not.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_batch_that_is_too_slow_as_a_whole_settles_in_parts(db: PgPool) {
    let world = with_time_outs(&db).await;
    let (orders, callbacks) = payable(&world, 64).await;
    sqlx::raw_sql(
        "create function crawl() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.1); return new; end $$;
         create trigger crawl before update on payment_orders for each row execute function crawl()",
    )
    .execute(&db)
    .await
    .unwrap();
    assert_eq!(world.settle(callbacks).await, [Ack::Done; 64]);
    for order in &orders {
        assert_eq!(world.status(order).await, Paid);
    }
    assert_eq!(world.count("work").await, 0, "none had to come again");
}

/// An error that blames neither the callback nor the environment: the callback is not rejected, and delays no other.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refusal_that_blames_no_row_is_stored_as_a_job(db: PgPool) {
    let world = World::new(db.clone());
    let (_, callbacks) = payable(&world, 2).await;
    refuse_with(&db, "P0001").await;
    assert_eq!(world.settle(callbacks).await, [Ack::Done; 2]);
    refuse_no_more(&db).await;
    let stored = stored(&world).await;
    assert_eq!(stored.len(), 2);
    assert_eq!(world.settle(stored).await, [Ack::Done; 2]);
    assert_eq!(world.events().await.len(), 2);
    assert_eq!(world.count("work").await, 0);
}
