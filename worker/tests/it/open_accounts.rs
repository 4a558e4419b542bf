//! A start without an account that open orders or refunds name.

use domain::PaymentMethod::{Alipay, Wechat};
use domain::{AccountName, OrderStatus, RefundReport, RefundState};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::open_accounts;

use crate::support::World;

impl World {
    /// As if these orders had been placed with an account that is gone.
    async fn moved(&self, id: &domain::OrderId, account: &str) {
        sqlx::query("update payment_orders set account = $1 where id = $2")
            .bind(account)
            .bind(id.to_string())
            .execute(&self.db)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_start_names_every_account_that_open_orders_and_refunds_need(db: PgPool) {
    let world = World::new(db);
    store::start::check_accounts(&world.db, &world.worker.gateways).await.unwrap();
    let placed = world.pending_order(Alipay, "5").await;
    store::start::check_accounts(&world.db, &world.worker.gateways).await.unwrap();

    // Jobs of no order, more than one page of them, and all before those of orders.
    sqlx::query(
        "insert into jobs (kind, ref_id, due_at, created_at)
         select kind, lpad(n::text, 32, '0'), now(), now()
         from generate_series(1, 11000) as n, unnest(array['check', 'refund']) as kind",
    )
    .execute(&world.db)
    .await
    .unwrap();
    let (paid, returning, returned) = (
        world.pending_order(Wechat, "5").await,
        world.pending_order(Wechat, "5").await,
        world.pending_order(Wechat, "5").await,
    );
    for order in [&paid, &returning, &returned] {
        world.settle(vec![world.paid(order)]).await;
    }
    world.request_refund(returning.id, None).await.unwrap();
    let refund = world.request_refund(returned.id, None).await.unwrap();
    world.tell(&refund, &RefundReport::of(RefundState::Succeeded)).await;
    assert_eq!(world.status(&returned).await, OrderStatus::Refunded);
    for (order, account) in [(&placed, "gone"), (&paid, "paid"), (&returning, "returning"), (&returned, "returned")] {
        world.moved(&order.id, account).await;
    }
    let name = |text: &str| AccountName::parse(text).unwrap();
    let named = open_accounts::named(&world.db).await.unwrap();
    assert_eq!(named.into_iter().collect::<Vec<_>>(), [(Alipay, name("gone")), (Wechat, name("returning"))]);
    let faults = store::start::check_accounts(&world.db, &world.worker.gateways).await.unwrap_err().to_string();
    assert!(faults.starts_with("2 faults stop the start"), "{faults}");
    for needed in [
        "GATEWAYS_FILE: has no account \"gone\" at alipay, and open orders or refunds name it",
        "GATEWAYS_FILE: has no account \"returning\" at wechat, and open orders or refunds name it",
    ] {
        assert!(faults.contains(needed), "{faults}");
    }
}
