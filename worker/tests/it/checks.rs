//! The effect of queries on orders: lost callbacks, closes, and money that arrives after the close.

use domain::ExtraState::{Held, Returning};
use domain::OrderStatus::{Closed, Paid, Pending};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::job::CheckRequest;
use domain::message::schedule::CHECKS;
use domain::{OrderStatus, RefundId, RefundNo, Verdict};
use gateway_sim::notify::Overrides;
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle;
use store::settle::refunds::RequestedRefund;
use store::tables::orders;
use time::Duration;
use worker::jobs::run_batch;

use crate::bench::Bench;

const AGO: Duration = Duration::seconds(1);
const QUERIED: Duration = Duration::minutes(1);

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_whose_callback_was_lost_is_found(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.opened(method).await;
        bench.act(&order, "pay").await;
        bench.check(&order).await;
        let paid = bench.world.order(&order.id).await;
        assert_eq!((paid.status, paid.version), (Paid, 2), "{method}");
        assert!(paid.trade_no.is_some() && paid.paid_at.is_some());
        assert!(bench.job(&order).await.is_none(), "a paid order needs no check");
    }
    assert_eq!(bench.event_kinds().await, ["order.paid", "order.paid"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_unpaid_order_is_queried_soon_then_slower_and_at_its_end(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.offered(Wechat).await;
    bench.check(&order).await;
    let (due, attempts, _) = bench.job(&order).await.unwrap();
    assert!(due > CHECKS[0] - QUERIED / 2 && due <= CHECKS[0], "{due}");
    assert_eq!((attempts, bench.world.status(&order).await), (0, Pending));
    assert_eq!(orders::last_check(&bench.world.db, order.id).await.unwrap().unwrap().1, "NOTPAY");
    // 28 minutes old, with two left: the next question is the one at the end.
    sqlx::query("update payment_orders set created_at = now() - interval '28 minutes', expires_at = now() + interval '90 seconds'")
        .execute(&bench.world.db)
        .await
        .unwrap();
    bench.check(&order).await;
    let due = bench.job(&order).await.unwrap().0;
    assert!(due > Duration::seconds(60) && due <= Duration::seconds(90), "{due}");
    assert!(CHECKS.windows(2).all(|pair| pair[0] < pair[1]));
}

/// After a hint has brought a query forward, the scheduled query must not follow a moment later.
#[sqlx::test(migrator = "MIGRATOR")]
async fn two_questions_are_three_seconds_apart_at_least(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.offered(Wechat).await;
    for age in ["29 seconds", "29.9 seconds", "59.9 seconds"] {
        let sql = "update payment_orders set created_at = now() - $1::text::interval";
        sqlx::query(sql).bind(age).execute(&bench.world.db).await.unwrap();
        bench.check(&order).await;
        let due = bench.job(&order).await.unwrap().0;
        assert!(due > Duration::seconds(2) && due <= Duration::seconds(31), "{age}: {due}");
    }
    // As well when its time is nearly up.
    sqlx::query("update payment_orders set expires_at = now() + interval '1 second'")
        .execute(&bench.world.db)
        .await
        .unwrap();
    bench.check(&order).await;
    let due = bench.job(&order).await.unwrap().0;
    assert!(due > Duration::seconds(1) && due <= Duration::seconds(3), "{due}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_expired_order_ends_at_its_gateway_and_here_with_one_event(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.opened(method).await;
        bench.expire(&order, AGO).await;
        bench.check(&order).await;
        assert_eq!(bench.world.status(&order).await, Closed, "{method}");
        assert_eq!(bench.trade(&order).await, "closed", "{method}");
        let (due, ..) = bench.job(&order).await.expect("the check outlives the close");
        assert!(due > Duration::minutes(4) && due <= Duration::minutes(5), "{due}");
        // Five minutes later, and a day later.
        bench.expire(&order, Duration::minutes(5)).await;
        bench.check(&order).await;
        let (due, ..) = bench.job(&order).await.unwrap();
        assert!(due > Duration::hours(23) && due <= Duration::hours(24), "{due}");
        bench.expire(&order, Duration::minutes(5 + 24 * 60)).await;
        bench.check(&order).await;
        assert!(bench.job(&order).await.is_none());
        assert_eq!(bench.world.order(&order.id).await.version, 2);
    }
    assert_eq!(bench.event_kinds().await, ["order.closed", "order.closed"]);
    assert_eq!(bench.decisions().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_gateway_never_saw_ends_here(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let unscanned = bench.offered(Alipay).await;
    let unmade = [bench.world.pending_order(Alipay, "1").await, bench.world.pending_order(Wechat, "1").await];
    for order in [&unscanned, &unmade[0], &unmade[1]] {
        bench.check(order).await;
        assert_eq!(bench.world.status(order).await, Pending, "not before its time");
        bench.expire(order, AGO).await;
        bench.check(order).await;
        assert_eq!(bench.world.status(order).await, Closed);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_that_the_gateway_closed_by_itself_is_closed_here(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.opened(method).await;
        bench.act(&order, "close").await;
        bench.check(&order).await;
        assert_eq!(bench.world.status(&order).await, Closed, "{method}");
        assert!(bench.job(&order).await.is_some(), "the check outlives the close");
    }
    assert_eq!(bench.event_kinds().await, ["order.closed", "order.closed"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_buyer_who_is_faster_than_the_end_has_paid(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let before_the_question = bench.opened(method).await;
        bench.expire(&before_the_question, AGO).await;
        bench.act(&before_the_question, "pay").await;
        bench.check(&before_the_question).await;

        let before_the_close = bench.opened(method).await;
        bench.expire(&before_the_close, AGO).await;
        bench.pay_before_close(&before_the_close);
        bench.check(&before_the_close).await;

        for order in [before_the_question, before_the_close] {
            assert_eq!(bench.world.status(&order).await, Paid, "{method}");
            assert_eq!(bench.trade(&order).await, "paid");
            assert!(bench.job(&order).await.is_none());
        }
    }
    assert_eq!(bench.event_kinds().await, ["order.paid"; 4]);
    assert_eq!(bench.decisions().await, []);
}

/// Closed here and paid at the gateway, found by the query after the close: once under each policy.
pub async fn late(db: PgPool, policy: &str) -> (Bench, Vec<orders::Order>) {
    let bench = Bench::new(db, policy).await;
    let mut late = Vec::new();
    for method in [Alipay, Wechat] {
        let order = bench.offered(method).await;
        let mut tx = bench.world.db.begin().await.unwrap();
        let ended = settle::end_unpaid(&mut tx, &order, &bench.checks.clock).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ended, Verdict::Settled);
        bench.act(&order, "pay").await;
        bench.check(&order).await;
        assert!(bench.job(&order).await.is_none(), "nothing is left to ask");
        // The same fact once more changes nothing.
        bench.request_now(order.id, CheckRequest::sync()).await;
        bench.check(&order).await;
        late.push(bench.world.order(&order.id).await);
    }
    (bench, late)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_is_held_for_a_person(db: PgPool) {
    let (bench, late) = late(db, "hold").await;
    for order in &late {
        assert_eq!((order.status, order.version), (Closed, 3));
        assert_eq!((order.extra_state, order.extra_amount), (Some(Held), Some(order.amount)), "the buyer reads it");
        let payments = bench.world.payments(order).await;
        assert_eq!(payments.iter().map(|(_, status)| status.as_str()).collect::<Vec<_>>(), ["failed", "succeeded"]);
    }
    assert_eq!(bench.decisions().await, vec![("late_payment".to_owned(), "open".to_owned(), false); 2]);
    let each = ["order.closed", "extra_payment.received"];
    assert_eq!(bench.event_kinds().await, [each, each].concat());
    // What came before there was such a state is found by the migration.
    let db = &bench.world.db;
    sqlx::query("update payment_orders set extra_state = null, extra_amount = null").execute(db).await.unwrap();
    sqlx::raw_sql(include_str!("../../../migrations/0020_extra_states_of_before.sql")).execute(db).await.unwrap();
    for order in &late {
        let found = bench.world.order(&order.id).await;
        assert_eq!((found.extra_state, found.extra_amount), (order.extra_state, order.extra_amount));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_goes_back_when_the_policy_says_so(db: PgPool) {
    let (bench, late) = late(db, "refund").await;
    for order in &late {
        assert_eq!((order.status, order.version, order.refunded_amount.fen()), (Closed, 3, 0));
        assert_eq!(
            (order.extra_state, order.extra_amount),
            (Some(Returning), Some(order.amount)),
            "the buyer reads it"
        );
        let refunds = store::tables::refunds::of_order(&bench.world.db, order.id).await.unwrap();
        assert_eq!(refunds.len(), 1, "one, however often the fact came");
        assert_eq!(refunds[0].refund_no.as_str(), format!("L{}", refunds[0].trade_no));
        assert_eq!((refunds[0].amount, refunds[0].requested_by.as_str()), (order.amount, "policy"));
    }
    assert_eq!(bench.decisions().await, vec![("late_payment".to_owned(), "open".to_owned(), true); 2]);
    assert_eq!(bench.world.count("jobs").await, 2, "a job for each refund");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_is_honoured_when_the_policy_says_so(db: PgPool) {
    let (bench, late) = late(db, "fulfil").await;
    for order in &late {
        assert_eq!((order.status, order.version, order.extra_state), (Paid, 3, None));
        assert!(order.trade_no.is_some() && order.paid_at.is_some() && order.closed_at.is_some());
    }
    assert_eq!(bench.event_kinds().await, ["order.closed", "order.paid", "order.closed", "order.paid"]);
    assert_eq!(bench.decisions().await, vec![("late_payment".to_owned(), "resolved".to_owned(), false); 2]);
    let opened: i64 = sqlx::query_scalar("select count(*) from events where type = 'case.opened'")
        .fetch_one(&bench.world.db)
        .await
        .unwrap();
    assert_eq!(opened, 0, "nobody needs to look");
}

/// A refund in the console is found although no notification arrives: a day after the payment, and a week later.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_paid_order_is_queried_once_more_after_a_day_and_after_eight(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.paid(method).await;
        let (due, ..) = bench.look_back(&order).await.expect("a look back");
        assert!(due > Duration::hours(23) && due <= Duration::hours(24), "{due}");
        bench.run_look_back(&order).await;
        let (due, ..) = bench.look_back(&order).await.expect("a second one");
        assert!(due > Duration::hours(8 * 24 - 1) && due <= Duration::hours(8 * 24), "{due}");
        bench.console(&order, json!({ "notify": false })).await;
        bench.run_look_back(&order).await;
        if method == Alipay {
            assert_eq!(bench.world.status(&order).await, OrderStatus::Refunded);
            assert!(bench.look_back(&order).await.is_none(), "nothing more can go back");
        } else {
            assert_eq!(
                bench.world.cases().await.pop().unwrap().0,
                "unknown_refund",
                "WeChat Pay does not say how much"
            );
            // Eight days after the payment.
            sqlx::query("update payment_orders set paid_at = paid_at - interval '8 days' where id = $1")
                .bind(order.id.to_string())
                .execute(&bench.world.db)
                .await
                .unwrap();
            bench.run_look_back(&order).await;
            assert!(bench.look_back(&order).await.is_none(), "the last one");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_second_payment_follows_the_policy_too(db: PgPool) {
    for (policy, refunds, shown) in [("hold", 0, Held), ("refund", 1, Returning), ("fulfil", 0, Held)] {
        let bench = Bench::new(db.clone(), policy).await;
        let order = bench.opened(Wechat).await;
        bench.world.settle(vec![bench.world.paid(&order)]).await;
        // The gateway has a trade of another number.
        bench.act(&order, "pay").await;
        bench.request_now(order.id, CheckRequest::sync()).await;
        bench.check(&order).await;
        let after = bench.world.order(&order.id).await;
        assert_eq!((after.status, after.version, after.refunded_amount.fen()), (Paid, 3, 0), "{policy}");
        assert_eq!((after.extra_state, after.extra_amount), (Some(shown), Some(order.amount)), "{policy}");
        let made = store::tables::refunds::of_order(&bench.world.db, order.id).await.unwrap();
        assert_eq!(made.len(), refunds, "{policy}");
        let last = bench.decisions().await.pop().unwrap();
        assert_eq!(last, ("double_payment".to_owned(), "open".to_owned(), refunds == 1), "{policy}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_second_payment_waits_for_a_person_while_another_refund_is_on_its_way(db: PgPool) {
    let bench = Bench::new(db, "refund").await;
    let order = bench.opened(Wechat).await;
    bench.world.settle(vec![bench.world.paid(&order)]).await;
    let clock = bench.checks.clock;
    let id = RefundId::from_u128(clock.fresh_bits());
    let request = RequestedRefund {
        id,
        order_id: order.id,
        extra_trade: None,
        refund_no: RefundNo::parse(format!("R{id}")).unwrap(),
        amount: None,
        reason: None,
        requested_by: "buyer-1".to_owned(),
    };
    let mut tx = bench.world.db.begin().await.unwrap();
    settle::refunds::request(&mut tx, &request, clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    bench.act(&order, "pay").await;
    bench.request_now(order.id, CheckRequest::sync()).await;
    bench.check(&order).await;
    assert_eq!(store::tables::refunds::of_order(&bench.world.db, order.id).await.unwrap().len(), 1);
    let cases = bench.world.cases().await;
    assert_eq!(cases[0].0, "double_payment");
    assert!(cases[0].1["not_refunded"].is_string(), "{cases:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_that_has_gone_back_is_no_news(db: PgPool) {
    let bench = Bench::new(db, "refund").await;
    let order = bench.world.pending_order(Alipay, "8.88").await;
    let mut tx = bench.world.db.begin().await.unwrap();
    settle::end_unpaid(&mut tx, &order, &bench.checks.clock).await.unwrap();
    tx.commit().await.unwrap();
    let trade = bench.world.paid_trade(&order);
    let fields = [("trade_status".to_owned(), Some(json!("TRADE_CLOSED")))].into_iter().collect();
    let gone = Overrides { fields, id: Some("gone".to_owned()), ..Overrides::default() };
    bench.world.settle(vec![bench.world.notice_of(&trade, &Overrides::default())]).await;
    bench.world.settle(vec![bench.world.notice_of(&trade, &gone)]).await;
    assert_eq!(bench.world.verdicts().await, [("not_pending".to_owned(), 1), ("duplicate".to_owned(), 1)]);
    assert_eq!(bench.decisions().await.len(), 1, "the late payment's, and none of a refund elsewhere");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_answer_is_no_state_and_what_was_requested_stays_requested(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.opened(method).await;
        bench.request_now(order.id, CheckRequest::close()).await;
        bench.faults(r#"{"api":{"error_5xx":1}}"#).await;
        bench.check(&order).await;
        let (due, attempts, payload) = bench.job(&order).await.unwrap();
        assert!(due <= Duration::seconds(4), "{due}");
        assert_eq!((attempts, payload), (1, json!({ "close": true })));
        assert_eq!(bench.world.status(&order).await, Pending);
        bench.faults(r#"{"api":{"error_5xx":0}}"#).await;
        bench.check(&order).await;
        assert_eq!(bench.world.status(&order).await, Closed);
        assert_eq!(bench.trade(&order).await, "closed");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_buyer_gives_up_and_a_page_that_is_still_open_is_not_forgotten(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (unscanned, unmade) = (bench.offered(Alipay).await, bench.world.pending_order(Wechat, "1").await);
    for (order, status, payload) in [(&unscanned, Pending, json!({ "close": true })), (&unmade, Closed, json!({}))] {
        bench.request_now(order.id, CheckRequest::close()).await;
        bench.check(order).await;
        assert_eq!(bench.world.status(order).await, status);
        assert_eq!(bench.job(order).await.unwrap().2, payload);
    }
    // The buyer opens the page of an order whose close was requested: now there is a trade to close.
    bench.act(&unscanned, "open").await;
    bench.check(&unscanned).await;
    assert_eq!(bench.world.status(&unscanned).await, Closed);
    assert_eq!(bench.trade(&unscanned).await, "closed");
    assert_eq!(bench.job(&unscanned).await.unwrap().2, json!({}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sync_does_not_take_back_what_the_buyer_requested(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.opened(Wechat).await;
    bench.request_now(order.id, CheckRequest::close()).await;
    bench.request_now(order.id, CheckRequest::sync()).await;
    assert_eq!(bench.job(&order).await.unwrap().2, json!({ "close": true, "sync": true }));
    bench.check(&order).await;
    assert_eq!(bench.world.status(&order).await, Closed);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sync_queries_a_final_order_too(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.opened(Wechat).await;
    bench.act(&order, "pay").await;
    bench.check(&order).await;
    let first = orders::last_check(&bench.world.db, order.id).await.unwrap().unwrap();
    bench.request_now(order.id, CheckRequest::sync()).await;
    bench.check(&order).await;
    let second = orders::last_check(&bench.world.db, order.id).await.unwrap().unwrap();
    assert!(second.0 > first.0);
    assert_eq!(second.1, "SUCCESS");
    assert!(bench.job(&order).await.is_none());
    assert_eq!(bench.world.order(&order.id).await.version, 2);
    assert_eq!(bench.event_kinds().await, ["order.paid"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_workers_with_the_same_message_have_one_effect(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for paid in [true, false] {
        let order = bench.opened(Alipay).await;
        if paid {
            bench.act(&order, "pay").await;
        }
        bench.expire(&order, AGO).await;
        let nudge = bench.nudge(&order).await;
        run_batch(&bench.checks, (0..8).map(|_| Ok(nudge)).collect()).await.unwrap();
        assert_eq!(bench.world.order(&order.id).await.version, 2);
    }
    assert_eq!(bench.event_kinds().await, ["order.paid", "order.closed"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_account_that_is_not_configured_ends_no_job(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.world.order_of(Wechat, "nowhere", "1").await;
    bench.check(&order).await;
    assert_eq!(bench.job(&order).await.unwrap().1, 1);
    assert_eq!(bench.world.status(&order).await, Pending);
}
