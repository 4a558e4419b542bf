//! Decisions of people and policies that a check carries out: only with a fresh answer of the gateway.

use domain::OrderStatus::{Closed, Paid};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::job::{CheckRequest, Decision};
use domain::{CaseStatus, Money, OrderStatus, RefundNo};
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle;
use time::Duration;

use crate::bench::{Bench, SOON};
use crate::checks::late;
use crate::support::World;

#[sqlx::test(migrator = "MIGRATOR")]
async fn people_honour_a_late_payment_once(db: PgPool) {
    let (bench, late) = late(db, "hold").await;
    for order in &late {
        let case = bench.case_of(order).await;
        for _ in 0..2 {
            bench.request_now(order.id, CheckRequest::of_case(case, Decision::Fulfil)).await;
            bench.check(order).await;
        }
        let paid = bench.world.order(&order.id).await;
        // Closed, held, honoured, and no longer held.
        assert_eq!((paid.status, paid.version, paid.extra_state), (Paid, 5, None));
        let by_the_gateway = bench.ledger(order).await["paid_at"].as_str().unwrap().to_owned();
        let format = time::format_description::well_known::Rfc3339;
        let by_the_gateway = time::OffsetDateTime::parse(&by_the_gateway, &format).unwrap();
        let apart = (paid.paid_at.unwrap() - by_the_gateway).abs();
        assert!(apart < Duration::seconds(2), "paid when the gateway says: {apart}");
    }
    let held = ["order.closed", "extra_payment.received"];
    assert_eq!(bench.event_kinds().await, [&held[..], &held, &["order.paid"; 2]].concat());
    assert_eq!(bench.decisions().await, vec![("late_payment".to_owned(), "resolved".to_owned(), false); 2]);
}

/// Trap: the money was refunded in the gateway's console while the case waited, and we deliver anyway.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_whose_money_has_gone_is_not_honoured(db: PgPool) {
    let (bench, late) = late(db, "hold").await;
    for (order, part) in late.iter().zip([false, true]) {
        let case = bench.case_of(order).await;
        // At WeChat Pay a part, of which the gateway does not say how much it is.
        bench
            .console(
                order,
                if part { json!({ "amount_fen": 100, "notify": false }) } else { json!({ "notify": false }) },
            )
            .await;
        bench.request_now(order.id, CheckRequest::of_case(case, Decision::Fulfil)).await;
        bench.check(order).await;
        assert_eq!(bench.world.status(order).await, Closed);
        let case = store::tables::cases::get(&bench.world.db, case).await.unwrap().unwrap();
        assert_eq!(case.status, CaseStatus::Open);
        assert!(case.evidence["not_fulfilled"].is_string(), "{}", case.evidence);
        assert!(case.evidence["returned"].is_string(), "{}", case.evidence);
    }
    let held = ["order.closed", "extra_payment.received"];
    assert_eq!(bench.event_kinds().await, [held, held].concat());
}

/// A notification can be older than a refund: under `fulfil` we query the gateway before we deliver.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notice_of_a_late_payment_fulfils_only_what_a_fresh_question_confirms(db: PgPool) {
    let bench = Bench::new(db, "fulfil").await;
    for method in [Alipay, Wechat] {
        for gone in [true, false] {
            let order = bench.offered(method).await;
            let mut tx = bench.world.db.begin().await.unwrap();
            settle::end_unpaid(&mut tx, &order, &bench.checks.clock).await.unwrap();
            tx.commit().await.unwrap();
            bench.act(&order, "pay").await;
            let notice = bench.notice(&order, "").await.unwrap();
            if gone {
                bench.console(&order, json!({ "notify": false })).await;
            }
            bench.world.settle(vec![notice.clone(), notice]).await;
            assert_eq!(bench.world.status(&order).await, Closed, "{method} {gone}: not by the notice alone");
            bench.check(&order).await;
            let status = bench.world.status(&order).await;
            assert_eq!(status, if gone { Closed } else { Paid }, "{method} {gone}");
            let case = store::tables::cases::get(&bench.world.db, bench.case_of(&order).await).await.unwrap().unwrap();
            let decided = (case.status, case.resolved_by.as_deref());
            assert_eq!(decided, if gone { (CaseStatus::Open, None) } else { (CaseStatus::Resolved, Some("policy")) });
        }
    }
    assert_eq!(bench.event_kinds().await.iter().filter(|kind| *kind == "order.paid").count(), 2);
}

