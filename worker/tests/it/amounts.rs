//! A gateway signs that another amount went back than was requested.

use domain::Money;
use domain::OrderStatus::{PartiallyRefunded, Refunding};
use domain::PaymentMethod::Wechat;
use domain::RefundStatus::{Processing, Succeeded};
use domain::message::job::{JobRequest, RefundRequest};
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::jobs;
use store::tables::refunds::Refund;
use time::Duration;

use crate::bench::Bench;

impl Bench {
    /// Two people have accepted this amount.
    async fn accept(&self, refund: &Refund, yuan: &str) {
        let accept = JobRequest::Refund(refund.id, RefundRequest::accept(Money::from_yuan(yuan).unwrap()));
        jobs::request(&self.world.db, &accept, Duration::ZERO).await.unwrap();
    }

    async fn open_cases(&self) -> Vec<String> {
        let open = "select kind from cases where status <> 'resolved' order by id";
        sqlx::query_scalar(open).fetch_all(&self.world.db).await.unwrap()
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_amount_that_people_accept_is_the_one_that_went_back(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Wechat).await;
    let refund = bench.world.request_refund(order.id, Some("4.00")).await.unwrap();
    // Our books state less than the gateway was asked for.
    bench.when_refunded("update refund_records set refund_amount = 3.00");
    bench.carry(refund.id).await;
    let notice = bench.notice_of(&order, &refund).await;
    bench.world.settle(vec![notice]).await;
    assert_eq!(bench.world.refund(refund.id).await.status, Processing);
    let open = ["amount_mismatch"].map(str::to_owned);
    assert_eq!((bench.open_cases().await, bench.world.status(&order).await), (open.to_vec(), Refunding));
    let evidence = &bench.world.cases().await[0].1;
    assert_eq!((&evidence["amount"], &evidence["requested_amount"]), (&json!("4.00"), &json!("3.00")));
    assert!(bench.world.request_refund(order.id, Some("1.00")).await.is_err(), "it blocks the others of the order");

    // Not what the gateway states: nothing changes.
    bench.accept(&refund, "2.00").await;
    bench.pass(Duration::minutes(2)).await;
    bench.carry(refund.id).await;
    assert_eq!(bench.world.refund(refund.id).await.amount.to_string(), "3.00");

    bench.accept(&refund, "4.00").await;
    bench.pass(Duration::minutes(2)).await;
    bench.carry_to_its_end(refund.id).await;
    let done = bench.world.refund(refund.id).await;
    assert_eq!((done.status, done.amount.to_string().as_str()), (Succeeded, "4.00"));
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount.to_string().as_str()), (PartiallyRefunded, "4.00"));
    assert!(bench.open_cases().await.is_empty(), "the case of the amount ends with its refund");
    let booked: String = sqlx::query_scalar("select amount::text from payment_transactions where id = $1")
        .bind(refund.id.to_string())
        .fetch_one(&bench.world.db)
        .await
        .unwrap();
    assert_eq!(booked, "4.00");
    assert!(bench.world.request_refund(order.id, Some("1.00")).await.is_ok(), "the others go on");
}
