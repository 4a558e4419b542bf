//! A late payment of a purchase that has another order: it is held, whatever the policy, and never paid twice.

use domain::OrderStatus::{Closed, Paid, Pending};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::job::{CheckRequest, Decision};
use domain::{PaymentMethod, TradeNo, Verdict};
use sqlx::PgPool;
use store::tables::orders::{self, Order};
use store::{DbError, MIGRATOR, settle};

use crate::bench::Bench;

impl Bench {
    async fn ended(&self, order: &Order) {
        let mut tx = self.world.db.begin().await.unwrap();
        assert_eq!(settle::end_unpaid(&mut tx, order, &self.checks.clock).await.unwrap(), Verdict::Settled);
        tx.commit().await.unwrap();
    }

    /// An order of a purchase that was closed, and the next order of it.
    async fn two_orders(&self, method: PaymentMethod, number: &str) -> (Order, Order) {
        let first = self.offer(self.world.order_of_purchase(method, number).await).await;
        self.ended(&first).await;
        (first, self.offer(self.world.order_of_purchase(method, number).await).await)
    }
}

/// Trap: the buyer pays the closed order's QR code and the new one, and both are delivered.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_is_held_while_the_purchase_has_another_order(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for (n, policy) in ["hold", "refund", "fulfil"].iter().enumerate() {
        bench.obey(policy);
        for method in [Alipay, Wechat] {
            let (late, other) = bench.two_orders(method, &format!("A{n}-{method}")).await;
            bench.act(&late, "pay").await;
            let notice = bench.notice(&late, "").await.unwrap();
            bench.world.settle(vec![notice]).await;
            bench.request_now(late.id, CheckRequest::sync()).await;
            bench.check(&late).await;
            assert_eq!(bench.world.status(&late).await, Closed, "{policy} {method}");
            let refunds = store::tables::refunds::of_order(&bench.world.db, late.id).await.unwrap();
            assert_eq!(refunds.len(), 0, "{policy} {method}: people decide");

            // The other order is paid as ever, and still the late payment does not become an order's own.
            bench.act(&other, "pay").await;
            bench.check(&other).await;
            assert_eq!(bench.world.status(&other).await, Paid, "{policy} {method}");
            let case = bench.case_of(&late).await;
            bench.request_now(late.id, CheckRequest::of_case(case, Decision::Fulfil)).await;
            bench.check(&late).await;
            assert_eq!(bench.world.status(&late).await, Closed, "{policy} {method}");
            let case = store::tables::cases::get(&bench.world.db, case).await.unwrap().unwrap();
            assert_eq!(case.evidence["not_fulfilled"], "another order of the purchase is open or paid");
        }
    }
    let paid = bench.event_kinds().await.iter().filter(|kind| *kind == "order.paid").count();
    assert_eq!(paid, 6, "one for each purchase");
}

/// Once the other order is closed, the late payment can pay its own.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_pays_its_order_once_no_other_one_can_be_paid(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let (late, other) = bench.two_orders(method, &format!("A-{method}")).await;
        bench.act(&late, "pay").await;
        bench.request_now(late.id, CheckRequest::sync()).await;
        bench.check(&late).await;
        bench.ended(&other).await;
        let case = bench.case_of(&late).await;
        bench.request_now(late.id, CheckRequest::of_case(case, Decision::Fulfil)).await;
        bench.check(&late).await;
        assert_eq!(bench.world.status(&late).await, Paid, "{method}");
        let purchase = late.merchant_order_no.clone().unwrap();
        let again = orders::create(&bench.world.db, &[of_purchase(purchase.as_str())]).await;
        assert!(matches!(again, Err(DbError::PurchaseTaken(_))), "{method}: the purchase is paid");
    }
}

fn of_purchase(number: &str) -> orders::NewOrder {
    let new = testkit::new_order();
    let number = domain::MerchantOrderNo::parse(number).unwrap();
    orders::NewOrder {
        purchase: domain::Purchase { merchant_order_no: Some(number), ..domain::Purchase::OF_BUYER },
        ..new
    }
}

/// The next order was placed after a batch had read that there is none: the batch is repeated, and nothing is lost.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_that_was_placed_at_this_moment_makes_the_transaction_run_again(db: PgPool) {
    let bench = Bench::new(db, "fulfil").await;
    let (late, other) = bench.two_orders(Wechat, "A1").await;
    let now = bench.checks.clock.now();
    let paid = orders::Paid { id: late.id, trade_no: TradeNo::parse("4200000042").unwrap(), paid_at: now };
    let mut tx = bench.world.db.begin().await.unwrap();
    let honoured = orders::mark_honoured(&mut tx, &[paid], now).await;
    assert!(matches!(honoured, Err(DbError::Again(_))), "{honoured:?}");
    tx.rollback().await.unwrap();
    assert_eq!((bench.world.status(&late).await, bench.world.status(&other).await), (Closed, Pending));
}
