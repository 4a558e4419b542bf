//! Callbacks that name a key which this process does not know yet.

use domain::{OrderStatus, PaymentMethod};
use sqlx::PgPool;
use worker::consumer::Ack;

use crate::bench::Bench;

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_callback_by_a_new_certificate_is_settled_after_one_look(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let platform = &bench.world.keys.wechat_account("main").unwrap().platform;
    platform.add(-1.0, 300.0).unwrap();
    platform.set_share(Some(0.0));
    let first = bench.world.pending_order(PaymentMethod::Wechat, "8.88").await;
    let second = bench.world.pending_order(PaymentMethod::Wechat, "8.88").await;
    let batch = vec![bench.world.paid(&first), bench.world.paid(&second)];

    assert_eq!(bench.world.settle(batch).await, [Ack::Done, Ack::Done]);

    for order in [&first, &second] {
        assert_eq!(bench.world.status(order).await, OrderStatus::Paid);
    }
    assert_eq!(bench.world.count("callback jobs").await, 0);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_callback_whose_certificate_cannot_be_had_or_has_ended_waits_as_a_job(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let platform = &bench.world.keys.wechat_account("main").unwrap().platform;
    let ended = platform.add(-300.0, -1.0).unwrap().key.0.clone();
    platform.set_share(Some(0.0));
    let order = bench.world.pending_order(PaymentMethod::Wechat, "8.88").await;
    let by_the_ended = bench.world.paid(&order);
    platform.remove(&ended);
    platform.add(-1.0, 300.0).unwrap();
    let other = bench.world.pending_order(PaymentMethod::Wechat, "8.88").await;
    let by_the_new = bench.world.paid(&other);

    // The first lookup brings the new certificate, which is not the one that was named.
    assert_eq!(bench.world.settle(vec![by_the_ended, by_the_new]).await, [Ack::Done, Ack::Done]);

    assert_eq!(bench.world.status(&order).await, OrderStatus::Pending);
    assert_eq!(bench.world.status(&other).await, OrderStatus::Paid);
    assert_eq!(bench.world.count("callback jobs").await, 1);
}
