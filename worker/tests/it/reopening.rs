//! Facts for which a case exists already: which reopen it, which only add to it, and which are repeats.

use domain::PaymentMethod::{Alipay, Wechat};
use domain::{CaseId, CaseKind, CaseStatus, RefundReport, RefundState};
use gateway_sim::notify::Overrides;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle::opening;
use store::tables::cases::{self, Case, NewCase};
use time::Duration;

use crate::bench::Bench;
use crate::support::World;

impl World {
    /// The only case.
    async fn case(&self) -> Case {
        let ids: Vec<CaseId> = sqlx::query_scalar("select id from cases").fetch_all(&self.db).await.unwrap();
        let [id] = ids[..] else { panic!("{} cases", ids.len()) };
        cases::get(&self.db, id).await.unwrap().unwrap()
    }

    /// A person ends the only case, as the API does it.
    async fn resolve(&self) {
        let case = self.case().await;
        let end = Case { status: CaseStatus::Resolved, resolution: Some("seen".to_owned()), ..case };
        let entry = json!({ "who": "a1", "what": "resolved" });
        let mut connection = self.db.acquire().await.unwrap();
        cases::step(&mut connection, &end, &entry, Clock::system().now()).await.unwrap();
    }

    async fn open(&self, kind: CaseKind, evidence: Value) {
        let clock = Clock::system();
        let id = CaseId::from_u128(clock.fresh_bits());
        let new = NewCase { id, kind, order_id: None, subject_ref: "4200".to_owned(), evidence };
        opening::open(&mut self.db.acquire().await.unwrap(), &new, clock.now()).await.unwrap();
    }

    async fn case_events(&self) -> Vec<String> {
        let reopened = "select event_id from events where type like 'case.%' order by seq";
        sqlx::query_scalar(reopened).fetch_all(&self.db).await.unwrap()
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_balance_that_is_short_once_more_reopens_its_case(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        sqlx::query("delete from cases").execute(&bench.world.db).await.unwrap();
        let order = bench.paid(method).await;
        let refund = bench.world.request_refund(order.id, None).await.unwrap();
        let balance = format!("/sim/balances/{method}/main");
        bench.control("PUT", &balance, r#"{"fen":0}"#).await;
        let carry = async || {
            bench.pass(Duration::minutes(11)).await;
            bench.carry(refund.id).await;
        };
        carry().await;
        carry().await;
        let case = bench.world.case().await;
        assert_eq!((case.kind, case.status, case.version), (CaseKind::RefundShortage, CaseStatus::Open, 1), "{method}");
        bench.world.resolve().await;
        carry().await;
        let case = bench.world.case().await;
        assert_eq!((case.status, case.version, case.resolution), (CaseStatus::Open, 3, None), "{method}");
        assert_eq!(case.history[1]["what"], "reopened");
        assert_eq!(case.history[1]["ended"]["resolution"], "seen");
        assert_eq!(bench.world.case_events().await.last(), Some(&format!("case.reopened:{}:3", case.id)));
        carry().await;
        assert_eq!(bench.world.case().await.version, 3, "an open case says it already");
        bench.control("PUT", &balance, r#"{"fen":null}"#).await;
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.world.case().await.status, CaseStatus::Resolved);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeated_notice_reopens_nothing_and_another_amount_does(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "88.88").await;
    let trade = world.paid_trade(&order);
    let report = async |id: &str, fen: i64| {
        let overrides = Overrides { amount_fen: Some(fen), id: Some(id.to_owned()), ..Overrides::default() };
        world.settle(vec![world.notice_of(&trade, &overrides)]).await;
    };
    report("n1", 1).await;
    world.resolve().await;
    let before = world.case().await;
    for id in ["n1", "n2", "n3"] {
        report(id, 1).await;
    }
    let after = world.case().await;
    assert_eq!((after.status, after.version), (CaseStatus::Resolved, before.version), "the same fact");
    assert_eq!(after.history, before.history);

    report("n4", 2).await;
    let after = world.case().await;
    assert_eq!((after.status, after.version), (CaseStatus::Open, before.version + 1));
    assert_eq!((&after.evidence["amount"], &after.history[1]["before"]["amount"]), (&json!("0.02"), &json!("0.01")));
    world.resolve().await;
    for (id, fen) in [("n5", 1), ("n6", 2)] {
        report(id, fen).await;
    }
    assert_eq!(world.case().await.status, CaseStatus::Resolved, "both amounts are known");
    assert_eq!(world.case_events().await.len(), 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_fault_of_a_gateway_reopens_and_the_same_one_does_not(db: PgPool) {
    let world = World::new(db);
    let fault = async |message: &str| world.open(CaseKind::GatewayProtocol, json!({ "message": message })).await;
    fault("not JSON").await;
    world.resolve().await;
    fault("not JSON").await;
    assert_eq!(world.case().await.status, CaseStatus::Resolved);
    fault("no signature").await;
    let case = world.case().await;
    assert_eq!((case.status, &case.evidence["message"]), (CaseStatus::Open, &json!("no signature")));
}

/// First still in the gateway's hands, then returned.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_second_form_of_a_case_after_a_failure_reopens_it(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "10").await;
    world.settle(vec![world.paid(&order)]).await;
    let refund = world.request_refund(order.id, None).await.unwrap();
    world.tell(&refund, &RefundReport::of(RefundState::Absent)).await;
    let stuck = RefundReport { gateway_refund_no: Some("50300".to_owned()), ..RefundReport::of(RefundState::Abnormal) };
    world.tell(&refund, &stuck).await;
    assert_eq!(world.case().await.kind, CaseKind::RefundAfterFailure);
    world.resolve().await;
    world.tell(&refund, &stuck).await;
    assert_eq!(world.case().await.status, CaseStatus::Resolved, "a repeat");
    world.tell(&refund, &RefundReport::of(RefundState::Succeeded)).await;
    let case = world.case().await;
    assert_eq!((case.status, &case.evidence["found"]), (CaseStatus::Open, &json!("returned")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_new_fact_leaves_a_proposal_and_raises_the_version(db: PgPool) {
    let world = World::new(db);
    world.open(CaseKind::UnknownRefund, json!({ "outcome": "abnormal", "amount": "1.00" })).await;
    let case = world.case().await;
    let proposed = Case {
        status: CaseStatus::Proposed,
        proposed_by: Some("a1".to_owned()),
        proposed_action: Some(json!({ "action": "note", "note": "n" })),
        ..case
    };
    let mut connection = world.db.acquire().await.unwrap();
    cases::step(&mut connection, &proposed, &json!({}), Clock::system().now()).await.unwrap();
    world.open(CaseKind::UnknownRefund, json!({ "outcome": "succeeded", "amount": "1.00" })).await;
    let case = world.case().await;
    assert_eq!((case.status, case.version), (CaseStatus::Proposed, 3));
    assert_eq!((case.proposed_by.as_deref(), &case.history[1]["what"]), (Some("a1"), &json!("noted")));
    assert_eq!(case.evidence, json!({ "outcome": "succeeded", "amount": "1.00" }));
}

/// A gateway that says something else each time cannot fill the table.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_history_has_a_bound(db: PgPool) {
    let world = World::new(db);
    for n in 0..210 {
        world.open(CaseKind::GatewayProtocol, json!({ "message": format!("fault {n}") })).await;
    }
    let case = world.case().await;
    assert_eq!(case.history.as_array().unwrap().len(), 200);
    assert_eq!((case.version, &case.evidence["message"]), (210, &json!("fault 209")));
}
