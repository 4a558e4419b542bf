//! A gateway that refuses our account. No order and no refund is at fault; one case calls people, and work continues
//! once the account is corrected.

use domain::OrderStatus::{Closed, Pending};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::RefundStatus::{Processing, Succeeded};
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use time::Duration;

use crate::bench::Bench;

/// Refusals that are about us, each with what the case is called.
const OURS: [(&str, u16, &str, &str); 2] = [
    ("40004", 400, "ACQ.ACCESS_FORBIDDEN", "alipay/main:ACQ.ACCESS_FORBIDDEN"),
    ("NO_AUTH", 403, "", "wechat/main:NO_AUTH"),
];

async fn refuse(bench: &Bench, (code, status, sub_code): (&str, u16, &str)) {
    let refuse = json!({ "odd": { "refuse": [{ "code": code, "status": status, "sub_code": sub_code }] } });
    bench.faults(&refuse.to_string()).await;
}

async fn called(bench: &Bench) -> Vec<String> {
    sqlx::query_scalar("select subject_ref from cases where kind = 'misconfigured' order by id")
        .fetch_all(&bench.world.db)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn checks_call_people_once_and_end_nothing(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let mut expected = Vec::new();
    for (method, (code, status, sub_code, number)) in [Alipay, Wechat].into_iter().zip(OURS) {
        let orders = [bench.opened(method).await, bench.opened(method).await];
        refuse(&bench, (code, status, sub_code)).await;
        for order in &orders {
            bench.expire(order, Duration::seconds(1)).await;
            for _ in 0..2 {
                bench.check(order).await;
            }
            assert_eq!(bench.world.status(order).await, Pending, "{method}");
            assert_eq!(bench.job(order).await.unwrap().1, 2, "it is asked about again");
        }
        expected.push(number);
        assert_eq!(called(&bench).await, expected, "once for each account and code");
        bench.faults("{}").await;
        for order in &orders {
            bench.check(order).await;
            assert_eq!(bench.world.status(order).await, Closed, "{method}");
        }
    }
    assert_eq!(bench.world.cases().await.len(), expected.len());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_waits_for_an_account_that_is_mended(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for (method, (code, status, sub_code, number)) in [Alipay, Wechat].into_iter().zip(OURS) {
        let order = bench.paid(method).await;
        let refund = bench.world.request_refund(order.id, None).await.unwrap();
        refuse(&bench, (code, status, sub_code)).await;
        // Sent and refused, asked about and refused: neither is a word about the refund.
        for _ in 0..3 {
            bench.pass(Duration::minutes(20)).await;
            bench.carry(refund.id).await;
        }
        assert_eq!(bench.world.refund(refund.id).await.status, Processing, "{method}");
        assert_eq!(called(&bench).await.last().unwrap(), number);
        bench.faults("{}").await;
        bench.pass(Duration::minutes(20)).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.world.refund(refund.id).await.status, Succeeded, "{method}");
    }
    assert_eq!(called(&bench).await.len(), 2);
}