/// A full refund in WeChat Pay's console that no notification reports.
#[sqlx::test(migrator = "MIGRATOR")]
async fn people_book_what_the_gateway_confirms_and_nothing_else(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Wechat).await;
    bench.console(&order, json!({ "amount_fen": 150, "out_refund_no": "CONSOLE1", "notify": false })).await;
    bench.run_look_back(&order).await;
    let case = bench.case_of(&order).await;
    let book = |number: &str, yuan: &str| Decision::BookRefund {
        refund_no: RefundNo::parse(number).unwrap(),
        amount: Money::from_yuan(yuan).unwrap(),
    };
    for (wrong, reason) in [
        (book("CONSOLE2", "1.50"), "the gateway knows no refund of this number"),
        (book("CONSOLE1", "1.60"), "the gateway states another amount: 1.50 yuan"),
    ] {
        bench.request_now(order.id, CheckRequest::of_case(case, wrong)).await;
        bench.check(&order).await;
        assert_eq!(bench.world.order(&order.id).await.refunded_amount, Money::ZERO);
        let case = store::tables::cases::get(&bench.world.db, case).await.unwrap().unwrap();
        assert_eq!(case.status, CaseStatus::Open);
        assert!(case.evidence["not_booked"].as_str().unwrap().starts_with(reason), "{}", case.evidence);
    }
    // Without an answer the request stays in the job.
    bench.faults(r#"{"api":{"error_5xx":1}}"#).await;
    bench.request_now(order.id, CheckRequest::of_case(case, book("CONSOLE1", "1.50"))).await;
    bench.check(&order).await;
    assert_eq!(bench.job(&order).await.unwrap().2, CheckRequest::of_case(case, book("CONSOLE1", "1.50")).payload());
    bench.faults(r#"{"api":{"error_5xx":0}}"#).await;
    bench.check(&order).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!(
        (after.status, after.refunded_amount),
        (OrderStatus::PartiallyRefunded, Money::from_yuan("1.50").unwrap())
    );
    let case = store::tables::cases::get(&bench.world.db, case).await.unwrap().unwrap();
    assert_eq!(case.status, CaseStatus::Resolved);
    // The rest is what is left, and the order is refunded in the end.
    let rest = bench.world.request_refund(order.id, None).await.unwrap();
    assert_eq!(rest.amount, Money::from_yuan("7.38").unwrap());
    bench.carry_to_its_end(rest.id).await;
    assert_eq!(bench.world.status(&order).await, OrderStatus::Refunded);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn statistics_count_what_went_back_without_us(db: PgPool) {
    let world = World::new(db);
    let (_, trade) = world.paid_with(Wechat, "4").await;
    let (_, went) = world.went(&trade, ("CONSOLE1", 150), true);
    world.settle(vec![went]).await;
    let later = world.worker.clock.now() + Duration::hours(2);
    let began = std::time::Instant::now();
    loop {
        let mut tx = world.db.begin().await.unwrap();
        let done = store::upkeep::statistics::round(&mut tx, later, store::upkeep::statistics::ROUND).await.unwrap();
        tx.commit().await.unwrap();
        if done {
            break;
        }
        assert!(began.elapsed() < SOON, "the counting does not end");
    }
    let counted: (i64, i64, String) = sqlx::query_as(
        "select sum(returned)::bigint, sum(refunds_succeeded)::bigint, sum(refunded_amount)::text from hourly_stats",
    )
    .fetch_one(&world.db)
    .await
    .unwrap();
    assert_eq!(counted, (1, 1, "1.50".to_owned()));
}
