//! Batches: set-based, side by side, and split when one callback is refused.

use std::sync::Arc;

use gateway_sim::notify::Overrides;
use shared::db::{DbError, MIGRATOR};
use shared::domain::OrderStatus::{Paid, Pending};
use shared::domain::PaymentMethod::{Alipay, Wechat};
use sqlx::{AssertSqlSafe, PgPool};
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
    assert_eq!(world.count("jobs").await, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn one_callback_that_the_database_refuses_delays_nobody(db: PgPool) {
    let world = World::new(db);
    let (mut callbacks, mut good) = (Vec::new(), Vec::new());
    for n in 0..9 {
        let order = world.pending_order(Wechat, "1.50").await;
        // An authentic id longer than the column: nothing that a batch should end on.
        let id = (n == 4).then(|| "x".repeat(129));
        let refused = id.is_some();
        callbacks.push(world.told(&world.paid_trade(&order), &Overrides { id, ..Overrides::default() }));
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

/// Has the database answer every change of an order with this error code.
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
