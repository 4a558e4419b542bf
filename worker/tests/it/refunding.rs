//! The refund worker against both gateways: what it requests, when it queries again, and what it never does.

use std::time::Instant;

use domain::OrderStatus::{Paid, PartiallyRefunded, Refunded, Refunding};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::RefundStatus::{Abnormal, Failed, Pending, Processing, Succeeded};
use domain::message::callback::Callback;
use domain::message::job::{JobRequest, RefundRequest};
use domain::{PaymentMethod, RefundId, RefundReport, RefundState};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::jobs;
use store::tables::orders::Order;
use store::tables::refunds::Refund;
use time::Duration;

use crate::bench::{Bench, SOON, carry};

const BOTH: [PaymentMethod; 2] = [Alipay, Wechat];
const ALL_WELL: &str = "{}";

impl Bench {
    /// A refund that has not been sent yet, of an order that was paid.
    async fn requested(&self, method: PaymentMethod, yuan: Option<&str>) -> (Order, Refund) {
        let order = self.paid(method).await;
        let refund = self.world.request_refund(order.id, yuan).await.unwrap();
        (order, refund)
    }

    async fn refund_of(&self, id: RefundId) -> Refund {
        self.world.refund(id).await
    }

    /// In how many seconds the job is due, rounded, and what it has cost.
    async fn due(&self, id: RefundId) -> (i64, i32) {
        let (due, attempts, _) = self.refund_job(id).await.expect("the refund goes on");
        (due.as_seconds_f64().round() as i64, attempts)
    }

    /// Two people have decided that the merchant gets it back.
    async fn redirect(&self, id: RefundId) {
        let redirect = JobRequest::Refund(id, RefundRequest::redirect());
        jobs::request(&self.world.db, &redirect, Duration::ZERO).await.unwrap();
    }

