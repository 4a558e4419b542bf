//! What the job of a refund says of its wait, and what a failed refund says for ever.

use domain::PaymentMethod::{Alipay, Wechat};
use domain::RefundStatus::{Failed, Pending, Processing, Succeeded};
use domain::{RefundFailure, RefundId};
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::refunds;
use time::Duration;

use crate::bench::Bench;

impl Bench {
    /// What the refund waits for, and the gateway's own words about it.
    async fn wait(&self, id: RefundId) -> Option<(RefundFailure, Option<String>)> {
        let waits = refunds::waits(&self.world.db, &[id]).await.unwrap();
        assert!(waits.iter().all(|wait| wait.id == id));
        let (why, detail) = RefundFailure::read(&waits.first()?.note)?;
        Some((why, detail.map(str::to_owned)))
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_names_the_balance_while_it_waits_for_it(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.paid(method).await;
        let refund = bench.world.request_refund(order.id, None).await.unwrap();
        assert_eq!(bench.wait(refund.id).await, None, "nothing was tried");
        let balance = format!("/sim/balances/{method}/main");
        bench.control("PUT", &balance, r#"{"fen":0}"#).await;
        for _ in 0..2 {
            bench.pass(Duration::minutes(11)).await;
            bench.carry(refund.id).await;
            let (why, detail) = bench.wait(refund.id).await.unwrap();
            assert_eq!(why, RefundFailure::Balance, "{method}");
            assert!(detail.is_some_and(|detail| !detail.is_empty()), "{method}");
            assert_eq!(bench.world.refund(refund.id).await.status, Processing);
        }
        bench.control("PUT", &balance, r#"{"fen":null}"#).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.world.refund(refund.id).await.status, Succeeded);
        assert_eq!(bench.wait(refund.id).await, None, "{method}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_names_its_turn_while_it_waits_for_it(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Alipay).await;
    let first = bench.world.request_refund(order.id, Some("1.00")).await.unwrap();
    bench.carry(first.id).await;
    assert_eq!(bench.world.refund(first.id).await.status, Succeeded);
    let second = bench.world.request_refund(order.id, Some("1.00")).await.unwrap();
    bench.carry(second.id).await;
    assert_eq!(bench.world.refund(second.id).await.status, Pending);
    assert_eq!(bench.wait(second.id).await, Some((RefundFailure::Turn, None)));
    bench.carry_to_its_end(second.id).await;
    assert_eq!((bench.world.refund(second.id).await.status, bench.wait(second.id).await), (Succeeded, None));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_names_our_account_until_it_is_corrected(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Wechat).await;
    let refund = bench.world.request_refund(order.id, None).await.unwrap();
    let refuse = json!({ "odd": { "refuse": [{ "code": "NO_AUTH", "status": 403, "sub_code": "" }] } });
    bench.faults(&refuse.to_string()).await;
    bench.carry(refund.id).await;
    let (why, detail) = bench.wait(refund.id).await.unwrap();
    assert_eq!(why, RefundFailure::OurAccount);
    assert!(detail.is_some_and(|detail| detail.contains("NO_AUTH")));
    bench.faults("{}").await;
    bench.carry_to_its_end(refund.id).await;
    assert_eq!((bench.world.refund(refund.id).await.status, bench.wait(refund.id).await), (Succeeded, None));
}

/// A failed refund is queried once more. What that query meets says nothing about the failure.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failed_refund_keeps_the_words_of_its_event(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Alipay).await;
    let refund = bench.world.request_refund(order.id, None).await.unwrap();
    let age = format!("/sim/trades/alipay/{}/age", order.order_no);
    bench.control("POST", &age, r#"{"days":400}"#).await;
    bench.carry_to_its_end(refund.id).await;
    let failed = bench.world.refund(refund.id).await;
    let why: String = sqlx::query_scalar("select data->>'why' from events where type = 'refund.failed'")
        .fetch_one(&bench.world.db)
        .await
        .unwrap();
    assert_eq!((failed.status, failed.last_error.as_deref()), (Failed, Some(&*why)));
    assert_eq!(RefundFailure::of_failed(&why), RefundFailure::Refused);
    bench.faults(r#"{"refund":{"query_5xx":1}}"#).await;
    bench.carry(refund.id).await;
    let later = bench.world.refund(refund.id).await;
    assert!(later.updated_at > failed.updated_at, "the query was noted");
    assert_eq!((later.status, later.last_error), (Failed, Some(why)));
}
