//! Money that moves outside the service, where two rules meet: a late effect of ours, a booking that people repeat, a
//! request that people made before the order was paid.

use domain::OrderStatus::{Paid, PartiallyRefunded};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::job::{CheckRequest, Decision, JobRequest};
use domain::{
    CaseId, CaseKind, ExtraState, Money, OrderId, RefundNo, RefundOrigin, RefundReport, RefundState, RefundStatus,
};
use gateway_sim::notify::Overrides;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle::opening;
use store::settle::{self, Found, RequestedBooking};
use store::tables::cases::{self, Case, NewCase};
use store::tables::jobs;
use time::Duration;

use crate::bench::Bench;
use crate::support::World;

fn yuan(text: &str) -> Money {
    Money::from_yuan(text).unwrap()
}

impl World {
    /// Opens a case, or adds a fact to it.
    async fn fact(&self, kind: CaseKind, (order_id, number): (OrderId, &str), evidence: Value) -> Case {
        let id = CaseId::from_u128(Clock::system().fresh_bits());
        let case = NewCase { id, kind, order_id: Some(order_id), subject_ref: number.to_owned(), evidence };
        let mut tx = self.db.begin().await.unwrap();
        opening::open(&mut tx, &case, Clock::system().now()).await.unwrap();
        tx.commit().await.unwrap();
        let id: CaseId = sqlx::query_scalar("select id from cases where kind = $1 and subject_ref = $2")
            .bind(kind.as_str())
            .bind(number)
            .fetch_one(&self.db)
            .await
            .unwrap();
        cases::get(&self.db, id).await.unwrap().unwrap()
    }
}

/// Trap: the refund that failed has its effect late, the sum of the next one shows it, and it is booked as one from
/// outside first and as ours a day later.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failed_refund_with_a_late_effect_is_booked_once(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Alipay).await;
    let first = bench.world.request_refund(order.id, Some("3.00")).await.unwrap();
    bench.faults(r#"{"refund":{"effect_then_timeout":1}}"#).await;
    bench.carry(first.id).await;
    bench.faults(r#"{"refund":{}}"#).await;
    bench.world.tell(&first, &RefundReport::of(RefundState::Absent)).await;
    let (wait, ..) = bench.refund_job(first.id).await.expect("it is looked back at");
    assert!(wait > Duration::hours(20), "a day later: {wait}");

    let second = bench.world.request_refund(order.id, Some("2.00")).await.unwrap();
    bench.carry_to_its_end(second.id).await;
    assert_eq!(bench.world.order(&order.id).await.refunded_amount, yuan("2"), "nothing is booked from outside yet");
    let (wait, ..) = bench.refund_job(first.id).await.expect("it is asked about now");
    assert!(wait <= Duration::ZERO, "{wait}");
    bench.carry_to_its_end(first.id).await;
    assert_eq!(bench.world.refund(first.id).await.status, RefundStatus::Succeeded);
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("5")));
    let outside: i64 = sqlx::query_scalar("select count(*) from refund_records where origin = 'outside'")
        .fetch_one(&bench.world.db)
        .await
        .unwrap();
    assert_eq!(outside, 0);
}

/// Trap: a notice that names no refund has booked the sum, and people book the refund once more by its number.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_a_sum_has_booked_is_not_booked_again_by_its_number(db: PgPool) {
    let world = World::new(db);
    let (order, trade) = world.paid_with(Alipay, "4").await;
    let (_, went) = world.went(&trade, ("CONSOLE1", 100), false);
    world.settle(vec![went]).await;
    let trade_no = trade.trade_no.clone().unwrap();
    let case = world.fact(CaseKind::UnknownRefund, (order.id, "x"), json!({ "trade_no": trade_no })).await;
    let confirmed = Found::Confirmed { amount: yuan("1"), gateway_refund_no: None, at: None };
    let refund_no = RefundNo::parse("CONSOLE1").unwrap();
    let requested = RequestedBooking { case_id: case.id, refund_no, found: confirmed };
    for _ in 0..2 {
        let mut tx = world.db.begin().await.unwrap();
        settle::book_requested(&mut tx, order.id, &requested, &Clock::system()).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(world.order(&order.id).await.refunded_amount, yuan("1"));
    let booked: Vec<(String, Option<String>)> =
        sqlx::query_as("select refund_amount::text, gateway_refund_no from refund_records")
            .fetch_all(&world.db)
            .await
            .unwrap();
    assert_eq!(booked, [("1.00".to_owned(), Some("CONSOLE1".to_owned()))], "its number is known now");
}

/// Trap: the order is paid meanwhile, its check ends, and what two people have decided is never done.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_people_requested_of_a_check_outlives_it(db: PgPool) {
    let world = World::new(db);
    let case = CaseId::from_u128(Clock::system().fresh_bits());
    let fulfil = CheckRequest::of_case(case, Decision::Fulfil);
    let looks = "select payload, due_at <= now() from jobs where kind = 'look_back' and ref_id = $1";
    for requested in [Some(&fulfil), None] {
        let order = world.pending_order(Alipay, "8").await;
        let request = CheckRequest { close: true, ..requested.cloned().unwrap_or_default() };
        jobs::request(&world.db, &JobRequest::Check(order.id, request), Duration::hours(1)).await.unwrap();
        world.settle(vec![world.notice_of(&world.paid_trade(&order), &Overrides::default())]).await;
        assert_eq!(world.status(&order).await, Paid);
        let look: (Value, bool) = sqlx::query_as(looks).bind(order.id.to_string()).fetch_one(&world.db).await.unwrap();
        assert_eq!(
            look,
            (requested.cloned().unwrap_or_default().payload(), requested.is_some()),
            "the request to close is over"
        );
    }
}