    /// The notice of a refund, once the gateway has one to send.
    pub async fn notice_of(&self, order: &Order, refund: &Refund) -> Callback {
        let which = format!("?refund={}", refund.refund_no);
        let began = Instant::now();
        loop {
            if let Some(notice) = self.notice(order, &which).await {
                return notice;
            }
            assert!(began.elapsed() < SOON, "no notice of {}", refund.refund_no);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn refund_events(&self) -> Vec<String> {
        self.event_kinds().await.into_iter().filter(|kind| kind != "order.paid").collect()
    }

    async fn violations(&self, order: &Order) -> Value {
        self.ledger(order).await["violations"].clone()
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_goes_back_once_at_each_gateway(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, Some("3.00")).await;
        assert_eq!(bench.world.status(&order).await, Refunding);
        bench.carry_to_its_end(refund.id).await;
        let done = bench.refund_of(refund.id).await;
        assert_eq!((done.status, done.attempts), (Succeeded, 1), "{method}");
        assert!(done.succeeded_at.is_some());
        assert_eq!(bench.world.order(&order.id).await.refunded_amount.fen(), 300);
        assert_eq!(bench.world.status(&order).await, PartiallyRefunded);

        let rest = bench.world.request_refund(order.id, None).await.unwrap();
        bench.pass(Duration::minutes(2)).await;
        bench.carry_to_its_end(rest.id).await;
        assert_eq!(bench.world.status(&order).await, Refunded);
        for refund in [&refund, &rest] {
            let booked = bench.booked(&order, refund.refund_no.as_str()).await.unwrap();
            assert_eq!(booked, ("success".to_owned(), 1), "{method}");
            assert!(bench.refund_job(refund.id).await.is_none());
        }
        assert_eq!(bench.violations(&order).await, json!({}));
    }
    let each = ["refund.succeeded", "refund.succeeded", "order.refunded"];
    assert_eq!(bench.refund_events().await, [each, each].concat());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_never_came_is_queried_and_the_refund_is_not_sent_twice(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        bench.faults(r#"{"refund":{"effect_then_timeout":1}}"#).await;
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Processing, "unknown is neither success nor failure");
        assert_eq!(bench.world.status(&order).await, Refunding);
        // Before ten seconds have passed the gateway is not asked.
        bench.faults(r#"{"refund":{"query_5xx":1}}"#).await;
        bench.carry(refund.id).await;
        let (due, attempts) = bench.due(refund.id).await;
        assert!((9..=10).contains(&due) && attempts == 1, "{due} {attempts}");
        // A query without an answer changes nothing.
        bench.pass(Duration::seconds(10)).await;
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Processing);
        bench.faults(ALL_WELL).await;
        bench.carry_to_its_end(refund.id).await;
        let done = bench.refund_of(refund.id).await;
        assert_eq!((done.status, done.attempts), (Succeeded, 1), "asked for once, {method}");
        assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await.unwrap().1, 1);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_did_not_arrive_is_sent_again_under_the_same_number(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for (method, fault) in BOTH.into_iter().flat_map(|method| [(method, "error_5xx"), (method, "rate_limited")]) {
        let (order, refund) = bench.requested(method, Some("1.23")).await;
        bench.faults(&format!(r#"{{"refund":{{"{fault}":1}}}}"#)).await;
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Processing, "{method} {fault}");
        assert!(bench.booked(&order, refund.refund_no.as_str()).await.is_none());
        bench.faults(ALL_WELL).await;
        bench.carry_to_its_end(refund.id).await;
        let done = bench.refund_of(refund.id).await;
        assert_eq!((done.status, done.attempts, &done.refund_no), (Succeeded, 2, &refund.refund_no));
        assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await.unwrap(), ("success".to_owned(), 1));
        assert_eq!(bench.violations(&order).await, json!({}), "the same parameters");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refusal_is_a_failure_only_once_a_question_knows_no_refund(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        let age = format!("/sim/trades/{method}/{}/age", order.order_no);
        bench.control("POST", &age, r#"{"days":366}"#).await;
        bench.carry(refund.id).await;
        let refused = bench.refund_of(refund.id).await;
        assert_eq!(refused.status, Processing, "{method}");
        assert!(refused.refused_code.is_some() && refused.last_error.is_some());
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Failed, "{method}");
        assert_eq!(bench.world.status(&order).await, Paid);
    }
    assert_eq!(bench.refund_events().await, ["refund.failed"; 2]);
    assert_eq!(bench.world.cases().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_short_balance_waits_opens_one_case_and_costs_no_attempt(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        let balance = format!("/sim/balances/{method}/main");
        bench.control("PUT", &balance, r#"{"fen":0}"#).await;
        for _ in 0..2 {
            bench.pass(Duration::minutes(11)).await;
            bench.carry(refund.id).await;
            assert_eq!(bench.refund_of(refund.id).await.status, Processing);
        }
        let (due, attempts) = bench.due(refund.id).await;
        assert!((599..=600).contains(&due) && attempts == 0, "{due} {attempts}");
        bench.control("PUT", &balance, r#"{"fen":null}"#).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Succeeded);
        assert_eq!(bench.world.status(&order).await, Refunded);
    }
    let cases = bench.world.cases().await;
    assert_eq!(cases.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["refund_shortage"; 2]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_undeliverable_refund_stays_reserved_until_a_person_sends_it_another_way(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.requested(Wechat, Some("5.00")).await;
    bench.faults(r#"{"refund":{"abnormal":1}}"#).await;
    bench.carry_to_its_end(refund.id).await;
    assert_eq!(bench.refund_of(refund.id).await.status, Abnormal);
    assert_eq!(bench.world.status(&order).await, Paid, "not in flight any more");
    assert!(bench.world.request_refund(order.id, Some("3.89")).await.is_err(), "what is stuck stays reserved");
    assert_eq!(bench.world.cases().await[0].0, "refund_abnormal");
    let (due, _) = bench.due(refund.id).await;
    assert!((86_390..=86_400).contains(&due), "asked about daily: {due}");

    bench.redirect(refund.id).await;
    bench.faults(ALL_WELL).await;
    bench.carry(refund.id).await;
    bench.carry_to_its_end(refund.id).await;
    assert_eq!(bench.refund_of(refund.id).await.status, Succeeded);
    assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await.unwrap(), ("success".to_owned(), 1));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_closed_refund_has_failed_and_another_number_may_follow(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.requested(Wechat, None).await;
    bench.faults(r#"{"refund":{"closed":1}}"#).await;
    bench.carry_to_its_end(refund.id).await;
    assert_eq!(bench.refund_of(refund.id).await.status, Failed);
    assert_eq!(bench.world.cases().await[0].0, "refund_closed");
    bench.faults(ALL_WELL).await;
    let next = bench.world.request_refund(order.id, None).await.unwrap();
    assert_ne!(next.refund_no, refund.refund_no);
    bench.pass(Duration::minutes(2)).await;
    bench.carry_to_its_end(next.id).await;
    assert_eq!(bench.world.status(&order).await, Refunded);
    assert_eq!(bench.refund_events().await, ["refund.failed", "refund.succeeded", "order.refunded"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notice_settles_a_refund_at_wechat_and_brings_the_question_forward_at_alipay(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        bench.faults(r#"{"refund":{"effect_then_timeout":1}}"#).await;
        bench.carry(refund.id).await;
        bench.faults(ALL_WELL).await;
        let notice = bench.notice_of(&order, &refund).await;
        bench.world.settle(vec![notice.clone(), notice]).await;
        let status = bench.refund_of(refund.id).await.status;
        if method == Wechat {
            assert_eq!(status, Succeeded);
            assert!(bench.refund_job(refund.id).await.is_none());
        } else {
            assert_eq!(status, Processing, "a hint is no proof");
            assert!(bench.due(refund.id).await.0 <= 0);
            bench.carry_to_its_end(refund.id).await;
        }
        assert_eq!(bench.world.status(&order).await, Refunded, "{method}");
    }
    let each = ["refund.succeeded", "order.refunded"];
    assert_eq!(bench.refund_events().await, [each, each].concat());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_worker_that_died_before_the_call_is_found_to_have_sent_nothing(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (_, refund) = bench.requested(method, None).await;
        // The state is committed before the call; the call never left.
        let mut tx = bench.world.db.begin().await.unwrap();
        store::tables::refunds::mark_sent(&mut tx, refund.id, bench.checks.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Processing);
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Succeeded, "{method}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_pause_between_two_refunds_is_kept_without_a_call(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for (method, pause) in [(Alipay, 3), (Wechat, 60)] {
        let (order, first) = bench.requested(method, Some("1.00")).await;
        bench.carry(first.id).await;
        if method == Wechat {
            bench.world.settle(vec![bench.notice_of(&order, &first).await]).await;
        }
        assert_eq!(bench.refund_of(first.id).await.status, Succeeded);
        let second = bench.world.request_refund(order.id, Some("1.00")).await.unwrap();
        bench.carry(second.id).await;
        let waiting = bench.refund_of(second.id).await;
        assert_eq!((waiting.status, waiting.attempts), (Pending, 0), "{method}");
        let (due, attempts) = bench.due(second.id).await;
        assert!((1..=pause).contains(&due) && attempts == 0, "{method} {due}");
        bench.carry_to_its_end(second.id).await;
        assert_eq!(bench.refund_of(second.id).await.status, Succeeded);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn while_calls_fail_few_more_are_tried(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let mut refunds = Vec::new();
    for _ in 0..6 {
        refunds.push(bench.requested(Wechat, None).await.1);
    }
    bench.faults(r#"{"refund":{"error_5xx":1}}"#).await;
    let began = Instant::now();
    for refund in &refunds {
        bench.carry(refund.id).await;
    }
    // Two turns, each free again a second after its call failed.
    let least = std::time::Duration::from_secs(refunds.len() as u64 / 2 - 1);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    for refund in &refunds {
        assert_eq!(bench.refund_of(refund.id).await.status, Processing);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_refund_fails_by_its_age(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        bench.faults(r#"{"refund":{"processing_ms":86400000}}"#).await;
        let mut last = 0;
        for (age, every) in [(0, 10), (5 * 60, 60), (30 * 60, 300), (12 * 3600, 1800), (30 * 86_400, 7200)] {
            sqlx::query("update refund_records set created_at = now() - $2 * interval '1 second' where id = $1")
                .bind(refund.id.to_string())
                .bind(f64::from(age))
                .execute(&bench.world.db)
                .await
                .unwrap();
            bench.pass(Duration::minutes(2)).await;
            bench.carry(refund.id).await;
            assert_eq!(bench.refund_of(refund.id).await.status, Processing, "{method} {age}");
            let (due, _) = bench.due(refund.id).await;
            // With up to a tenth more, so that those that failed together do not come together.
            assert!((every - 1..=every + every / 10 + 1).contains(&due), "{method} {age}: {due}");
            assert!(due > last);
            last = due;
        }
        let finish = format!("/sim/trades/{method}/{}/refunds/{}/finish", order.order_no, refund.refund_no);
        bench.control("POST", &finish, "").await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Succeeded);
        bench.faults(ALL_WELL).await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_that_a_notice_calls_undeliverable_has_the_number_to_send_it_another_way(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for known in [true, false] {
        let (order, refund) = bench.requested(Wechat, None).await;
        bench.faults(r#"{"refund":{"abnormal":1}}"#).await;
        bench.carry(refund.id).await;
        bench.world.settle(vec![bench.notice_of(&order, &refund).await]).await;
        let stuck = bench.refund_of(refund.id).await;
        assert_eq!(stuck.status, Abnormal);
        assert!(stuck.gateway_refund_no.is_some(), "told by the notice");
        if !known {
            // A refund from before such numbers were stored: the query brings the number.
            sqlx::query("update refund_records set gateway_refund_no = null").execute(&bench.world.db).await.unwrap();
        }
        // A transport error is no answer: the decision of two people stays in the job.
        bench.redirect(refund.id).await;
        bench.faults(r#"{"api":{"error_5xx":1}}"#).await;
        bench.carry(refund.id).await;
        let (due, attempts, requested) = bench.refund_job(refund.id).await.unwrap();
        assert!(due < Duration::seconds(5) && attempts == 1, "{due} {attempts}");
        assert_eq!(requested, json!({ "redirect": "merchant" }));
        bench.faults(ALL_WELL).await;
        bench.carry(refund.id).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Succeeded);
        assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await.unwrap(), ("success".to_owned(), 1));
    }
    let open: Vec<String> = sqlx::query_scalar("select kind from cases where status <> 'resolved'")
        .fetch_all(&bench.world.db)
        .await
        .unwrap();
    assert!(open.is_empty(), "what went back waits for nobody: {open:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_that_failed_here_and_went_back_there_is_found_by_a_hint_and_by_looking_back(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for hint in [true, false] {
        let (order, refund) = bench.requested(Alipay, None).await;
        bench.faults(r#"{"refund":{"effect_then_timeout":1}}"#).await;
        bench.carry(refund.id).await;
        bench.faults(ALL_WELL).await;
        let failed = RefundReport::of(RefundState::Absent);
        bench.world.tell(&refund, &failed).await;
        assert_eq!(bench.world.status(&order).await, Paid);
        let (due, _) = bench.due(refund.id).await;
        assert!((86_390..=86_400).contains(&due), "asked about once more, much later: {due}");
        if hint {
            bench.world.settle(vec![bench.notice_of(&order, &refund).await]).await;
            assert!(bench.due(refund.id).await.0 <= 0, "the hint brings the question forward");
        }
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_of(refund.id).await.status, Succeeded);
        assert_eq!(bench.world.status(&order).await, Refunded);
        assert!(bench.refund_job(refund.id).await.is_none());
    }
    let cases = bench.world.cases().await;
    assert_eq!(cases.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["refund_after_failure"; 2]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refused_repeat_waits_for_what_was_sent_before_it(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.requested(Alipay, None).await;
    bench.faults(r#"{"refund":{"error_5xx":1}}"#).await;
    bench.carry(refund.id).await;
    bench.faults(ALL_WELL).await;
    bench.control("POST", &format!("/sim/trades/alipay/{}/age", order.order_no), r#"{"days":366}"#).await;
    bench.pass(Duration::seconds(20)).await;
    bench.carry(refund.id).await;
    let refused = bench.refund_of(refund.id).await;
    assert!(refused.refused_code.is_some() && refused.attempts == 2);
    bench.pass(Duration::seconds(20)).await;
    bench.carry(refund.id).await;
    assert_eq!(bench.refund_of(refund.id).await.status, Processing, "the first request may still arrive");
    bench.pass(Duration::minutes(10)).await;
    bench.carry(refund.id).await;
    assert_eq!(bench.refund_of(refund.id).await.status, Failed);
    // The last look back finds nothing, and then it is over.
    bench.carry(refund.id).await;
    assert!(bench.refund_job(refund.id).await.is_none());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_worker_that_has_lost_its_job_can_bring_facts_and_nothing_else(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.requested(Alipay, None).await;
    bench.control("POST", &format!("/sim/trades/alipay/{}/age", order.order_no), r#"{"days":366}"#).await;
    // Its lease ends while its call is under way: another worker has the job.
    bench.when_refunded("update jobs set fence = fence + 1 where kind = 'refund'");
    bench.carry(refund.id).await;
    let after = bench.refund_of(refund.id).await;
    assert_eq!((after.status, after.refused_code), (Processing, None), "a refusal heard too late is nobody's");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_amount_is_a_case_and_no_state(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, Some("1.00")).await;
        bench.faults(r#"{"refund":{"effect_then_timeout":1,"other_amount":1}}"#).await;
        bench.carry(refund.id).await;
        for _ in 0..2 {
            bench.pass(Duration::minutes(1)).await;
            bench.carry(refund.id).await;
        }
        assert_eq!(bench.refund_of(refund.id).await.status, Processing, "{method}");
        bench.faults(ALL_WELL).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.world.status(&order).await, PartiallyRefunded);
    }
    let cases = bench.world.cases().await;
    assert_eq!(cases.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["amount_mismatch"; 2]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_had_to_wait_for_another_refund_goes_back_after_it(db: PgPool) {
    let bench = Bench::new(db, "refund").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        for _ in 0..2 {
            bench.act(&order, "pay-again").await;
        }
        for nth in ["?nth=1", "?nth=2"] {
            let notice = bench.notice(&order, nth).await.unwrap();
            bench.world.settle(vec![notice]).await;
        }
        let began = Instant::now();
        let returned = async || {
            let all = store::tables::refunds::of_order(&bench.world.db, order.id).await.unwrap();
            (all.len(), all.into_iter().filter(|refund| refund.status != Succeeded).map(|refund| refund.id).next())
        };
        assert_eq!(returned().await, (1, Some(refund.id)), "one at a time");
        while let (_, Some(next)) = returned().await {
            bench.pass(Duration::minutes(2)).await;
            bench.carry(next).await;
            assert!(began.elapsed() < SOON, "{:?}", returned().await);
        }
        assert_eq!(returned().await.0, 3, "{method}");
        for nth in 0..3 {
            assert_eq!(bench.ledger_of(&order, nth).await["refunded_fen"], 888, "{method} {nth}");
        }
        assert_eq!(bench.world.order(&order.id).await.refunded_amount, order.amount);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_connection_that_is_refused_is_tried_again_at_once(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let (order, refund) = bench.requested(method, None).await;
        carry(&bench.early().await, refund.id).await;
        let sent = bench.refund_of(refund.id).await;
        assert_eq!((sent.attempts, sent.last_error), (1, None), "{method}");
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await.unwrap(), ("success".to_owned(), 1));
    }
}