/// Two people decided about a payment that we have no record of: they read why the decision had no effect.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_booking_for_a_payment_that_is_not_on_record_says_so(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.opened(Wechat).await;
    let evidence = json!({ "trade_no": "4200000000", "outcome": "hint" });
    let case = bench.world.fact(CaseKind::UnknownRefund, (order.id, "CONSOLE1"), evidence).await;
    let book = Decision::BookRefund { refund_no: RefundNo::parse("CONSOLE1").unwrap(), amount: yuan("1") };
    bench.request_now(order.id, CheckRequest::of_case(case.id, book)).await;
    bench.check(&order).await;
    let case = cases::get(&bench.world.db, case.id).await.unwrap().unwrap();
    assert_eq!(case.evidence["not_booked"], "the case names no payment of this order");
}

/// Trap: the buyer reads nothing of money that we hold, because no amount of its return is known.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_that_is_seen_after_a_part_went_back_shows_as_held(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.opened(Wechat).await;
    bench.act(&order, "pay").await;
    bench.console(&order, json!({ "amount_fen": 100, "notify": false })).await;
    bench.check(&order).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.extra_state, after.version), (Some(ExtraState::Held), order.version + 1));
}

/// Trap: one wrong sum stands for ever, and no refund of the payment is possible again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sum_beyond_the_payment_is_a_case_and_holds_up_no_refund(db: PgPool) {
    let world = World::new(db);
    let (order, trade) = world.paid_with(Alipay, "4").await;
    let (_, went) = world.went(&trade, ("CONSOLE1", 401), true);
    world.settle(vec![went]).await;
    let returned: String =
        sqlx::query_scalar("select returned_amount::text from payment_transactions where order_id = $1")
            .bind(order.id.to_string())
            .fetch_one(&world.db)
            .await
            .unwrap();
    assert_eq!(returned, "0.00");
    let ours = world.request_refund(order.id, Some("1")).await.unwrap();
    let sum = RefundReport {
        state: RefundState::Succeeded,
        amount: None,
        returned: Some(yuan("5")),
        gateway_refund_no: None,
        at: None,
    };
    world.tell(&ours, &sum).await;
    assert_eq!(world.order(&order.id).await.refunded_amount, yuan("1"));
    let cases = world.cases().await;
    let sums: Vec<&Value> = cases.iter().map(|(_, evidence)| &evidence["returned"]).collect();
    assert_eq!(sums, ["4.01"], "one case for what cannot be");
    assert!(world.request_refund(order.id, Some("1")).await.is_ok());
}

/// A later message that leaves something out takes nothing from what is known.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_fact_without_an_amount_keeps_the_amount_that_is_known(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "8").await;
    let key = (order.id, "CONSOLE1");
    world.fact(CaseKind::UnknownRefund, key, json!({ "amount": "2.50", "outcome": "succeeded" })).await;
    let after = world.fact(CaseKind::UnknownRefund, key, json!({ "amount": null, "outcome": "hint" })).await;
    assert_eq!(after.evidence["amount"], "2.50");
}

/// The order can expire in the same check that carries out a decision of people: it is delivered, and not closed first.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_people_decide_comes_before_the_end_of_an_expired_order(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.opened(Alipay).await;
    bench.act(&order, "pay").await;
    bench.console(&order, json!({ "amount_fen": 100 })).await;
    let notice = bench.notice(&order, "?event=refund").await.unwrap();
    bench.world.settle(vec![notice]).await;
    let case = bench.case_of(&order).await;
    bench.expire(&order, Duration::seconds(1)).await;
    bench.request_now(order.id, CheckRequest::of_case(case, Decision::Fulfil)).await;
    bench.check(&order).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("1")));
    assert_eq!(bench.event_kinds().await, ["order.paid", "refund.succeeded"]);
    let origins: Vec<String> =
        sqlx::query_scalar("select origin from refund_records").fetch_all(&bench.world.db).await.unwrap();
    assert_eq!(origins, [RefundOrigin::Outside.as_str()]);
}

/// Trap: a second payment goes back in the console without a notice, and no action of its case can book that.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_second_payment_that_went_back_in_silence_is_booked_by_people(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let order = bench.paid(method).await;
        bench.act(&order, "pay-again").await;
        let notice = bench.notice(&order, "?nth=1").await.unwrap();
        bench.world.settle(vec![notice]).await;
        assert_eq!(bench.world.order(&order.id).await.extra_state, Some(ExtraState::Held), "{method}");
        let path = format!("/sim/trades/{method}/{}/refunds?nth=1", order.order_no);
        let made = bench.control("POST", &path, r#"{"notify":false}"#).await;
        let number = RefundNo::parse(made["out_refund_no"].as_str().unwrap()).unwrap();
        let case = bench.case_of(&order).await;
        let book = Decision::BookRefund { refund_no: number, amount: order.amount };
        bench.request_now(order.id, CheckRequest::of_case(case, book)).await;
        bench.check(&order).await;
        let after = bench.world.order(&order.id).await;
        assert_eq!((after.status, after.refunded_amount), (Paid, Money::ZERO), "{method}: the order's own stays");
        assert_eq!(after.extra_state, Some(ExtraState::Returned), "{method}");
    }
}
